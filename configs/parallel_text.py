"""Any two text files, one sentence a line, plain or gzip: small Transformer, raw text.

transformer-jax train --config parallel_text --workdir runs/mine \\
    --data.train-source train.de --data.train-target train.en \\
    --data.dev-source dev.de --data.dev-target dev.en

Several files on a side are named one after another. Text shorter than a few thousand
sentences needs a smaller --tokenizer.vocab-size; the error says how large it can be.
For languages written without spaces, score with --evaluation.tokenize char (or
ja-mecab, ko-mecab, zh). Not measured: the data are yours.
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
    sized_model,
)


def get_config() -> Config:
    """Settings that suit some ten thousand to a million pairs."""
    return Config(
        model=sized_model("small", norm_position="pre", dropout=0.2),
        tokenizer=TokenizerConfig(vocab_size=8000),
        data=DataConfig(
            name="parallel_text",
            source_language="source",
            target_language="target",
            batch_tokens=8192,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2000),
        train=TrainConfig(steps=50_000),
    )
