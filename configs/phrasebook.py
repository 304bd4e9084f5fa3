"""The embedded German–English phrasebook, a small pre-norm Transformer: the demo.

python train.py --config configs/phrasebook.py --workdir runs/phrasebook
transformer-jax translate --checkpoint runs/phrasebook
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    SearchConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> Config:
    """A few minutes on two CPU cores."""
    return Config(
        model=ModelConfig(
            num_encoder_layers=2,
            num_decoder_layers=2,
            d_model=128,
            d_ff=256,
            num_heads=4,
            dropout=0.1,
            norm_position="pre",
        ),
        tokenizer=TokenizerConfig(vocab_size=1000),
        data=DataConfig(
            name="phrasebook",
            batch_tokens=2048,
            pack_length=64,
            max_length=64,
        ),
        optimizer=OptimizerConfig(
            learning_rate=4e-3,
            warmup_steps=150,
            schedule="linear",
            schedule_steps=720,
            final_ratio=0.02,
            clip_norm=1.0,
        ),
        train=TrainConfig(steps=720, checkpoint_every=360, evaluate_every=360),
        evaluation=EvaluationConfig(max_sentences=200),
        search=SearchConfig(method="beam", beam_size=4, stop="bound"),
    )
