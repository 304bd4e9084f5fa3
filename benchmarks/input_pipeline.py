"""How much of a batch is padding, how fast batches are made, and whether training waits
for them.

python benchmarks/input_pipeline.py --data PATH \
    --output benchmarks/results/input_pipeline.json

PATH holds Multi30k's `data/task1/tok`. Shares of real tokens are measured on it, and
on news-like lengths (`testing.log_normal_lengths`: log-normal, mean of the logarithm
3.18, spread 0.6). Then the pipeline alone is timed over two epochs: in the first one
sentences are encoded, in the second they are remembered. Last, the recipe
`multi30k_en_de` (tiny) trains some updates, and the share of its time that it waited is
taken from its log.
"""

import dataclasses
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config
from transformer_jax.data.batching import Buckets, Packer, batch_shapes
from transformer_jax.data.pipeline import train_batches
from transformer_jax.recipes import load_recipe
from transformer_jax.testing import log_normal_lengths, real_share
from transformer_jax.trainer.loop import train
from transformer_jax.trainer.preparation import Prepared, prepare, settle_config
from transformer_jax.trainer.reporting import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    data: Path
    """Folder with the authors' tokenised files."""
    output: Path
    """JSON file for the numbers."""
    steps: int = 200
    """Updates to train; the first half is not counted."""


def with_data(config: Config, **settings: Any) -> Config:
    """The same run with other data settings."""
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, **settings)
    )


def multi30k(prepared: Prepared, batching: str) -> dict[str, float]:
    """Real share of one epoch, and target tokens per second of two."""
    config = with_data(prepared.config, batching=batching)
    batches = train_batches(
        prepared.train_pairs, prepared.tokenizer, config, rows_multiple=8
    )
    found: dict[str, float] = {}
    for epoch, name in enumerate(("encoding", "remembered")):
        start = time.perf_counter()
        source = target = places = 0
        while batches.epoch == epoch:
            batch = next(batches)
            source += int((batch.input_segment_ids > 0).sum())
            target += int((batch.target_segment_ids > 0).sum())
            places += batch.targets.size
        seconds = time.perf_counter() - start
        found[f"target_tokens_per_second_{name}"] = round(target / seconds)
        found |= {"source_share": source / places, "target_share": target / places}
    batches.close()
    return found


def news(batching: str) -> dict[str, float]:
    """Real share with the default lengths."""
    config = with_data(Config(), batching=batching)
    shapes = batch_shapes(config, rows_multiple=8)
    sizes = log_normal_lengths(200_000, 3.18, 0.6)
    buckets = Buckets(shapes, max_wait=sizes.shape[1])
    batcher = Packer(shapes[0]) if batching == "pack" else buckets
    source, target = real_share(batcher, sizes)
    shares = {"source_share": source, "target_share": target}
    return {**shares, "mean_length": float(sizes.mean()), "shapes": len(shapes)}


def waiting(config: Config, workdir: Path, steps: int) -> dict[str, float]:
    """Of the second half of some updates."""
    settings = {"steps": steps, "log_every": steps // 2, "curves": False}
    settings |= {"evaluate_every": steps + 1, "checkpoint_every": steps + 1}
    config = with_data(config, dev_split="")
    run = dataclasses.replace(
        config, train=dataclasses.replace(config.train, **settings)
    )
    train(run, workdir)
    lines = (workdir / "log.jsonl").read_text().splitlines()
    last = [r for r in map(json.loads, lines) if r["event"] == "train"][-1]
    return {name: last[name] for name in ("waiting", "tokens_per_second", "mfu")}


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    recipe = with_data(load_recipe("multi30k_en_de"), dir=args.data)
    # With the default lengths that are as long as the recipe's.
    recipe = with_data(
        recipe, bucket_lengths=tuple(n for n in Config().data.bucket_lengths if n <= 64)
    )
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "run")
        prepared = prepare(settle_config(recipe, store, None), store)
        for batching in ("pack", "bucket"):
            result[f"multi30k, {batching}"] = multi30k(prepared, batching)
            result[f"news, {batching}"] = news(batching)
        workdir = Path(folder) / "waiting"
        result["training"] = waiting(recipe, workdir, args.steps)
    result["command"] = shlex.join(["python", *sys.argv])
    text = json.dumps(result | environment(), indent=1)
    print(text)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
