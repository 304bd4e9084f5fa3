"""Continuous batching: new sentences take the places of those that are done.

A device has B slots with one sentence each (but a single sentence is searched without
any). P others are encoded, and wait until some are done and leave their slots to them.
When none waits, or the cache is too short for a sentence, the device comes back with
what it has found. A few that take much longer than the others, and the last ones, go on
in a siding of B/4 slots.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.translation.ensembles import AnyModel
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.offers import Offer, offer_for
from transformer_jax.translation.planning import (
    FINE_LENGTHS,
    GROUP_LENGTHS,
    SOURCE_LENGTHS,
    most_waiting,
    padded_length,
    room_for,
    rows_for,
    taken_together,
)
from transformer_jax.translation.preparing import (
    begin,
    empty_slots,
    may_begin,
    prepare,
    refit,
)
from transformer_jax.translation.sentences import (
    Found,
    Sentence,
    found_in,
    stacked,
    stacked_jobs,
    take,
)
from transformer_jax.translation.siding import put_aside
from transformer_jax.translation.slots import (
    Report,
    Slots,
    advance,
    free_at_least,
    resize,
    search_alone,
)
from transformer_jax.types import Params

FEWEST_WITH_SIDING = 16
"""Slots that a device with a siding has at least."""
FIRST_CACHE = 24
"""Target tokens that the cache has room for at first; it grows when need be."""
SIDING_CACHE = 96
"""The same of a siding's cache."""


class Encoded(NamedTuple):
    """Up to P sentences that are ready for slots."""

    sentences: list[Sentence]
    slots: Slots
    """What they are to the device."""
    room: int
    """S"""


