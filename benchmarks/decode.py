"""Sentences a second, side by side: ours, Hugging Face `generate`, CTranslate2.

python benchmarks/decode.py --checkpoint runs/m30k --source test.de \
    --reference test.en --output benchmarks/results/decode.json

One trained run is exported through Hugging Face Marian, so that all decode with the
same weights, and searches the same sentences, as pieces: no time goes into text. "Batch
32" is as many sentences as are searched side by side by one worker, sorted by length by
everyone. A batch of one is one call for each sentence: its time is a latency. Repeats
are interleaved, and medians are kept; loading and compiling are timed apart.

With `--device gpu` it is ours and Hugging Face, both in bfloat16: CTranslate2's wheels
need another CUDA than jax's and PyTorch's.

CTranslate2 runs with as many workers of one thread as there are cores, and with one
worker of as many threads: the faster counts. Beam search stops as each does: when as
many hypotheses as beams have ended.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from decoders import Apart, CTranslate2, Engine, HuggingFace, Ids, Ours

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.cli.lines import file_chunks
from transformer_jax.interop.library import export_run
from transformer_jax.recipes import config_from_json
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation.evaluation import evaluate_translation
from transformer_jax.translation.translator import Translator

OURS, SHORTLISTED = "transformer_jax", "transformer_jax_shortlist"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """See above."""

    checkpoint: Path
    """The trained run."""
    source: Path
    """Sentences, one a line, plain or gzip."""
    reference: Path
    """Their translations, for BLEU."""
    output: Path
    """JSON file for the numbers; it is written anew after each setting."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What all run on."""
    beams: tuple[int, ...] = (1, 5)
    """Beam sizes; 1 is greedy search."""
    batches: tuple[int, ...] = (1, 32, 128)
    """Sentences that are searched side by side."""
    sentences: int = 1000
    """The first ones are used."""
    single: int = 100
    """Those of them that are translated one by one."""
    repeats: int = 5
    """Timed rounds."""
    patience: float = math.inf
    """Seconds of timed rounds after which an engine has none more in a setting."""
    shortlist: Path | None = None
    """File of `transformer-jax shortlist`: ours is measured with it, too."""
    quick: bool = False
    """192 sentences, 20 one by one, 3 rounds or 4 seconds of them."""
    hardware: str = ""
    """What it ran on, in words."""


def engines(args: Args, folder: Path) -> dict[str, Apart]:
    """All of them, loaded."""
    tokenizer = Translator.load(args.checkpoint).tokenizer
    symbols = tokenizer.source_pieces(list(range(tokenizer.source_vocab_size)))
    export_run("marian", args.checkpoint, folder / "marian")
    dtype = "bfloat16" if args.device == "gpu" else "float32"
    where = "cuda" if args.device == "gpu" else "cpu"
    makers: dict[str, Callable[[], Engine]] = {
        OURS: partial(Ours, args.checkpoint, None, dtype),
        "hf_generate": partial(HuggingFace, folder / "marian", symbols, where, dtype),
    }
    if args.shortlist is not None:
        makers[SHORTLISTED] = partial(Ours, args.checkpoint, args.shortlist, dtype)
    if args.device == "cpu":
        makers |= ctranslate2_makers(args.checkpoint, folder, symbols)
    return {name: Apart(make) for name, make in makers.items()}


def ctranslate2_makers(
    checkpoint: Path, folder: Path, symbols: list[str]
) -> dict[str, Callable[[], Engine]]:
    """CTranslate2 in both types and both settings."""
    import ctranslate2

    export_run("ctranslate2", checkpoint, folder / "for_ctranslate2")
    converter = ctranslate2.converters.TransformersConverter
    converter(str(folder / "for_ctranslate2")).convert(str(folder / "converted"))
    cores = os.cpu_count() or 1
    return {
        f"ctranslate2_{kind}:{workers}x{threads}": partial(
            CTranslate2, folder / "converted", symbols, kind, workers, threads
        )
        for kind in ("float32", "int8")
        for workers, threads in ((cores, 1), (1, cores))
    }


