"""Multi30k en-de on raw, cased text: Transformer-Tiny, raw text in and raw text out.

python train.py --config configs/multi30k_en_de_raw.py --workdir runs/m30k_raw \
    --data.dir PATH

PATH holds the authors' `data/task1/raw`; without it, the files are downloaded.
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    SearchConfig,
    TokenizerConfig,
    TrainConfig,
    sized_model,
)


def get_config() -> Config:
    """As multi30k_en_de, but on text as people write it."""
    return Config(
        model=sized_model("tiny", dropout=0.3),
        tokenizer=TokenizerConfig(vocab_size=10_000),
        data=DataConfig(
            name="multi30k",
            source_language="en",
            target_language="de",
            batch_tokens=2048,
            pack_length=64,
            max_length=64,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=1500),
        train=TrainConfig(
            steps=20_000, checkpoint_every=250, evaluate_every=1000, log_every=50
        ),
        search=SearchConfig(method="beam", beam_size=5, stop="bound"),
    )
