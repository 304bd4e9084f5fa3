"""Sentences a second, side by side: ours, Hugging Face `generate`, CTranslate2.

python benchmarks/decode.py --checkpoint runs/m30k --source test.de \
    --reference test.en --output benchmarks/results/decode.json

One trained run is exported through Hugging Face Marian, so that all decode with the
same weights, and searches the same sentences, as pieces: no time goes into text. "Batch
32" is as many sentences as are searched side by side by one worker, sorted by length by
everyone. A batch of one is one call for each sentence: its time is a latency. Repeats
are interleaved, and medians are kept; loading and compiling are timed apart.

CTranslate2 runs with as many workers of one thread as there are cores, and with one
worker of as many threads: the faster counts. Beam search stops as each does: when as
many hypotheses as beams have ended.
"""

import dataclasses
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from warming import warm_up

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.cli.lines import file_chunks
from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import SearchConfig
from transformer_jax.interop.library import export_run
from transformer_jax.parallel import devices_side_by_side
from transformer_jax.recipes import config_from_json
from transformer_jax.trainer.reporting import environment
from transformer_jax.translation.evaluation import evaluate_translation
from transformer_jax.translation.shortlist import Shortlist
from transformer_jax.translation.translator import Translator

MAX_LENGTH = 100
"""Target tokens at most, for the others; ours has its own bound."""
OURS, SHORTLISTED = "transformer_jax", "transformer_jax_shortlist"
Ids = list[list[int]]
Run = Callable[[list[np.ndarray], int, int], Ids]
"""Sources, beams, batch → targets without their end, as ids of ours."""


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
    sentences: int = 1000
    """The first ones are used."""
    single: int = 100
    """Those of them that are translated one by one."""
    repeats: int = 5
    """Timed rounds."""
    shortlist: Path | None = None
    """File of `transformer-jax shortlist`: ours is measured with it, too."""
    quick: bool = False
    """240 sentences, 30 one by one, 3 rounds; most of its time is compiling."""
    hardware: str = ""
    """What it ran on, in words."""


class Ours:
    """Our engine, on as many devices as it likes."""

    def __init__(self, checkpoint: Path, shortlist: Shortlist | None = None) -> None:
        devices = devices_side_by_side()
        self.shortlist = shortlist
        self.many = Translator.load(checkpoint, devices=devices)
        self.one = Translator.load(checkpoint)

    def __call__(self, sources: list[np.ndarray], beams: int, batch: int) -> Ids:
        """All sentences in one call, or one after the other."""
        greedy = SearchConfig(method="greedy")
        search = SearchConfig(beam_size=beams) if beams > 1 else greedy
        found: dict[int, list[int]] = {}
        calls = [sources] if batch > 1 else [[source] for source in sources]
        translator = self.many if batch > 1 else self.one
        for first, call in enumerate(calls):
            results = translator.search_ids(
                call,
                search=search,
                batch_size=batch,
                batch_tokens=1 << 20,
                shortlist=self.shortlist,
                scores=False,  # the others too give none unless asked
            )
            for each in results:
                length = int(each.result.lengths[0]) - 1
                ids = each.result.tokens[0, :length].tolist()
                found[first + each.index] = ids
        return [found[i] for i in range(len(sources))]


class HuggingFace:
    """`MarianMTModel.generate` on batches sorted by length."""

    def __init__(self, folder: Path, symbols: list[str]) -> None:
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(os.cpu_count() or 1)
        library: Any = transformers.MarianMTModel
        self.model = library.from_pretrained(folder).eval()
        theirs = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self.theirs = np.array([theirs.get(symbol, 0) for symbol in symbols])
        self.ours = {theirs[s]: i for i, s in enumerate(symbols) if s in theirs}

    def __call__(self, sources: list[np.ndarray], beams: int, batch: int) -> Ids:
        """Batches of that size."""
        config = self.model.config
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = len(sources[rows[0]])
            ids = np.full((len(rows), width), config.pad_token_id)
            for row, index in enumerate(rows):
                ids[row, : len(sources[index])] = self.theirs[sources[index]]
            ids = self.torch.from_numpy(ids)
            with self.torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=(ids != config.pad_token_id).long(),
                    num_beams=beams,
                    early_stopping=beams > 1,
                    do_sample=False,
                    max_length=MAX_LENGTH,
                )
            stop = {config.pad_token_id, config.eos_token_id}
            for row, index in enumerate(rows):
                tokens = [t for t in out[row, 1:].tolist() if t not in stop]
                found[index] = [self.ours[token] for token in tokens]
        return [found[i] for i in range(len(sources))]


