"""Text → text: tokenize, search in batches, and give the lines back in order."""

import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from transformer_jax.search.parallel_greedy import Drafted
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.engine import (
    Decoder,
    Found,
    Sentence,
    decode_side_by_side,
)
from transformer_jax.translation.ensembles import (
    AnyModel,
    Ensemble,
    check_same_vocabulary,
)
from transformer_jax.translation.mbr import Utility, by_expected_utility
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.phrases import banned_ids, prefix_ids, prefix_width
from transformer_jax.translation.planning import plan_groups
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
    """Log-probability over the length penalty (see `SearchConfig.length_penalty`); of
    minimum Bayes risk, the expected utility."""
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


class Translator:
    """A model, its tokenizer and a way to search, as a function of lines of text.

    >>> translator = Translator.load("runs/phrasebook")  # doctest: +SKIP
    >>> translator.translate(["ich möchte ein Bier"])[0].text  # doctest: +SKIP
    'i want a beer'
    """

    def __init__(
        self,
        model: AnyModel,
        params: Params,
        tokenizer: Tokenizer,
        search: SearchConfig,
        *,
        devices: Sequence[Any] = (),
        draft: "Translator | None" = None,
    ) -> None:
        """`devices` work side by side, each with a copy of the parameters; without any,
        the search runs where the parameters are. Those of an ensemble are a tuple, one
        for each model. A `draft` is a smaller model with the same vocabulary, whose
        guesses greedy search in blocks verifies."""
        self.model: Any = model
        self.params = jax.tree.map(jnp.asarray, params)
        self.draft = draft
        whole = Drafted(self.params, draft.params) if draft else self.params
        self._copies = [jax.device_put(whole, each) for each in devices] or [whole]
        self._idle: dict[tuple[int, SearchPlan, int, int], Decoder] = {}
        self.tokenizer = tokenizer
        self.search = search
        if draft:
            check_draft(self, draft)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        step: int | None = None,
        ensemble: Sequence[str | Path] = (),
        devices: Sequence[Any] = (),
        dtype: str | None = None,
        draft: "Translator | None" = None,
    ) -> "Translator":
        """From a run: its best checkpoint if one was chosen, else the latest.

        With an `ensemble` of other runs, each by its own best or latest checkpoint, all
        translate as one: by the mean of their probabilities. They must have the first
        one's vocabulary, and may differ in size. `dtype` "bfloat16" or "float32" is
        what weights, activations and caches are held in (default: as trained); norms,
        softmax and scores are in float32 in any case.
        """
        model, params, tokenizer, search = _load_run(run, step, dtype)
        if ensemble:
            others = [_load_run(each, None, dtype) for each in ensemble]
            tokenizers = [tokenizer, *(each.tokenizer for each in others)]
            check_same_vocabulary([run, *ensemble], tokenizers)
            model = Ensemble((model, *(each.model for each in others)))
            params = (params, *(each.params for each in others))
        return cls(model, params, tokenizer, search, devices=devices, draft=draft)

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
        batch_size: int | None = None,
        progress: bool | Callable[[int], object] = False,
        first_line: int = 1,
        prefixes: Sequence[str | None] | None = None,
    ) -> list[Translation]:
        """As many translations as lines, in order.

        The longest lines come first. Each device searches as many side by side as
        `batch_tokens` source positions hold, beams counted, but at most `batch_size`,
        and a line that is done makes room for the next. Lines without words give empty
        translations; of lines longer than `max_source_tokens` only the beginning is
        translated, and a warning is logged, which numbers lines from `first_line`.
        Samples of a line depend on the seed and the line's number, not on other lines.
        `progress` shows a bar on stderr, or is called with the number of lines done.

        `prefixes` are what the translations begin with, one for each line (None or
        blank: nothing); they are part of the result, and come on top of its length.
        """
        search = search or self.search
        forced = self._forced(prefixes, len(lines), first_line)
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
                [self._cut(sources[i]) for i in places],
                prefixes=[forced[i] for i in places],
                search=search,
                numbers=[first_line + i for i in places],
                batch_tokens=batch_tokens,
                batch_size=batch_size,
            ):
                line = places[each.index]
                hypotheses = self._hypotheses(each.result)
                if search.mbr != "none":
                    hypotheses = _least_risk(hypotheses, search.mbr)[: search.n_best]
                found[line] = _translation(hypotheses, truncated=line in cut)
                update(1)
        return [each or _translation((), truncated=False) for each in found]

    def _forced(
        self, prefixes: Sequence[str | None] | None, lines: int, first_line: int
    ) -> list[tuple[int, ...]]:
        """The ids of each line's prefix."""
        if prefixes is None:
            return [()] * lines
        if len(prefixes) != lines:
            raise ValueError(
                f"There are {lines} lines and {len(prefixes)} prefixes: give one for "
                "each line, None or an empty one where a translation is free."
            )
        found, limit = [], self.model.config.num_positions
        for number, text in enumerate(prefixes, start=first_line):
            name = f"The prefix of line {number}"
            found.append(prefix_ids(text, self.tokenizer, name=name))
            if len(found[-1]) >= limit:
                raise ValueError(
                    f"{name} has {len(found[-1])} pieces, but the model knows {limit} "
                    "positions, one of them for the end: shorten it."
                )
        return found

    def source_ids(self, line: str) -> np.ndarray:
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

    def search_ids(
        self,
        sources: Sequence[np.ndarray],
        *,
        prefixes: Sequence[Sequence[int]] = (),
        search: SearchConfig | None = None,
        numbers: Sequence[int] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> Iterator[Found]:
        """Source ids as the model reads them → the n best targets of each, by its place
        in `sources`, in the order in which they are done. `prefixes` are ids that the
        targets begin with, one for each source or none at all.

        Samples are drawn by the `numbers` of the sources (default: their places).
        While those that are done are used, the devices go on with the others.
        """
        search = search or self.search
        numbers = numbers or range(len(sources))
        groups = plan_groups(
            [len(source) for source in sources],
            positions=batch_tokens // search.beams,
            longest=self.max_source_tokens,
            max_slots=batch_size,
        )
        prefixes = prefixes or [()] * len(sources)
        for group in groups:
            width = prefix_width([prefixes[index] for index in group.indices])
            plan = self._plan(group.length, search, width)
            specials = self.model.config.source_specials
            queue = deque(
                Sentence(
                    int(index),
                    sources[index],
                    self._max_target(
                        len(sources[index]) - specials, search, len(prefixes[index])
                    ),
                    tuple(prefixes[index]),
                    draw=(search.seed, numbers[index]),
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

    def _plan(self, source_length: int, search: SearchConfig, width: int) -> SearchPlan:
        """What searches of sources of up to that many tokens are compiled for, with
        prefixes of up to `width` tokens, the start token included."""
        if self.draft and search.block == 1:
            raise ValueError(
                "There is a draft, but block is 1, so that nothing is guessed: raise "
                "block (4, say), with method greedy, or leave out the draft."
            )
        nothing = make_example(("", ""), self.tokenizer, self.model.config)
        # Padding and a start token of its own are no words (Marian bans pad; so do we).
        never = {self.tokenizer.pad_id, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        tokens, sequences = banned_ids(search.ban, self.tokenizer)
        max_length = self._max_target(source_length, search, width - 1)
        return SearchPlan(
            search=dataclasses.replace(search, seed=0),  # compiled once for all seeds
            max_length=max_length,
            start_id=int(nothing["decoder_inputs"][0]),
            eos_id=self.tokenizer.eos_id,
            banned=tuple(sorted(never.union(tokens))),
            prefix_width=min(width, max_length),
            banned_sequences=sequences,
            draft=self.draft and self.draft.model,
        )

    def _max_target(self, pieces: int, search: SearchConfig, prefix: int) -> int:
        """Most target tokens, end included, for that many source pieces, and that many
        tokens that the target is made to begin with."""
        wanted = int(search.max_length_factor * pieces) + search.max_length_offset
        wanted += prefix
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
                )
            )
        return tuple(found)


class _Run(NamedTuple):
    """What a run on disk holds of a translator."""

    model: Transformer
    params: Params
    tokenizer: Tokenizer
    search: SearchConfig


def _load_run(run: str | Path, step: int | None, dtype: str | None) -> _Run:
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
    if dtype is not None:
        model_config = dataclasses.replace(model_config, dtype=dtype)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return _Run(Transformer(model_config), params, tokenizer, config.search)


def _least_risk(
    samples: tuple[Hypothesis, ...], utility: Utility
) -> tuple[Hypothesis, ...]:
    """The different ones, best first; their score is their expected utility."""
    ranked = by_expected_utility([each.text for each in samples], utility)
    return tuple(dataclasses.replace(samples[i], score=mean) for i, mean in ranked)


def _translation(hypotheses: tuple[Hypothesis, ...], *, truncated: bool) -> Translation:
    nothing = Hypothesis("", 0.0, 0.0, (), ())
    hypotheses = hypotheses or (nothing,)
    best = {
        field.name: getattr(hypotheses[0], field.name)
        for field in dataclasses.fields(Hypothesis)
    }
    return Translation(**best, hypotheses=hypotheses, truncated=truncated)


def check_draft(translator: Translator, draft: Translator) -> None:
    """Raises a ValueError unless both read and write the same ids."""

    def conventions(each: Translator) -> dict[str, list[Any]]:
        tokenizer, sizes = each.tokenizer, each.model.config
        sources = list(range(tokenizer.source_vocab_size))
        targets = list(range(tokenizer.target_vocab_size))
        nothing = make_example(("", ""), tokenizer, sizes)
        fed = [*nothing["inputs"].tolist(), *nothing["decoder_inputs"].tolist()]
        return {
            "source vocabulary": tokenizer.source_pieces(sources),
            "target vocabulary": tokenizer.target_pieces(targets),
            "numbers of words": [sizes.source_vocab_size, sizes.target_vocab_size],
            "special tokens": [*fed, tokenizer.eos_id],
        }

    expected = conventions(translator)
    for name, theirs in conventions(draft).items():
        if theirs != expected[name]:
            at = [x == y for x, y in zip(theirs, expected[name], strict=False)]
            place = [*at, False].index(False)
            raise ValueError(
                f"The {name} of the draft and of the model differ: they have "
                f"{len(theirs)} and {len(expected[name])} entries, and the first to "
                f"differ is number {place}. Train the draft with the same tokenizer."
            )
    longest, needed = (each.model.config.num_positions for each in (draft, translator))
    if longest < needed:
        raise ValueError(
            f"The draft knows {longest} positions and the model {needed}: train a "
            "draft with as many, or with sinusoidal positions."
        )


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
