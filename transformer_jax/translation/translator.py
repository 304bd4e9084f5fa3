"""Text → text: tokenize, search in batches, and give the lines back in order."""

import dataclasses
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import SearchConfig
from transformer_jax.data.examples import make_example
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.search.parallel_greedy import Drafted
from transformer_jax.translation.engine import Decoder
from transformer_jax.translation.ensembles import AnyModel
from transformer_jax.translation.hypotheses import (
    Translation,
    as_translation,
    translation_of,
    warn_of_missing,
)
from transformer_jax.translation.loading import check_draft, load_runs
from transformer_jax.translation.methods import SearchPlan, check_shortlist
from transformer_jax.translation.offers import WholeOffers
from transformer_jax.translation.phrases import (
    asked_of_lines,
    banned_ids,
    checked_shape,
    prefix_width,
)
from transformer_jax.translation.planning import (
    Group,
    are_many,
    most_slots,
    next_power_of_four,
    plan_groups,
    slots_wanted,
)
from transformer_jax.translation.progress import updating
from transformer_jax.translation.sentences import Found, Sentence
from transformer_jax.translation.shortlist import Shortlist
from transformer_jax.translation.side_by_side import side_by_side
from transformer_jax.translation.task import Task
from transformer_jax.types import Params

MAX_SOURCE_TOKENS = 1024
"""Longer sources, end token included, are cut to this length."""
BATCH_TOKENS = 4096
"""Source positions decoded together, padding and beams counted."""

