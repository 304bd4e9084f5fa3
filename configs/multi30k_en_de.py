"""Multi30k en-de, tokenised and lower-cased text: Transformer-Tiny of Wu et al., 2021
("Good for Misconceived Reasons"), whose text-only BLEU is 41.02 on test_2016_flickr.

python train.py --config configs/multi30k_en_de.py --workdir runs/m30k --data.dir PATH

PATH holds the authors' `data/task1/tok`; without it, the files are downloaded.
"""

from transformer_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    SearchConfig,
    TokenizerConfig,
    TrainConfig,
    sized_model,
)


def get_config() -> Config:
    """Joint BPE of 10 000, dropout 0.3, inverse square root; beam 5 in the end."""
    return Config(
        model=sized_model("tiny", dropout=0.3),
        tokenizer=TokenizerConfig(vocab_size=10_000, normalization="identity"),
        data=DataConfig(
            name="multi30k",
            source_language="en",
            target_language="de",
            tokenized=True,
            batch_tokens=2048,
            pack_length=64,
            max_length=64,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=1500),
        train=TrainConfig(
            steps=20_000, checkpoint_every=250, evaluate_every=1000, log_every=50
        ),
        evaluation=EvaluationConfig(
            search=SearchConfig(method="greedy"), tokenize="none"
        ),
        search=SearchConfig(method="beam", beam_size=5, stop="bound"),
    )
