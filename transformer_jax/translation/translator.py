"""Text → text: tokenize, search in batches, and give the lines back in order."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import SearchConfig
from transformer_jax.data.batching import stack_rows
from transformer_jax.data.examples import Example, make_example
from transformer_jax.data.tokenizer import Tokenizer, load_tokenizer
from transformer_jax.models.cache import init_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.models.transformer import Transformer
from transformer_jax.recipes import config_from_json
from transformer_jax.search.beam import beam_search
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.greedy import greedy_search
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.planning import SourceBatch, plan_batches
from transformer_jax.types import Array, Params

MAX_SOURCE_TOKENS = 1024
"""Longer sources, end token included, are cut to this length."""
BATCH_TOKENS = 4096
"""Source positions decoded together, padding and beams counted."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence."""

    text: str
    score: float
    """Log-probability over the length penalty (see `SearchConfig.length_penalty`)."""
    log_probability: float
    """Of the whole translation, end token included, in nats."""
    tokens: tuple[str, ...]
    """Pieces, end token included."""
    token_log_probabilities: tuple[float, ...]
    """Of each token, given those before it."""


@dataclasses.dataclass(frozen=True)
class Translation(Hypothesis):
    """The best translation of a line, and the n best of them.

    A line without words has an empty translation, without tokens.
    """

    hypotheses: tuple[Hypothesis, ...]
    """The n best, best first."""
    truncated: bool = False
    """Whether the line was too long, so that only its beginning was translated."""


class SearchPlan(NamedTuple):
    """What a compiled search is made for, apart from array shapes."""

    search: SearchConfig
    max_length: int
    start_id: int
    eos_id: int
    banned: tuple[int, ...]


