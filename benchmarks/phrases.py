"""Beam search with required phrases against beam search without: speed, BLEU.

python benchmarks/phrases.py --checkpoint runs/m30k --source test.en \
    --reference test.de --output benchmarks/results/phrases.json

Of each sentence's reference, phrases of one or two words are drawn that its translation
must hold, and that do not overlap; a short reference gives fewer. "Batch 32" is as many
sentences side by side on each device, refilled as they are done. Repeats are
interleaved, and medians are kept; rounds before, which compile, are not counted. All
phrases should be met. BLEU should rise with them, as they tell of the reference; where
it falls, phrases came where they do not belong.
"""

import dataclasses
import functools
import gc
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from warming import warm_up

from transformer_jax.cli.lines import file_chunks
from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import SearchConfig
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.parallel import devices_side_by_side
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation.evaluation import evaluate_translation
from transformer_jax.translation.hypotheses import Translation
from transformer_jax.translation.translator import Translator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    checkpoint: Path
    """The trained run."""
    source: Path
    """Sentences, one a line, plain or gzip."""
    reference: Path
    """Their translations, from which phrases are drawn."""
    output: Path
    """JSON file for the numbers."""
    phrases: tuple[int, ...] = (1, 2, 4)
    """Phrases of each sentence, one setting after the other; none is always there."""
    beams: tuple[int, ...] = (5,)
    """Beam sizes."""
    batch: int = 32
    """Sentences side by side on a device."""
    sentences: int = 1000
    """The first ones are used."""
    repeats: int = 5
    """Timed rounds."""
    tokenize: str = "13a"
    """sacreBLEU's tokenizer; none for text that is tokenised already."""
    seed: int = 1
    """Of the draw of phrases."""
    devices: int | None = None
    """Devices that work side by side. Default: all; of a CPU, one for each core,
    up to eight."""
    hardware: str = ""
    """What it ran on, in words."""


def drawn(reference: str, count: int, tokenizer: Tokenizer, seed: str) -> list[str]:
    """Up to `count` different phrases of the reference that the tokenizer can write."""
    draw, words = random.Random(seed), reference.split()
    free, found = set(range(len(words))), []
    places = [(start, size) for start in range(len(words)) for size in (1, 2)]
    draw.shuffle(places)
    for start, size in places:
        taken = range(start, start + size)
        text = " ".join(words[start : start + size])
        new = text not in found and free.issuperset(taken)
        known = tokenizer.unk_id not in tokenizer.encode_target(text)
        if len(found) < count and new and known:
            free.difference_update(taken)
            found.append(text)
    return found


def measure(
    translator: Translator, lines: list[str], references: list[str], args: Args
) -> dict[str, dict[str, Any]]:
    """Numbers of each setting."""
    asked = {
        count: [
            drawn(text, count, translator.tokenizer, f"{args.seed} {number}")
            for number, text in enumerate(references)
        ]
        for count in (0, *args.phrases)
    }
    settings = [(beams, count) for beams in args.beams for count in asked]
    seconds: dict[tuple[int, int], list[float]] = {each: [] for each in settings}
    found: dict[tuple[int, int], list[Translation]] = {}

    def translate(beams: int, count: int) -> None:
        found[beams, count] = translator.translate(
            lines,
            search=SearchConfig(beam_size=beams),
            batch_size=args.batch,
            batch_tokens=1 << 20,
            phrases=asked[count],
        )

    for each in settings:
        warm_up(functools.partial(translate, *each))
    for _ in range(args.repeats):
        for each in settings:
            gc.collect()
            start = time.perf_counter()
            translate(*each)
            seconds[each].append(time.perf_counter() - start)
    numbers = {}
    for beams, count in settings:
        plain = statistics.median(seconds[beams, 0])
        median = statistics.median(seconds[beams, count])
        texts = [each.text for each in found[beams, count]]
        scores = evaluate_translation(
            texts, references, tokenize=args.tokenize, metrics=("bleu",)
        )
        numbers[f"beam{beams}_phrases{count}"] = {
            "sentences_per_second": round(len(lines) / median, 2),
            "times_as_slow": round(median / plain, 3),
            "seconds": [round(second, 4) for second in seconds[beams, count]],
            "phrases": sum(map(len, asked[count])),
            "missing": sum(len(each.missing) for each in found[beams, count]),
            "tokens": sum(len(each.tokens) for each in found[beams, count]),
            **scores,
        }
    return numbers


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    devices = devices_side_by_side(args.devices)
    keep_compiled_programs()
    translator = Translator.load(args.checkpoint, devices=devices)
    lines, references = (
        [line for chunk in file_chunks(path) for line in chunk.lines][: args.sentences]
        for path in (args.source, args.reference)
    )
    numbers = measure(translator, lines, references, args)
    for name, each in numbers.items():
        print(
            f"{name:16} {each['sentences_per_second']:8,.1f} sentences/s   "
            f"{each['times_as_slow']:5.2f} times as slow   {each['missing']} of "
            f"{each['phrases']} phrases missing   BLEU {each['bleu']:.2f}   "
            f"{each['tokens']} tokens",
            flush=True,
        )
    result = {
        "settings": numbers,
        "sentences": len(lines),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": args.hardware or platform.processor(),
        "cores": os.cpu_count(),
        **environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
