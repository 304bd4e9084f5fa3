"""Text → text: tokenize, search in batches, and give the lines back in order."""

import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import SearchConfig
from transformer_jax.data.examples import make_example
from transformer_jax.data.tokenizer import Tokenizer, load_tokenizer
from transformer_jax.models.transformer import Transformer
from transformer_jax.recipes import config_from_json
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.engine import (
    Decoder,
    Found,
    Sentence,
    decode_side_by_side,
)
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.planning import plan_groups
from transformer_jax.translation.shortlist import Shortlist
from transformer_jax.types import Params

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
    ids: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    """The tokens' numbers."""
    alignment: tuple[tuple[int, int], ...] | None = dataclasses.field(
        default=None, kw_only=True
    )
    """Pairs (source word, target word), if `alignment.align` was asked for them."""


@dataclasses.dataclass(frozen=True)
class Translation(Hypothesis):
    """The best translation of a line, and the n best of them.

    A line without words has an empty translation, without tokens.
    """

    hypotheses: tuple[Hypothesis, ...]
    """The n best, best first."""
    truncated: bool = False
    """Whether the line was too long, so that only its beginning was translated."""


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
        *,
        devices: Sequence[Any] = (),
    ) -> None:
        """`devices` work side by side, each with a copy of the parameters; without any,
        the search runs where the parameters are."""
        self.model = model
        self.params = jax.tree.map(jnp.asarray, params)
        self._copies = [jax.device_put(self.params, each) for each in devices]
        self._copies = self._copies or [self.params]
        self._idle: dict[tuple[int, SearchPlan, int, int], Decoder] = {}
        self.tokenizer = tokenizer
        self.search = search

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        step: int | None = None,
        devices: Sequence[Any] = (),
    ) -> "Translator":
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
        model = Transformer(model_config)
        return cls(model, params, tokenizer, config.search, devices=devices)

    @property
    def max_source_tokens(self) -> int:
        """Longer sources, end token included, are cut."""
        return min(MAX_SOURCE_TOKENS, self.model.config.num_positions)

    @property
    def start_id(self) -> int:
        """What the decoder is fed first."""
        nothing = make_example(("", ""), self.tokenizer, self.model.config)
        return int(nothing["decoder_inputs"][0])

    def translate(
        self,
        lines: Sequence[str],
        *,
        search: SearchConfig | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
        shortlist: Shortlist | None = None,
        progress: bool | Callable[[int], object] = False,
        first_line: int = 1,
    ) -> list[Translation]:
        """As many translations as lines, in order.

        The longest lines come first. Each device searches as many side by side as
        `batch_tokens` source positions hold, beams counted, but at most `batch_size`,
        and a line that is done makes room for the next. Lines without words give empty
        translations; of lines longer than `max_source_tokens` only the beginning is
        translated, and a warning is logged, which numbers lines from `first_line`.
        With a `shortlist` each line may use only the tokens that it names for it.
        `progress` shows a bar on stderr, or is called with the number of lines done.
        """
        search = search or self.search
        sources = [self.source_ids(line) for line in lines]
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
            for each in self.search_ids(
                [self.cut(sources[i]) for i in places],
                search=search,
                batch_tokens=batch_tokens,
                batch_size=batch_size,
                shortlist=shortlist,
            ):
                line = places[each.index]
                hypotheses = self._hypotheses(each.result)
                found[line] = as_translation(hypotheses, truncated=line in cut)
                update(1)
        return [each or as_translation((), truncated=False) for each in found]

    def source_ids(self, line: str) -> np.ndarray:
        """Source ids as the model reads them; none if the line has no words."""
        example = make_example((line, ""), self.tokenizer, self.model.config)
        inputs = example["inputs"]
        words = len(inputs) - self.model.config.source_specials
        return inputs if words and line.strip() else inputs[:0]

    def cut(self, inputs: np.ndarray) -> np.ndarray:
        """The beginning of a source that is too long, with its end token."""
        limit = self.max_source_tokens
        if len(inputs) <= limit:
            return inputs
        inputs = inputs[:limit].copy()
        if self.model.config.source_eos:
            inputs[-1] = self.tokenizer.eos_id
        return inputs

    def search_ids(
        self,
        sources: Sequence[np.ndarray],
        *,
        search: SearchConfig | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
        shortlist: Shortlist | None = None,
    ) -> Iterator[Found]:
        """Source ids as the model reads them → the n best targets of each, by its place
        in `sources`, in the order in which they are done.

        While those that are done are used, the devices go on with the others.
        """
        search = search or self.search
        beams = search.beam_size if search.method == "beam" else 1
        groups = plan_groups(
            [len(source) for source in sources],
            positions=batch_tokens // beams,
            longest=self.max_source_tokens,
            max_slots=batch_size,
        )
        for group in groups:
            plan = self._plan(group.length, search)
            if shortlist is not None:
                # What is never wanted is left out of every list.
                shortlist = shortlist.without(plan.banned)
                plan = plan._replace(banned=())
            specials = self.model.config.source_specials
            queue = deque(
                Sentence(
                    int(index),
                    sources[index],
                    self._max_target(len(sources[index]) - specials, search),
                    candidates=None
                    if shortlist is None
                    else shortlist.of_sentence(sources[index], plan.eos_id),
                )
                for index in group.indices
            )
            useful = -(-len(queue) // group.slots)
            keys = [
                (device, plan, group.slots, group.length)
                for device in range(min(useful, len(self._copies)))
            ]
            decoders = [
                self._idle.pop(key, None) or self._decoder(*key) for key in keys
            ]
            yield from decode_side_by_side(decoders, queue)
            self._idle = dict(zip(keys, decoders, strict=True))

    def _decoder(
        self, device: int, plan: SearchPlan, slots: int, length: int
    ) -> Decoder:
        params = self._copies[device]
        return Decoder(self.model, params, plan, slots=slots, length=length)

    def _plan(self, source_length: int, search: SearchConfig) -> SearchPlan:
        """What searches of sources of up to that many tokens are compiled for."""
        # Padding and a start token of its own are no words (Marian bans pad; so do we).
        never = {self.tokenizer.pad_id, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        return SearchPlan(
            search=search,
            max_length=self._max_target(source_length, search),
            start_id=self.start_id,
            eos_id=self.tokenizer.eos_id,
            banned=tuple(sorted(never)),
        )

    def _max_target(self, pieces: int, search: SearchConfig) -> int:
        """Most target tokens, end included, for that many source pieces."""
        wanted = int(search.max_length_factor * pieces) + search.max_length_offset
        return min(wanted, self.model.config.num_positions)

    def _hypotheses(self, result: SearchResult) -> tuple[Hypothesis, ...]:
        """Those that were found of one sentence, best first."""
        found = []
        for rank, length in enumerate(result.lengths.tolist()):
            if not length:
                continue
            ids = result.tokens[rank, :length].tolist()
            found.append(
                Hypothesis(
                    text=self.tokenizer.decode_target(ids),
                    score=float(result.scores[rank]),
                    log_probability=float(result.log_probabilities[rank]),
                    tokens=tuple(self.tokenizer.target_pieces(ids)),
                    token_log_probabilities=tuple(
                        result.token_log_probabilities[rank, :length].tolist()
                    ),
                    ids=tuple(ids),
                )
            )
        return tuple(found)


def as_translation(
    hypotheses: tuple[Hypothesis, ...], *, truncated: bool
) -> Translation:
    """The best of the hypotheses, and all of them; without any, an empty one."""
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
