"""WMT14 en-de, base Transformer, as in section 5 of "Attention Is All You Need".

4.5 million pairs, joint BPE of 37 000, about 25 000 tokens a side in each batch,
100 000 updates, warm-up 4 000; then average the last 5 checkpoints, and translate
newstest2014 (the split `test`) with beam 4 and length penalty 0.6. The paper reports
27.3 BLEU, on text tokenised and with compounds split; sacreBLEU comes out lower. Not
measured here yet: it needs accelerators and the downloads of WMT14.

transformer-jax train --config wmt14_en_de --workdir runs/wmt14
transformer-jax train --config wmt14_en_de --workdir runs/wmt14 \\
    --model.dtype bfloat16 --train.accumulate 4
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SearchConfig,
    TokenizerConfig,
    TrainConfig,
    sized_model,
)


def get_config() -> Config:
    """The paper's base model and training schedule."""
    return Config(
        model=base_model(),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=37_000, joint=True),
        data=DataConfig(
            name="wmt14_translate/de-en",
            source_language="en",
            target_language="de",
            batch_tokens=25_600,  # 200 rows of 128: eight devices share them evenly
        ),
        optimizer=OptimizerConfig(
            name="adam",
            b1=0.9,
            b2=0.98,
            eps=1e-9,
            schedule="paper",
            learning_rate=1.0,
            warmup_steps=4000,
        ),
        train=TrainConfig(
            steps=100_000,
            label_smoothing=0.1,
            checkpoint_every=1500,
            evaluate_every=3000,
            keep_checkpoints=5,
        ),
        search=SearchConfig(
            method="beam",
            beam_size=4,
            length_penalty="gnmt",
            alpha=0.6,
            max_length_factor=1.0,
            max_length_offset=50,
        ),
    )


def base_model() -> ModelConfig:
    """Post-norm, all three tables tied, no biases in attention, sinusoids."""
    return sized_model(
        "base",
        dropout=0.1,
        norm_position="post",
        attention_bias=False,
        tied_embeddings="all",
    )