class Decoder:
    """The slots of one device and the sentences in them."""

    def __init__(
        self,
        model: AnyModel,
        params: Params,
        plan: SearchPlan,
        *,
        slots: int,
        length: int,
        whole: Offer | None = None,
        is_siding: bool = False,
    ) -> None:
        """B `slots` for sources of up to `length` tokens, on the device where the
        parameters lie. The `whole` offer is that of sentences without a list of their
        own. A siding has room for sources of this length from the first: its programs
        shall be few."""
        self.model: Any = model
        self.params, self.plan, self.length = params, plan, length
        self.whole = whole
        self.slots = slots
        self.most_waiting = most_waiting(slots)
        """P"""
        self.is_siding = is_siding
        self.siding: Decoder | None = None
        (device, *_) = jax.tree.leaves(params)[0].devices()
        self.on_cpu = device.platform == "cpu"
        self.is_fine = False
        """Whether sources are padded to many lengths."""
        self.sentences: list[Sentence | None] = []
        """In the slots; there are none before the first run that needs some."""
        self.waiting: list[Sentence] = []
        self.taken = 0
        """How many of them have been taken in."""
        self.following: Encoded | None = None
        """Those that wait next."""

    def run(
        self, queue: deque[Sentence], *, sharing: int = 1, many: bool = False
    ) -> Iterator[list[Found]]:
        """Takes sentences from the queue, which `sharing` decoders share, until none is
        left; hands out those that are done, several at a time. Where there are `many`,
        there is a siding, and a CPU pads sources less.

        While some are handed out, the device goes on with the others.
        """
        self.is_fine = many and self.on_cpu
        if self.slots == 1 == len(queue):
            yield self._search_alone(queue)
            return
        unread = any(self.sentences) or self.following or self.taken < len(self.waiting)
        if unread or not self.sentences:
            self._clear()  # no run before, or it was not read to its end
        self.siding = None  # before the next one takes its memory
        self.siding = self._new_siding() if many else None
        yield from self._search(queue, sharing)

    def _search(
        self, queue: deque[Sentence], sharing: int = 1
    ) -> Iterator[list[Found]]:
        """Goes on with those in the slots and those in the queue until all are done."""
        done: list[Found] = []
        while True:
            if self.taken == len(self.waiting):
                self._turn_to_next(queue, sharing)
            if not (self.waiting or any(self.sentences)):
                break
            report = self._advance(more=bool(queue or self.following))
            # While the device is at work, the next ones are made ready. (Several
            # searches of a CPU do one thing at a time: it is the others that go on.)
            if self.following is None:
                self.following = self._prepare(queue, sharing)
            yield done
            report = jax.device_get(report)
            done = self._take_done(report)
            more = bool(queue or self.following) or self.taken < len(self.waiting)
            moved = False
            if self.siding is not None:
                moved = yield from self._relieve(self.siding, report.lengths, more=more)
            self._fit_cache(report.lengths, () if moved else done)
        self.encoded = self.offer = None  # their memory
        yield done
        if self.siding is not None:
            yield from self.siding._search(deque())

    def _search_alone(self, queue: deque[Sentence]) -> list[Found]:
        """The only sentence, which takes no slot; none if another device took it."""
        ready = self._prepare(queue, sharing=1)
        if ready is None:
            return []
        state, offer = ready.slots, self._offer(ready.sentences)
        room = 0
        while True:
            room = self._cache_for(2 * room)
            state, *found = search_alone(
                self.params, state, offer, model=self.model, plan=self.plan, cache=room
            )
            (result, effort), done = jax.tree.map(np.asarray, found)  # not device_get
            if done:
                rows = [(0, ready.sentences[0].index)]
                return found_in(result, effort, rows, plan=self.plan)

    def _clear(self) -> None:
        """No sentence is in the slots, and none waits."""
        self.sentences = [None] * self.slots
        self.waiting, self.taken, self.following = [], 0, None
        self.encoded: Slots | None = None
        """They on the device; after the last of them those before, who are not read.
        None where nobody ever waited."""
        self.offer: Offer | None = None
        shortest = padded_length(1, GROUP_LENGTHS, self.length)
        self.room = self.length if self.is_siding else shortest
        """S: source positions that the slots have now."""
        sizes = {"slots": self.slots, "length": self.room, "cache": self._cache_for(1)}
        state = empty_slots(self.params, model=self.model, plan=self.plan, **sizes)
        # Bound to their device, as what `advance` gives back is: programs for what is
        # not bound are others.
        where = jax.tree.leaves(self.params)[0].sharding
        self.state = (
            jax.device_put(state, where) if len(where.device_set) == 1 else state
        )

    def _prepare(self, queue: deque[Sentence], sharing: int) -> Encoded | None:
        """Encodes the next sentences of the queue, if there are any."""
        most = self.most_waiting
        sentences = take(queue, taken_together(len(queue), most, sharing=sharing))
        if not sentences:
            return None
        room = self._room_for(sentences)
        made_for: Any = {"model": self.model, "plan": self.plan}
        slots = prepare(
            self.params,
            *stacked(
                sentences,
                rows=rows_for(len(sentences), most) if self.is_fine else most,
                lengths=FINE_LENGTHS if self.is_fine else SOURCE_LENGTHS,
                longest=room,
            ),
            stacked_jobs(sentences, rows=most, plan=self.plan),
            length=room,
            **made_for,
        )
        # What one may choose from a list is known later; for one alone a row costs as
        # much as several.
        ready = self.slots > 1 and sentences[0].candidates is None
        if ready and may_begin(self.model, self.plan):
            slots = begin(self.params, slots, self.whole, **made_for)
        return Encoded(sentences, slots, room)

    def _turn_to_next(self, queue: deque[Sentence], sharing: int) -> None:
        """Those that follow wait now, and the slots are as long as their sources, and
        those of the sentences in them, need."""
        following, self.following = self.following, None
        if following is None:
            following = self._prepare(queue, sharing)
        self.waiting, self.taken = [], 0
        if following is None:
            return
        self.waiting, self.encoded = following.sentences, None
        room = self._room_for([*filter(None, self.sentences), *self.waiting])
        self.encoded = self._refitted(following.slots, following.room, room)
        self.state = self._refitted(self.state, self.room, room)
        if room > self.room:  # targets will be longer, too
            self._resize(max(self.cache_length, self._cache_for(room * 3 // 4)))
        self.room = room

    def _room_for(self, sentences: Sequence[Sentence]) -> int:
        """S for these sentences."""
        longest = max(len(each.inputs) for each in sentences)
        return padded_length(longest, GROUP_LENGTHS, self.length)

    def _refitted(self, slots: Slots, room: int, wanted: int) -> Slots:
        """The slots with as many source positions as wanted, in place of `room`."""
        if room == wanted:
            return slots
        memory, coverage = refit(
            self.params,
            slots.memory,
            slots.beams.coverage,
            model=self.model,
            plan=self.plan,
            length=wanted,
        )
        beams = slots.beams._replace(coverage=coverage)
        return slots._replace(beams=beams, memory=memory)

    def _enough(self, more: bool) -> int:
        """Sentences that may be alive when the device comes back."""
        if more:
            return self.slots - free_at_least(self.slots)
        if self.siding is None:
            return 0
        # As many as find room in the siding; one that is nearly full is emptied first,
        # which half of its slots are worth.
        free, slots = self.siding.sentences.count(None), self.siding.slots
        return free if 4 * free >= slots else slots // 2

    def _new_siding(self) -> "Decoder | None":
        """A siding, if there are slots enough for one; it may have one too."""
        if self.slots < FEWEST_WITH_SIDING:
            return None
        siding = Decoder(
            self.model,
            self.params,
            self.plan,
            slots=self.slots // 4,
            length=self.length,
            whole=self.whole,
            is_siding=True,
        )
        siding._clear()
        siding.siding = siding._new_siding()
        return siding

    def _relieve(
        self, siding: "Decoder", lengths: np.ndarray, *, more: bool
    ) -> Generator[list[Found], None, bool]:
        """Moves sentences that are too long for the cache to the siding, if they are
        few; and so the last ones, when no `more` come. Target lengths [B]. → whether
        any moved."""
        going = [i for i, each in enumerate(self.sentences) if each is not None]
        if more or len(going) > self._enough(more):
            going = [i for i in going if lengths[i] >= self.cache_length]
        if not 0 < len(going) <= siding.slots:
            return False
        if len(going) > siding.sentences.count(None):
            yield from siding._search(deque())
            if more:
                return False  # so many are long that the cache had better grow
        siding._take_over(self, going, int(lengths[going].max()))
        return True

    def _take_over(self, other: "Decoder", slots: Sequence[int], longest: int) -> None:
        """Sentences in some slots of another, of up to `longest` target tokens, go on
        in free ones here."""
        self._resize(max(self.cache_length, self._cache_for(longest + 1)))
        free = [i for i, each in enumerate(self.sentences) if each is None]
        nobody = self.slots - len(slots)
        self.state, other.state = put_aside(
            self.state,
            other.state,
            np.array([*slots, *[other.slots] * nobody], np.int32),
            np.array([*free[: len(slots)], *[self.slots] * nobody], np.int32),
        )
        for slot, place in zip(slots, free, strict=False):
            self.sentences[place] = other.sentences[slot]
            other.sentences[slot] = None

    @property
    def cache_length(self) -> int:
        """T; there is a cache once there are slots."""
        return self.state.beams.cache.ancestors.shape[1]

    def _cache_for(self, tokens: int) -> int:
        """T for so many tokens."""
        first = SIDING_CACHE if self.is_siding else FIRST_CACHE
        return min(room_for(max(tokens, first)), self.plan.max_length)

    def _fit_cache(self, lengths: np.ndarray, done: Sequence[Found]) -> None:
        """Makes the cache longer where the sentences in the slots need it, target
        lengths [B]; and shorter where these and those just done need less of it."""
        here = [each is not None for each in self.sentences]
        longest, room = int(lengths[here].max(initial=0)), self.cache_length
        if longest >= room:
            self._resize(self._cache_for(room + 1))
        elif done:
            lengths = np.concatenate([each.result.lengths for each in done])
            longest = max(longest, int(lengths.max()))
            self._resize(min(self._cache_for(longest * 9 // 8 + 1), room))

    def _resize(self, length: int) -> None:
        """Gives the cache this length."""
        if length != self.cache_length:
            beams = self.state.beams
            beams = beams._replace(cache=resize(beams.cache, length=length))
            self.state = self.state._replace(beams=beams)

    def _offer(self, sentences: Sequence[Sentence | None]) -> Offer | None:
        """What these may choose from."""
        return offer_for(sentences, self.whole, self.params, model=self.model)

    def _advance(self, *, more: bool) -> Report:
        """Goes on until all who wait are taken in, and enough are done."""
        self.offer = None  # before the next one takes its memory
        nobody = self.most_waiting - len(self.waiting) if self.encoded else 0
        self.offer = self._offer([*self.sentences, *self.waiting, *[None] * nobody])
        self.state, report = advance(
            self.params,
            self.state,
            self.encoded,
            np.array([self.taken, len(self.waiting)], np.int32),
            np.int32(self._enough(more)),
            self.offer,
            model=self.model,
            plan=self.plan,
        )
        return report

    def _take_done(self, report: Report) -> list[Found]:
        """Those that are done; the others stay in the slots that they have now."""
        slots, last = self.slots, int(report.taken)
        owners = {i: each for i, each in enumerate(self.sentences) if each is not None}
        for place in range(self.taken, last):
            owners[slots + place] = self.waiting[place]
        self.taken = last
        tickets = [
            int(ticket) if alive else None
            for ticket, alive in zip(report.tickets, report.alive, strict=True)
        ]
        self.sentences = [None if each is None else owners[each] for each in tickets]
        done = [(i, owners[i].index) for i in sorted(owners.keys() - set(tickets))]
        return found_in(report.finished, report.effort, done, plan=self.plan)
