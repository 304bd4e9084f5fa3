"""The engines that `decode.py` times, each in a process of its own.

In one process they would share a copy of OpenMP, whichever came first, and with that of
another library CTranslate2 was seen to take ten times as long with two threads.
"""

import gc
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from warming import warm_up

from transformer_jax.compilation import keep_compiled_programs
from transformer_jax.config import SearchConfig
from transformer_jax.parallel import devices_side_by_side
from transformer_jax.translation.shortlist import Shortlist
from transformer_jax.translation.translator import Translator

MAX_LENGTH = 100
"""Target tokens at most, for the others; ours has its own bound."""
Ids = list[list[int]]


class Engine(Protocol):
    """What translates."""

    def __call__(self, sources: list[np.ndarray], beams: int, batch: int) -> Ids:
        """Sources, beams, batch → targets without their end, as ids of ours."""
        ...


class Apart:
    """An engine in a process of its own."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """`make` can be pickled; it makes the engine in its process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        work = context.Process(target=serve, args=(make, theirs), daemon=True)
        work.start()
        theirs.close()
        self.load_seconds: float = self.connection.recv()
        """What it took to make."""

    def timed(
        self, sources: list[np.ndarray], beams: int, batch: int
    ) -> tuple[float, Ids]:
        """Seconds, and what was found."""
        self.connection.send((False, sources, beams, batch))
        return self.connection.recv()

    def warm_up(self, sources: list[np.ndarray], beams: int, batch: int) -> None:
        """Works until all is compiled, where something is."""
        self.connection.send((True, sources, beams, batch))
        self.connection.recv()


def serve(make: Callable[[], Engine], connection: Connection) -> None:
    """Makes an engine, and does what is asked of it until nobody is there to ask."""
    start = time.perf_counter()
    engine = make()
    connection.send(time.perf_counter() - start)
    while True:
        try:
            before_timing, *work = connection.recv()
        except EOFError:
            return
        if before_timing:
            if isinstance(engine, Ours):
                warm_up(lambda work=work: engine(*work))
            connection.send(None)
            continue
        gc.collect()
        start = time.perf_counter()
        found = engine(*work)
        connection.send((time.perf_counter() - start, found))


class Ours:
    """Our engine, on as many devices as it likes."""

    def __init__(
        self,
        checkpoint: Path,
        shortlist: Path | None = None,
        dtype: str | None = None,
    ) -> None:
        devices = devices_side_by_side()
        keep_compiled_programs()
        self.shortlist = Shortlist.load(shortlist) if shortlist else None
        self.many = Translator.load(checkpoint, devices=devices, dtype=dtype)
        self.one = Translator.load(checkpoint, dtype=dtype)

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

    def __init__(
        self,
        folder: Path,
        symbols: list[str],
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        import torch
        import transformers

        self.torch, self.device = torch, device
        torch.set_num_threads(os.cpu_count() or 1)
        library: Any = transformers.MarianMTModel
        model = library.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.eval().to(device)
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
            ids = self.torch.from_numpy(ids).to(self.device)
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
