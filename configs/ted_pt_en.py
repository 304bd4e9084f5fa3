"""TED talks, Portuguese to English, small Transformer.

52 000 pairs of Qi et al., 2018, already tokenised and lower-cased: the pieces leave the
text as it is, and BLEU is counted on its tokens. TFDS downloads them at first use. Not
measured here yet.

transformer-jax train --config ted_pt_en --workdir runs/ted
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
    sized_model,
)


def get_config() -> Config:
    """A small pre-norm model with the dropout that little data needs."""
    return Config(
        model=sized_model("small", norm_position="pre", dropout=0.3),
        tokenizer=TokenizerConfig(vocab_size=8000, normalization="identity"),
        data=DataConfig(
            name="ted_hrlr_translate/pt_to_en",
            source_language="pt",
            target_language="en",
            batch_tokens=8192,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2000),
        train=TrainConfig(steps=20_000),
        evaluation=EvaluationConfig(tokenize="none"),
    )
