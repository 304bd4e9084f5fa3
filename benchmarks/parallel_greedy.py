"""Greedy search in blocks against plain greedy search: passes, speed, equality.

python benchmarks/parallel_greedy.py --checkpoint runs/m30k --source test.de \
    --output benchmarks/results/parallel_greedy.json

"jacobi4" reads blocks of four tokens, whose guesses come from the pass before;
"draft4" has them from the run given as --draft. Tokens per pass are those of a sentence
over the passes that it was in; plain greedy search has 1. "Batch 32" is as many
sentences side by side on each device, refilled as they are done. A batch of one is one
call for each sentence: its time is a latency. Repeats are interleaved, and medians are
kept; rounds before, which compile, are not counted.

A sentence whose tokens differ from those of plain greedy search is looked at: somewhere
two logits must have been so close (--tolerance) that rounding decided. The number of
sentences that differ without such a near tie should be 0.
"""

import dataclasses
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from warming import warm_up

from transformer_jax.cli.lines import file_chunks
from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import SearchConfig
from transformer_jax.parallel import devices_side_by_side
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation.sentences import Found
from transformer_jax.translation.translator import Translator

PLAIN = "greedy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    checkpoint: Path
    """The trained run."""
    source: Path
    """Sentences, one a line, plain or gzip."""
    output: Path
    """JSON file for the numbers."""
    draft: Path | None = None
    """Run of a smaller model with the same vocabulary; without it, it is left out."""
    blocks: tuple[int, ...] = (2, 4, 8)
    """Tokens read at once."""
    batches: tuple[int, ...] = (1, 32)
    """Sentences side by side on a device."""
    sentences: int = 1000
    """The first ones are used."""
    single: int = 100
    """Those of them that are translated one by one."""
    repeats: int = 5
    """Timed rounds."""
    tolerance: float = 1e-3
    """A gap between logits below this is a near tie."""
    hardware: str = ""
    """What it ran on, in words."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to search, on one device and on all."""

    search: SearchConfig
    one: Translator
    many: Translator

    def __call__(self, sources: list[np.ndarray], batch: int) -> list[Found]:
        """All sentences in one call, or one after the other."""
        calls = [sources] if batch > 1 else [[source] for source in sources]
        translator = self.many if batch > 1 else self.one
        found = []
        for call in calls:
            results = translator.search_ids(
                call, search=self.search, batch_size=batch, batch_tokens=1 << 20
            )
            found += sorted(results, key=lambda each: each.index)
        return found


def ways(args: Args) -> dict[str, Way]:
    """Plain greedy search first."""
    devices = devices_side_by_side()
    plain = SearchConfig(method="greedy")

    def load(draft: Translator | None) -> tuple[Translator, Translator]:
        return (
            Translator.load(args.checkpoint, draft=draft),
            Translator.load(args.checkpoint, devices=devices, draft=draft),
        )

    alone = load(None)
    made = {PLAIN: Way(plain, *alone)}
    kinds = {"jacobi": alone}
    if args.draft:
        kinds["draft"] = load(Translator.load(args.draft))
    for kind, translators in kinds.items():
        for block in args.blocks:
            search = dataclasses.replace(plain, block=block)
            made[f"{kind}{block}"] = Way(search, *translators)
    return made


def timed(way: Way, sources: list[np.ndarray], batch: int) -> tuple[float, list[Found]]:
    """Seconds, and what was found."""
    gc.collect()
    start = time.perf_counter()
    found = way(sources, batch)
    return time.perf_counter() - start, found


def measure(
    made: dict[str, Way], sources: list[np.ndarray], batch: int, args: Args
) -> dict[str, dict[str, Any]]:
    """Numbers of each way at one batch size, when all is compiled."""
    found = {name: timed(way, sources, batch)[1] for name, way in made.items()}
    for way in made.values():
        warm_up(lambda way=way: way(sources, batch))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.repeats):
        for name, way in made.items():
            seconds[name].append(timed(way, sources, batch)[0])
    numbers = {}
    for name, each in found.items():
        median = statistics.median(seconds[name])
        numbers[name] = {
            "sentences_per_second": round(len(sources) / median, 2),
            "milliseconds_per_sentence": round(1000 * median / len(sources), 3),
            "seconds": [round(second, 4) for second in seconds[name]],
            **compared(each, found[PLAIN], args.tolerance),
        }
    fastest = numbers[PLAIN]["sentences_per_second"]
    for each in numbers.values():
        each["times_as_fast"] = round(each["sentences_per_second"] / fastest, 3)
    return numbers


def compared(
    found: list[Found], plain: list[Found], tolerance: float
) -> dict[str, float]:
    """Tokens per pass, and how many sentences are as in plain greedy search."""
    tokens = sum(int(each.result.lengths[0]) for each in found)
    passes = sum(
        int(each.effort.passes if each.effort else each.result.lengths[0])
        for each in found
    )
    unequal = [
        one
        for one, other in zip(found, plain, strict=True)
        if not np.array_equal(one.result.tokens, other.result.tokens)
    ]
    near = [each for each in unequal if near_tie(each, tolerance)]
    return {
        "sentences": len(found),
        "tokens_per_pass": round(tokens / passes, 3),
        "equal_to_greedy": len(found) - len(unequal),
        "unequal_with_near_tie": len(near),
        "unequal_without_near_tie": len(unequal) - len(near),
        "with_near_tie": sum(near_tie(each, tolerance) for each in found),
    }


def near_tie(found: Found, tolerance: float) -> bool:
    """Whether rounding may have decided somewhere; plain greedy search does not say."""
    return found.effort is not None and bool(found.effort.smallest_gap < tolerance)


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    made = ways(args)
    keep_compiled_programs()
    lines = [line for chunk in file_chunks(args.source) for line in chunk.lines]
    translator = made[PLAIN].one
    sources = [translator.source_ids(line) for line in lines[: args.sentences]]
    result: dict[str, Any] = {"settings": {}, "tolerance": args.tolerance}
    for batch in args.batches:
        used = sources[: args.single] if batch == 1 else sources
        numbers = measure(made, used, batch, args)
        result["settings"][f"batch{batch}"] = numbers
        print_setting(f"batch {batch}", numbers)
    result |= {
        "command": shlex.join(["python", *sys.argv]),
        "hardware": args.hardware or platform.processor(),
        "cores": os.cpu_count(),
        **environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def print_setting(setting: str, numbers: dict[str, dict[str, Any]]) -> None:
    """One line for each way."""
    print(setting)
    for name, each in numbers.items():
        print(
            f"  {name:10} {each['sentences_per_second']:9,.1f} sentences/s   "
            f"{each['times_as_fast']:5.2f}x   {each['tokens_per_pass']:5.2f} tokens a "
            f"pass   {each['equal_to_greedy']} of {each['sentences']} equal, "
            f"{each['unequal_with_near_tie']} near ties, "
            f"{each['unequal_without_near_tie']} others",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