class Translator:
    """A model, its tokenizer and a way to search, as a function of lines of text.

    >>> translator = Translator.load("runs/phrasebook")  # doctest: +SKIP
    >>> translator.translate(["ich möchte ein Bier"])[0].text  # doctest: +SKIP
    'i want a beer'
    """

    def __init__(
        self,
        model: Transformer,
        params: Params,
        tokenizer: Tokenizer,
        search: SearchConfig,
    ) -> None:
        self.model = model
        self.params = jax.tree.map(jnp.asarray, params)
        self.tokenizer = tokenizer
        self.search = search

    @classmethod
    def load(cls, run: str | Path, *, step: int | None = None) -> "Translator":
        """From a run: its best checkpoint if one was chosen, else the latest."""
        store = CheckpointStore(Path(run))
        step = store.chosen_step(step)
        config = config_from_json(store.config_json(step))
        tokenizer = load_tokenizer(store.tokenizer_files(step))
        sizes = config.model
        model_config = dataclasses.replace(
            sizes,
            source_vocab_size=sizes.source_vocab_size or tokenizer.source_vocab_size,
            target_vocab_size=sizes.target_vocab_size or tokenizer.target_vocab_size,
        )
        params = store.restore_params(step=step)
        return cls(Transformer(model_config), params, tokenizer, config.search)

    @property
    def max_source_tokens(self) -> int:
        """Longer sources, end token included, are cut."""
        return min(MAX_SOURCE_TOKENS, self.model.config.num_positions)

    def translate(
        self,
        lines: Sequence[str],
        *,
        search: SearchConfig | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool | Callable[[int], object] = False,
        first_line: int = 1,
    ) -> list[Translation]:
        """As many translations as lines, in order.

        Lines are sorted by length and searched in batches of up to `batch_tokens`
        source positions, beams counted. Lines without words give empty translations;
        of lines longer than `max_source_tokens` only the beginning is translated, and
        a warning is logged, which numbers lines from `first_line`. `progress` shows a
        bar on stderr, or is called with the number of lines just done.
        """
        search = search or self.search
        sources = [self._encode(line) for line in lines]
        limit = self.max_source_tokens
        long = [i for i, source in enumerate(sources) if len(source) > limit]
        if long:
            logger.warning(
                "%d of %d lines have more than %d tokens: only their beginning is "
                "translated. The first is line %d.",
                len(long),
                len(lines),
                limit,
                first_line + long[0],
            )
        found: list[Translation | None] = [None] * len(lines)
        cut = set(long)
        places = [i for i, source in enumerate(sources) if len(source)]
        with _updating(progress, len(lines)) as update:
            update(len(lines) - len(places))
            for index, hypotheses in self._search_all(
                [self._cut(sources[i]) for i in places], search, batch_tokens, update
            ):
                line = places[index]
                found[line] = _translation(hypotheses, truncated=line in cut)
        return [each or _translation((), truncated=False) for each in found]

    def _encode(self, line: str) -> np.ndarray:
        """Source ids as the model reads them; none if the line has no words."""
        example = make_example((line, ""), self.tokenizer, self.model.config)
        inputs = example["inputs"]
        words = len(inputs) - self.model.config.source_specials
        return inputs if words and line.strip() else inputs[:0]

    def _cut(self, inputs: np.ndarray) -> np.ndarray:
        """The beginning of a source that is too long, with its end token."""
        limit = self.max_source_tokens
        if len(inputs) <= limit:
            return inputs
        inputs = inputs[:limit].copy()
        if self.model.config.source_eos:
            inputs[-1] = self.tokenizer.eos_id
        return inputs

    def _search_all(
        self,
        sources: list[np.ndarray],
        search: SearchConfig,
        batch_tokens: int,
        update: Callable[[int], object],
    ) -> Iterator[tuple[int, tuple[Hypothesis, ...]]]:
        """(place in `sources`, hypotheses) in any order.

        While one batch is searched on the device, the one before becomes text.
        """
        beams = search.beam_size if search.method == "beam" else 1
        batches = plan_batches(
            [len(source) for source in sources],
            positions=batch_tokens // beams,
            longest=self.max_source_tokens,
        )
        running: tuple[SourceBatch, SearchResult] | None = None
        for batch in (*batches, None):
            started = None
            if batch is not None:
                started = (batch, self._start(sources, batch, search))
            if running is not None:
                yield from self._read(*running)
                update(len(running[0].indices))
            running = started

    def _start(
        self, sources: list[np.ndarray], batch: SourceBatch, search: SearchConfig
    ) -> SearchResult:
        """Starts the search of one batch; the result may still be on its way."""
        nothing = make_example(("", ""), self.tokenizer, self.model.config)
        rows = [[Example(**{**nothing, "inputs": sources[i]})] for i in batch.indices]
        shape = (batch.rows, batch.length, 1)
        padded = stack_rows(rows, shape, self.tokenizer.pad_id)
        max_lengths = np.zeros(batch.rows, np.int32)  # 0: rows that only fill up
        for row, index in enumerate(batch.indices):
            words = len(sources[index]) - self.model.config.source_specials
            max_lengths[row] = self._max_target(words, search)
        # Padding and a start token of its own are no words (Marian bans pad; so do we).
        never = {self.tokenizer.pad_id, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        plan = SearchPlan(
            search=search,
            max_length=self._max_target(batch.length, search),
            start_id=int(nothing["decoder_inputs"][0]),
            eos_id=self.tokenizer.eos_id,
            banned=tuple(sorted(never)),
        )
        return search_batch(
            self.params,
            padded.inputs,
            padded.input_segment_ids,
            max_lengths,
            model=self.model,
            plan=plan,
        )

    def _max_target(self, pieces: int, search: SearchConfig) -> int:
        """Most target tokens, end included, for that many source pieces."""
        wanted = int(search.max_length_factor * pieces) + search.max_length_offset
        return min(wanted, self.model.config.num_positions)

    def _read(
        self, batch: SourceBatch, result: SearchResult
    ) -> Iterator[tuple[int, tuple[Hypothesis, ...]]]:
        result = jax.device_get(result)
        for row, index in enumerate(batch.indices):
            ranks = range(result.lengths.shape[1])
            hypotheses = (self._hypothesis(result, row, rank) for rank in ranks)
            yield int(index), tuple(each for each in hypotheses if each.tokens)

    def _hypothesis(self, result: SearchResult, row: int, rank: int) -> Hypothesis:
        length = int(result.lengths[row, rank])
        ids = result.tokens[row, rank, :length].tolist()
        return Hypothesis(
            text=self.tokenizer.decode_target(ids),
            score=float(result.scores[row, rank]),
            log_probability=float(result.log_probabilities[row, rank]),
            tokens=tuple(self.tokenizer.target_pieces(ids)),
            token_log_probabilities=tuple(
                result.token_log_probabilities[row, rank, :length].tolist()
            ),
        )


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def search_batch(
    params: Params,
    inputs: Array,
    segment_ids: Array,
    max_lengths: Array,
    *,
    model: Transformer,
    plan: SearchPlan,
) -> SearchResult:
    """Encode B sentences, one a row of inputs, segment ids [B, S], and search.

    Compiled once for each shape and plan, in all translators of a process.
    """
    search, rows = plan.search, inputs.shape[0]
    step_fn = make_step_fn(model, params)
    memory = encode_memory(model, params, inputs, segment_ids)
    prefix = jnp.full((rows, 1), plan.start_id, jnp.int32)
    beams = search.beam_size if search.method == "beam" else 1
    cache = init_cache(model.config, rows, plan.max_length, beams=beams)
    constraints = (banned_tokens(plan.banned),) if plan.banned else ()
    if search.method == "greedy":
        return greedy_search(
            step_fn,
            cache,
            memory,
            prefix=prefix,
            max_length=plan.max_length,
            eos_id=plan.eos_id,
            max_lengths=max_lengths,
            length_penalty=search.length_penalty,
            alpha=search.alpha,
            constraints=constraints,
        )
    return beam_search(
        step_fn,
        cache,
        memory,
        prefix=prefix,
        beam_size=beams,
        max_length=plan.max_length,
        eos_id=plan.eos_id,
        length_penalty=search.length_penalty,
        alpha=search.alpha,
        n_best=search.n_best,
        max_lengths=max_lengths,
        constraints=constraints,
    )


def _translation(hypotheses: tuple[Hypothesis, ...], *, truncated: bool) -> Translation:
    nothing = Hypothesis("", 0.0, 0.0, (), ())
    hypotheses = hypotheses or (nothing,)
    best = {
        field.name: getattr(hypotheses[0], field.name)
        for field in dataclasses.fields(Hypothesis)
    }
    return Translation(**best, hypotheses=hypotheses, truncated=truncated)


@contextlib.contextmanager
def _updating(
    progress: bool | Callable[[int], object], total: int
) -> Iterator[Callable[[int], object]]:
    """`with … as update`: the caller's function, or that of a bar, shown or not."""
    if callable(progress):
        yield progress
        return
    with tqdm.tqdm(total=total, unit=" lines", disable=not progress) as bar:
        yield bar.update
