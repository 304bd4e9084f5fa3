"""Continuous batching: new sentences take the places of those that are done.

A device has B slots with one sentence each. P others are encoded, and wait until some
are done and leave their slots to them. When none waits, or the cache is too short for a
sentence, the device comes back with what it has found.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.search.beams import FREE, Job
from transformer_jax.search.parallel_greedy import Effort
from transformer_jax.search.result import SearchResult
from transformer_jax.translation.ensembles import AnyModel
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.planning import (
    GROUP_LENGTHS,
    SOURCE_LENGTHS,
    padded_length,
    room_for,
)
from transformer_jax.translation.shortlist import joint_choice
from transformer_jax.translation.slots import (
    FIRST_CACHE,
    Offer,
    Report,
    Slots,
    advance,
    empty_slots,
    free_at_least,
    make_offer,
    move,
    prepare,
    refit,
    resize,
)
from transformer_jax.types import Params

MOST_WAITING = 32
"""Sentences that are encoded together, and then wait for a slot."""
FEWEST_TO_MOVE = 32
"""As many slots move together when most of them are empty."""


class Sentence(NamedTuple):
    """One sentence to be translated."""

    index: int
    """The caller's number of it."""
    inputs: np.ndarray
    """[S] int32, as the model reads them."""
    max_length: int
    """Most target tokens, end included."""
    prefix: tuple[int, ...] = ()
    """Tokens that the target begins with, without the start token."""
    draw: tuple[int, int] = (0, 0)
    """The seed and the sentence's number, by which its samples are drawn."""
    candidates: np.ndarray | None = None
    """Sorted token ids that it may use, the end among them; the prefix is besides. All
    sentences of a queue have some, or none has."""
    phrases: tuple[tuple[int, ...], ...] = ()
    """What its targets must hold."""


class Found(NamedTuple):
    """The n best targets of a sentence."""

    index: int
    result: SearchResult
    """On the host, without the axis B."""
    effort: Effort | None = None
    """Of a search in blocks; so too."""


class Encoded(NamedTuple):
    """Up to P sentences that are ready for slots."""

    sentences: list[Sentence]
    slots: Slots
    """What they are to the device."""
    room: int
    """S"""


