"""The copy task: strings of digits and letters come out as they went in.

python train.py --config configs/copy_task.py --workdir runs/copy_task
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SearchConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> Config:
    """A minute on two CPU cores."""
    return Config(
        model=ModelConfig(
            num_encoder_layers=2,
            num_decoder_layers=2,
            d_model=64,
            d_ff=128,
            num_heads=4,
            dropout=0.0,
            norm_position="pre",
        ),
        # Each token is a character: room for them, the word mark and the specials.
        tokenizer=TokenizerConfig(vocab_size=45),
        data=DataConfig(
            name="copy_task",
            source_language="source",
            target_language="target",
            batch_tokens=2048,
            pack_length=32,
            max_length=32,
        ),
        # Down to 0: at a rate that stays high, an update now and then still unlearns.
        optimizer=OptimizerConfig(
            schedule="linear", learning_rate=3e-3, warmup_steps=100, schedule_steps=300
        ),
        train=TrainConfig(
            steps=300, label_smoothing=0.0, checkpoint_every=100, evaluate_every=100
        ),
        search=SearchConfig(method="greedy"),
    )