class CTranslate2:
    """Its translator, with a number of workers and of threads for each."""

    def __init__(
        self, folder: Path, symbols: list[str], kind: str, workers: int, threads: int
    ) -> None:
        import ctranslate2

        self.translator = ctranslate2.Translator(
            str(folder), compute_type=kind, inter_threads=workers, intra_threads=threads
        )
        self.symbols = symbols
        self.ids = {symbol: i for i, symbol in enumerate(symbols)}

    def __call__(self, sources: list[np.ndarray], beams: int, batch: int) -> Ids:
        """All sentences in one call, or one after the other."""
        pieces = [[self.symbols[i] for i in source.tolist()] for source in sources]
        calls = [pieces] if batch > 1 else [[each] for each in pieces]
        found = []
        for call in calls:
            found += self.translator.translate_batch(
                call,
                beam_size=beams,
                max_batch_size=batch,
                max_decoding_length=MAX_LENGTH,
                min_decoding_length=0,
            )
        return [[self.ids[s] for s in each.hypotheses[0]] for each in found]


def engines(
    checkpoint: Path, folder: Path, shortlist: Path | None
) -> tuple[dict[str, Run], dict[str, float]]:
    """All of them, and the seconds that each took to load."""
    import ctranslate2

    tokenizer = Translator.load(checkpoint).tokenizer
    symbols = tokenizer.source_pieces(list(range(tokenizer.source_vocab_size)))
    export_run("marian", checkpoint, folder / "marian")
    export_run("ctranslate2", checkpoint, folder / "for_ctranslate2")
    converter = ctranslate2.converters.TransformersConverter
    converter(str(folder / "for_ctranslate2")).convert(str(folder / "converted"))
    cores = os.cpu_count() or 1
    makers: dict[str, Callable[[], Run]] = {
        OURS: lambda: Ours(checkpoint),
        "hf_generate": lambda: HuggingFace(folder / "marian", symbols),
    }
    if shortlist is not None:
        makers[SHORTLISTED] = lambda: Ours(checkpoint, Shortlist.load(shortlist))
    for kind in ("float32", "int8"):
        for workers, threads in ((cores, 1), (1, cores)):
            name = f"ctranslate2_{kind}:{workers}x{threads}"
            makers[name] = lambda k=kind, w=workers, t=threads: CTranslate2(
                folder / "converted", symbols, k, w, t
            )
    loaded, seconds = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        loaded[name] = make()
        seconds[name] = round(time.perf_counter() - start, 2)
    return loaded, seconds


def timed(run: Run, sources: list[np.ndarray], beams: int, batch: int):
    """Seconds, and what was found."""
    gc.collect()
    start = time.perf_counter()
    found = run(sources, beams, batch)
    return time.perf_counter() - start, found


def measure(
    runs: dict[str, Run],
    sources: list[np.ndarray],
    beams: int,
    batch: int,
    repeats: int,
    score: Callable[[Ids], float | None],
) -> dict[str, dict[str, Any]]:
    """Numbers of each engine in one setting; the first rounds are not counted."""
    first = {name: timed(run, sources, beams, batch) for name, run in runs.items()}
    for name in (OURS, SHORTLISTED):
        if name in runs:
            warm_up(lambda run=runs[name]: run(sources, beams, batch))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, sources, beams, batch)[0])
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
        args = dataclasses.replace(args, sentences=240, single=30, repeats=3)
    # Before anything is computed: it decides how many devices a CPU is.
    devices_side_by_side()
    keep_compiled_programs()
    lines = [line for chunk in file_chunks(args.source) for line in chunk.lines]
    references = [line for chunk in file_chunks(args.reference) for line in chunk.lines]
    lines, references = lines[: args.sentences], references[: args.sentences]
    with tempfile.TemporaryDirectory() as name:
        runs, load_seconds = engines(args.checkpoint, Path(name), args.shortlist)
        about = {
            "load_seconds": load_seconds,
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


def measure_all(
    args: Args, runs: dict[str, Run], lines: list[str], references: list[str]
) -> Iterator[dict[str, Any]]:
    """Numbers by engine, and how many times as fast ours is: after each setting, those
    of all settings so far."""
    ours = runs[OURS]
    assert isinstance(ours, Ours)
    translator = ours.one
    store = CheckpointStore(args.checkpoint)
    settings = config_from_json(store.config_json(store.chosen_step(None))).evaluation
    sources = [translator.source_ids(line) for line in lines]
    result: dict[str, Any] = {"settings": {}, "ratio_to": {}}
    for beams in (1, 5):
        for batch in (1, 32, 128):
            count = args.single if batch == 1 else len(sources)

            def score(found: Ids, count: int = count) -> float | None:
                texts = [translator.tokenizer.decode_target(ids) for ids in found]
                scores = evaluate_translation(
                    texts, references[:count], tokenize=settings.tokenize
                )
                result["signature"] = scores["bleu_signature"]
                return round(scores["bleu"], 2)

            numbers = fastest(
                measure(runs, sources[:count], beams, batch, args.repeats, score)
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
    """Of the libraries that are compared."""
    import ctranslate2
    import torch
    import transformers

    modules = {"torch": torch, "transformers": transformers, "ctranslate2": ctranslate2}
    return {name: module.__version__ for name, module in modules.items()}


if __name__ == "__main__":
    main(tyro.cli(Args))