def measure(
    runs: dict[str, Apart],
    sources: list[np.ndarray],
    beams: int,
    batch: int,
    score: Callable[[Ids], float | None],
    *,
    repeats: int,
    patience: float,
) -> dict[str, dict[str, Any]]:
    """Numbers of each engine in one setting; the first rounds are not counted."""
    first = {name: run.timed(sources, beams, batch) for name, run in runs.items()}
    for run in runs.values():
        run.warm_up(sources, beams, batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if sum(seconds[name]) < patience:
                seconds[name].append(run.timed(sources, beams, batch)[0])
    numbers = {}
    for name, (first_seconds, found) in first.items():
        median = statistics.median(seconds[name])
        tokens = sum(map(len, found))
        numbers[name] = {
            "sentences_per_second": round(len(sources) / median, 1),
            "target_tokens_per_second": round(tokens / median, 1),
            "milliseconds_per_sentence": round(1000 * median / len(sources), 3),
            "seconds": [round(each, 4) for each in seconds[name]],
            "first_seconds": round(first_seconds, 2),
            "bleu": score(found),
            "equal_to_ours": sum(
                a == b for a, b in zip(found, first[OURS][1], strict=True)
            ),
            "sentences": len(sources),
        }
    return numbers


def fastest(numbers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The faster setting of each CTranslate2, under the name without it."""
    best: dict[str, dict[str, Any]] = {}
    for name, each in numbers.items():
        short, _, setting = name.partition(":")
        speed = each["sentences_per_second"]
        if short not in best or speed > best[short]["sentences_per_second"]:
            best[short] = each | ({"workers_x_threads": setting} if setting else {})
    return best


def main(args: Args) -> None:
    """Measures, prints and keeps the numbers."""
    if args.quick:
        few = {"sentences": 192, "single": 20, "repeats": 3, "patience": 4.0}
        args = dataclasses.replace(args, **few)
    settle_device(args.device)
    lines = [line for chunk in file_chunks(args.source) for line in chunk.lines]
    references = [line for chunk in file_chunks(args.reference) for line in chunk.lines]
    lines, references = lines[: args.sentences], references[: args.sentences]
    with tempfile.TemporaryDirectory() as name:
        runs = engines(args, Path(name))
        about = {
            "load_seconds": {
                k: round(each.load_seconds, 2) for k, each in runs.items()
            },
            "command": shlex.join(["python", *sys.argv]),
            "hardware": args.hardware or platform.processor(),
            "cores": os.cpu_count(),
            **environment(),
            **versions(),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        for result in measure_all(args, runs, lines, references):
            text = json.dumps(result | about, indent=1) + "\n"
            args.output.write_text(text, encoding="utf-8")


def settle_device(device: str) -> None:
    """Makes jax compute there, here and in the engines' processes."""
    # So that all of them find room on an accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = device
        jax.config.update("jax_platforms", device)
    if jax.default_backend() != device:
        raise ValueError(
            f"--device is {device}, and jax computes on {jax.default_backend()}: "
            "install jax for the GPU, or leave --device out."
        )


def measure_all(
    args: Args, runs: dict[str, Apart], lines: list[str], references: list[str]
) -> Iterator[dict[str, Any]]:
    """Numbers by engine, and how many times as fast ours is: after each setting, those
    of all settings so far."""
    translator = Translator.load(args.checkpoint)
    store = CheckpointStore(args.checkpoint)
    settings = config_from_json(store.config_json(store.chosen_step(None))).evaluation
    sources = [translator.source_ids(line) for line in lines]
    result: dict[str, Any] = {"settings": {}, "ratio_to": {}}
    for beams in args.beams:
        for batch in args.batches:
            count = args.single if batch == 1 else len(sources)

            def score(found: Ids, count: int = count) -> float | None:
                texts = [translator.tokenizer.decode_target(ids) for ids in found]
                scores = evaluate_translation(
                    texts, references[:count], tokenize=settings.tokenize
                )
                result["signature"] = scores["bleu_signature"]
                return round(scores["bleu"], 2)

            often = {"repeats": args.repeats, "patience": args.patience}
            numbers = fastest(
                measure(runs, sources[:count], beams, batch, score, **often)
            )
            setting = f"beam{beams}_batch{batch}"
            result["settings"][setting] = numbers
            speed = {n: each["sentences_per_second"] for n, each in numbers.items()}
            for name in speed:
                if name != OURS:
                    ratio = round(speed[OURS] / speed[name], 2)
                    result["ratio_to"].setdefault(name, {})[setting] = ratio
            print_setting(setting, numbers)
            yield result


def print_setting(setting: str, numbers: dict[str, dict[str, Any]]) -> None:
    """One line for each engine."""
    print(setting)
    for name, each in numbers.items():
        ratio = numbers[OURS]["sentences_per_second"] / each["sentences_per_second"]
        print(
            f"  {name:20} {each['sentences_per_second']:9,.1f} sentences/s "
            f"{each['target_tokens_per_second']:10,.0f} tokens/s   BLEU "
            f"{each['bleu']:5.2f}   ours is {ratio:5.2f}x"
            f"   {each.get('workers_x_threads', '')}",
            flush=True,
        )


def versions() -> dict[str, str]:
    """Of the libraries that are compared, where they are installed."""
    found = {}
    for name in ("torch", "transformers", "ctranslate2"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