class Task(NamedTuple):
    """Sentences that devices share, and what they need to search them."""

    queue: deque[Sentence]
    plan: SearchPlan
    slots: int
    """B, on each device."""
    length: int
    """Most source positions of a slot."""
    devices: int
    """More would have nothing to do."""


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
    ) -> None:
        """B `slots` for sources of up to `length` tokens, on the device where the
        parameters lie."""
        self.model: Any = model
        self.params, self.plan, self.length = params, plan, length
        self.slots = slots
        self.most_waiting = min(slots, MOST_WAITING)
        """P"""
        self._clear()

    def run(self, queue: deque[Sentence], *, sharing: int = 1) -> Iterator[Found]:
        """Takes sentences from the queue, which `sharing` decoders share, until none is
        left.

        While some are handed out, the device goes on with the others.
        """
        # An earlier run moved together at its end, or was not read to its end.
        busy = any(self.sentences) or self.taken < len(self.waiting)
        if busy or len(self.sentences) < self.slots:
            self._clear()
        done: list[Found] = []
        while True:
            if self.taken == len(self.waiting):
                self._turn_to_next(queue, sharing)
            if not (self.waiting or any(self.sentences)):
                break
            report = self._advance(more=bool(queue or self.following))
            # While the device is at work, the next ones are made ready.
            if self.following is None:
                self.following = self._prepare(queue, self._share(queue, sharing))
            yield from done
            report = jax.device_get(report)
            done = self._take_done(report)
            self._fit(int(report.longest), more=bool(queue or self.following))
        self.encoded = self.offer = None  # their memory
        yield from done

    def _clear(self) -> None:
        """No sentence is in the slots, and none waits."""
        self.sentences: list[Sentence | None] = [None] * self.slots
        self.waiting: list[Sentence] = []
        self.taken = 0
        """How many of them have been taken in."""
        self.encoded: Slots | None = None
        """They on the device; after the last of them those before, who are not read."""
        self.following: Encoded | None = None
        """Those that wait next."""
        self.offer: Offer | None = None
        self.room = padded_length(1, GROUP_LENGTHS, self.length)
        """S: source positions that the slots have now."""
        self.state = empty_slots(
            self.params,
            model=self.model,
            plan=self.plan,
            slots=self.slots,
            length=self.room,
        )

    def _share(self, queue: deque[Sentence], sharing: int) -> int:
        """Sentences to take now; towards the end of the queue fewer, so that all who
        share it end together."""
        most = self.most_waiting
        return most if sharing == 1 else min(most, len(queue) // (2 * sharing))

    def _prepare(self, queue: deque[Sentence], share: int) -> Encoded | None:
        """Encodes the next sentences of the queue, up to `share`, if there are any."""
        sentences = _take(queue, share)
        if not sentences:
            return None
        room = self._room_for(sentences)
        slots = prepare(
            self.params,
            *stacked(sentences, rows=self.most_waiting, longest=room),
            stacked_jobs(sentences, rows=self.most_waiting, plan=self.plan),
            model=self.model,
            plan=self.plan,
            length=room,
        )
        return Encoded(sentences, slots, room)

    def _turn_to_next(self, queue: deque[Sentence], sharing: int) -> None:
        """Those that follow wait now, and the slots are as long as their sources, and
        those of the sentences in them, need."""
        following, self.following = self.following, None
        if following is None:
            # Each time costs something, however few they are.
            few = -(-self.most_waiting // 4)
            following = self._prepare(queue, max(few, self._share(queue, sharing)))
        self.waiting, self.taken = [], 0
        if following is None:
            return
        self.waiting, self.encoded = following.sentences, None
        room = self._room_for([*filter(None, self.sentences), *self.waiting])
        self.encoded = self._refitted(following.slots, following.room, room)
        self.state = self._refitted(self.state, self.room, room)
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
        slots = len(self.sentences)
        if more:
            return slots - free_at_least(slots)
        return slots // 4 if slots >= FEWEST_TO_MOVE else 0

    def _fit(self, longest: int, *, more: bool) -> None:
        """Makes the cache as long as its sentences need, and moves the last ones into
        fewer slots."""
        room = self.state.beams.cache.ancestors.shape[1]
        if longest >= room:
            length = min(room_for(room + 1, FIRST_CACHE), self.plan.max_length)
        else:
            length = min(room_for(longest * 4 // 3 + 1, FIRST_CACHE), room)
        running = [i for i, each in enumerate(self.sentences) if each is not None]
        slots = len(self.sentences)
        last = not more and self.taken == len(self.waiting)
        if last and running and slots >= FEWEST_TO_MOVE and len(running) <= slots // 4:
            free = [i for i, each in enumerate(self.sentences) if each is None]
            kept = (running + free)[: slots // 4]
            self.sentences = [self.sentences[i] for i in kept]
            self.state = move(self.state, np.array(kept, np.int32))
        if length != room:
            beams = self.state.beams
            beams = beams._replace(cache=resize(beams.cache, length=length))
            self.state = self.state._replace(beams=beams)

    def _offer(self) -> Offer | None:
        """What the sentences may choose from, if it is not everything."""
        nobody = self.most_waiting - len(self.waiting)
        lists = [
            None
            if each is None or each.candidates is None
            else np.union1d(each.candidates, each.prefix).astype(np.int64)
            for each in (*self.sentences, *self.waiting, *[None] * nobody)
        ]
        if all(each is None for each in lists):
            return None
        ids, allowed = joint_choice(lists, self.model.config.target_vocab_size)
        return make_offer(self.params, ids, allowed, model=self.model)

    def _advance(self, *, more: bool) -> Report:
        """Goes on until all who wait are taken in, and enough are done."""
        self.offer = None  # before the next one takes its memory
        self.offer = self._offer()
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
        slots, last = len(self.sentences), int(report.taken)
        owners = {i: each for i, each in enumerate(self.sentences) if each is not None}
        for place in range(self.taken, last):
            owners[slots + place] = self.waiting[place]
        self.taken = last
        tickets = [
            int(ticket) if alive else None
            for ticket, alive in zip(report.tickets, report.alive, strict=True)
        ]
        self.sentences = [None if each is None else owners[each] for each in tickets]
        result = report.finished if self.plan.scores else unscored(report.finished)
        found = result, report.effort
        return [
            Found(owners[i].index, *jax.tree.map(lambda x, i=i: x[i], found))
            for i in sorted(owners.keys() - set(tickets))
        ]


def unscored(result: SearchResult) -> SearchResult:
    """The targets alone, with nan for what nobody asked."""
    names = "scores", "log_probabilities", "token_log_probabilities"
    nothing = {name: np.full_like(getattr(result, name), np.nan) for name in names}
    return result._replace(**nothing)


def stacked(
    sentences: Sequence[Sentence], *, rows: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and their segment ids [P, S], in one of a few shapes; rows without a
    sentence are all padding."""
    needed = max(len(each.inputs) for each in sentences)
    length = padded_length(needed, SOURCE_LENGTHS, longest)
    inputs, segment_ids = np.zeros((2, rows, length), np.int32)
    for row, sentence in enumerate(sentences):
        inputs[row, : len(sentence.inputs)] = sentence.inputs
        segment_ids[row, : len(sentence.inputs)] = 1
    return inputs, segment_ids


def stacked_jobs(sentences: Sequence[Sentence], *, rows: int, plan: SearchPlan) -> Job:
    """What is asked for each; nothing where there is no sentence."""
    prefix: Any = np.full((rows, plan.prefix_width), FREE, np.int32)
    prefix[:, 0] = plan.start_id
    max_lengths: Any = np.zeros(rows, np.int32)
    draws: Any = np.zeros((rows, 2), np.uint32) if plan.draws else None
    phrases: Any = plan.phrases and np.full((rows, *plan.phrases), FREE, np.int32)
    for row, sentence in enumerate(sentences):
        prefix[row, 1 : 1 + len(sentence.prefix)] = sentence.prefix
        max_lengths[row] = sentence.max_length
        if draws is not None:
            draws[row] = sentence.draw
        for place, phrase in enumerate(sentence.phrases):
            phrases[row, place, : len(phrase)] = phrase
    return Job(prefix, max_lengths, draws, phrases)


def _take(queue: deque[Sentence], count: int) -> list[Sentence]:
    """Up to `count` sentences; another thread may take the last ones first."""
    taken: list[Any] = []
    while len(taken) < count:
        try:
            taken.append(queue.popleft())
        except IndexError:
            break
    return taken


def side_by_side(searches: Sequence[Iterator[Found]]) -> Iterator[Found]:
    """What several searches find, each in a thread of its own, as it comes."""
    if len(searches) == 1:
        yield from searches[0]
        return
    found: SimpleQueue[Found | BaseException | None] = SimpleQueue()
    stopped = threading.Event()

    def work(search: Iterator[Found]) -> None:
        try:
            for each in search:
                found.put(each)
                if stopped.is_set():
                    return
            found.put(None)
        except BaseException as error:  # raised again by the thread that waits
            found.put(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in searches]
    for thread in threads:
        thread.start()
    try:
        working = len(threads)
        while working:
            each = found.get()
            if isinstance(each, BaseException):
                raise each
            if each is None:
                working -= 1
            else:
                yield each
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