logger = logging.getLogger(__name__)


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
        """`devices` work side by side, each with the parameters; without any, the
        search runs where the parameters are. Those of an ensemble are a tuple, one for
        each model. A `draft` is a smaller model with the same vocabulary, whose
        guesses greedy search in blocks verifies."""
        self.model: Any = model
        self.params = jax.tree.map(jnp.asarray, params)
        self.draft = draft
        whole = Drafted(self.params, draft.params) if draft else self.params
        self._copies = [jax.device_put(whole, each) for each in devices] or [whole]
        (device, *_) = jax.tree.leaves(self._copies[0])[0].devices()
        self._platform = device.platform
        """Where it searches: "cpu", say."""
        self._whole_offers = WholeOffers(model, self._copies[0], self._platform)
        self._idle: dict[int, Decoder] = {}
        self.tokenizer = tokenizer
        self.search = search
        if draft:
            check_draft(self.model, self.tokenizer, draft.model, draft.tokenizer)

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
        loaded = load_runs([run, *ensemble], step=step, dtype=dtype)
        return cls(*loaded, devices=devices, draft=draft)

    @property
    def max_source_tokens(self) -> int:
        """Longer sources, end token included, are cut."""
        return min(MAX_SOURCE_TOKENS, self.model.config.num_positions)

    @functools.cached_property
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
        prefixes: Sequence[str | None] | None = None,
        phrases: Sequence[Sequence[str]] | None = None,
        scores: bool = True,
    ) -> list[Translation]:
        """As many translations as lines, in order.

        The longest lines come first. Each device searches as many side by side as
        `batch_tokens` source positions hold, beams counted, but at most `batch_size`;
        one that is done makes room for the next. Lines without words give empty
        translations; of lines longer than `max_source_tokens` only the beginning is
        translated, and a warning is logged, which numbers lines from `first_line`.
        Samples of a line depend on the seed and the line's number, not on other lines.
        With a `shortlist` each line may use only the tokens that it names for it.
        `progress` shows a bar on stderr, or is called with the number of lines done.
        `prefixes` are what the translations begin with (None or blank: nothing), and
        part of them; `phrases` what they must hold, which beam search alone knows: one
        prefix and some or no phrases for each line. Their length comes on top. Phrases
        that a translation lacks are its `missing`, and a warning is logged. Without
        `scores` greedy search a token at a time is faster, as it need not normalise;
        its scores and log-probabilities are then nan.
        """
        search = search or self.search
        numbers = range(first_line, first_line + len(lines))
        tokenizer, known = self.tokenizer, self.model.config.num_positions
        forced, required = asked_of_lines(
            numbers, tokenizer, search.ban, known, prefixes=prefixes, phrases=phrases
        )
        sources = [self.source_ids(line) for line in lines]
        cut = self._too_long(sources, first_line)
        found = [as_translation((), missing=(*asked,)) for asked in required]
        places = [i for i, source in enumerate(sources) if len(source)]
        with updating(progress, len(lines)) as update:
            update(len(lines) - len(places))
            for each in self.search_ids(
                [self.cut(sources[i]) for i in places],
                prefixes=[forced[i] for i in places],
                phrases=[[*filter(None, required[i].values())] for i in places],
                search=search,
                numbers=[numbers[i] for i in places],
                batch_tokens=batch_tokens,
                batch_size=batch_size,
                shortlist=shortlist,
                scores=scores,
            ):
                line = places[each.index]
                rest = {"required": required[line], "truncated": line in cut}
                found[line] = translation_of(each.result, tokenizer, search, **rest)
                update(1)
        warn_of_missing(found, first_line)
        return found

    def _too_long(self, sources: Sequence[np.ndarray], first_line: int) -> set[int]:
        """Places of those that are to be cut; warns of them."""
        limit = self.max_source_tokens
        long = [i for i, source in enumerate(sources) if len(source) > limit]
        if long:
            logger.warning(
                "%d of %d lines have more than %d tokens: only their beginning is "
                "translated. The first is line %d.",
                len(long),
                len(sources),
                limit,
                first_line + long[0],
            )
        return set(long)

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
        prefixes: Sequence[Sequence[int]] = (),
        phrases: Sequence[Sequence[Sequence[int]]] = (),
        search: SearchConfig | None = None,
        numbers: Sequence[int] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
        shortlist: Shortlist | None = None,
        scores: bool = True,
    ) -> Iterator[Found]:
        """Source ids as the model reads them → the n best targets of each, by its place
        in `sources`, in the order in which they are done. `prefixes` are ids that the
        targets begin with, one for each source or none at all; `phrases` ids that they
        must hold, a list for each source or none at all.

        Samples are drawn by the `numbers` of the sources (default: their places). For
        `scores` see `translate`. While those that are done are used, the devices go on
        with the others.
        """
        search = search or self.search
        numbers = numbers or range(len(sources))
        groups = self._groups(sources, search, batch_tokens, batch_size)
        prefixes = prefixes or [()] * len(sources)
        phrases = phrases or [()] * len(sources)
        tasks = []
        for group in groups:
            width = prefix_width([prefixes[index] for index in group.indices])
            asked = [phrases[index] for index in group.indices]
            plan = self._plan(group.length, search, width, asked, scores)
            if shortlist is not None:
                check_shortlist(plan, self.model)
                # What is never wanted is left out of every list.
                shortlist = shortlist.without(plan.banned)
                plan = plan._replace(banned=())
            whole = None
            if not shortlist:
                whole = self._whole_offers.for_search(plan, group.slots)
            queue = deque(
                self._sentence(
                    int(index),
                    sources[index],
                    prefixes[index],
                    phrases[index],
                    draw=(search.seed, numbers[index]),
                    search=search,
                    shortlist=shortlist,
                )
                for index in group.indices
            )
            useful = min(-(-len(queue) // group.slots), len(self._copies))
            many = are_many(len(queue), devices=useful, platform=self._platform)
            tasks.append(Task(queue, plan, group, useful, many, whole))
        devices = range(max((task.devices for task in tasks), default=0))
        yield from side_by_side([self._work(device, tasks) for device in devices])

    def _groups(
        self,
        sources: Sequence[np.ndarray],
        search: SearchConfig,
        batch_tokens: int,
        batch_size: int | None,
    ) -> Iterator[Group]:
        """Those that share slots."""
        where = {"beams": search.beams, "platform": self._platform}
        return plan_groups(
            [len(source) for source in sources],
            positions=batch_tokens // search.beams,
            longest=self.max_source_tokens,
            allowed_slots=functools.partial(most_slots, batch_size=batch_size, **where),
            wanted_slots=functools.partial(
                slots_wanted, devices=len(self._copies), **where
            ),
        )

    def _sentence(
        self,
        index: int,
        inputs: np.ndarray,
        prefix: Sequence[int],
        phrases: Sequence[Sequence[int]],
        *,
        draw: tuple[int, int],
        search: SearchConfig,
        shortlist: Shortlist | None,
    ) -> Sentence:
        """What is asked of one source."""
        words = len(inputs) - self.model.config.source_specials
        pieces, candidates = [*itertools.chain(*phrases)], None
        if shortlist is not None:
            eos_id = self.tokenizer.eos_id
            candidates = shortlist.of_sentence(inputs, eos_id, *pieces)
        return Sentence(
            index,
            inputs,
            self._max_target(words, search, len(prefix) + len(pieces)),
            tuple(prefix),
            draw=draw,
            candidates=candidates,
            phrases=tuple(map(tuple, phrases)),
        )

    def _work(self, device: int, tasks: Sequence[Task]) -> Iterator[list[Found]]:
        """What a device finds. It goes on with the next task when no sentence waits,
        and leaves small ones to those before it: each has to compile what it runs."""
        for task in tasks:
            if device >= task.devices or not task.queue:
                continue
            decoder = self._idle.pop(device, None)
            if decoder is None or not task.suits(decoder):
                decoder = None  # before the next one takes its memory
                params, group, whole = self._copies[device], task.group, task.whole
                where = jax.tree.leaves(params)[0].sharding
                if len(where.device_set) == 1:
                    whole = jax.device_put(whole, where)
                decoder = Decoder(
                    self.model,
                    params,
                    task.plan,
                    slots=group.slots,
                    length=group.length,
                    whole=whole,
                )
            yield from decoder.run(task.queue, sharing=task.devices, many=task.many)
            self._idle[device] = decoder

    def _plan(
        self,
        source_length: int,
        search: SearchConfig,
        width: int,
        phrases: Sequence[Sequence[Sequence[int]]] = (),
        scores: bool = True,
    ) -> SearchPlan:
        """What searches of sources of up to that many tokens are compiled for, with
        prefixes of up to `width` tokens, the start token included, and such phrases."""
        shape = checked_shape(phrases, search)
        if self.draft and search.block == 1:
            raise ValueError(
                "There is a draft, but block is 1, so that nothing is guessed: raise "
                "block (4, say), with method greedy, or leave out the draft."
            )
        # Padding and a start token of its own are no words (Marian bans pad; so do we).
        never = {self.tokenizer.pad_id, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        tokens, sequences = banned_ids(search.ban, self.tokenizer)
        pieces = max((sum(map(len, each)) for each in phrases), default=0)
        more = width - 1 + next_power_of_four(pieces) * (pieces > 0)
        max_length = self._max_target(source_length, search, more)
        return SearchPlan(
            # Compiled once for all seeds; replacing checks all settings anew.
            search=dataclasses.replace(search, seed=0) if search.seed else search,
            max_length=max_length,
            start_id=self.start_id,
            eos_id=self.tokenizer.eos_id,
            banned=tuple(sorted(never.union(tokens))),
            prefix_width=min(width, max_length),
            banned_sequences=sequences,
            phrases=shape,
            scores=scores or search.method != "greedy" or search.block > 1,
            draft=self.draft and self.draft.model,
        )

    def _max_target(self, pieces: int, search: SearchConfig, more: int) -> int:
        """Most target tokens, end included, for that many source pieces, and that many
        tokens that the target is made to begin with or to hold."""
        wanted = int(search.max_length_factor * pieces) + search.max_length_offset
        wanted += more
        return min(wanted, self.model.config.num_positions)
