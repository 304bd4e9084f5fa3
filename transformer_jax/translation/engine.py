"""Continuous batching: new sentences take the places of those that are done.

A device has B slots with one sentence each. It adds tokens to all of them until enough
are done; then new sentences are encoded into the free slots, and so on.
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
    make_offer,
    move,
    refill,
    resize,
)
from transformer_jax.types import Params

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


class Task(NamedTuple):
    """Sentences that devices share, and what they need to search them."""

    queue: deque[Sentence]
    plan: SearchPlan
    slots: int
    """B, on each device."""
    length: int
    """S: source positions of a slot."""
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
        """B `slots` for sources of up to S = `length` tokens, on the device where the
        parameters lie."""
        self.model: Any = model
        self.params, self.plan, self.length = params, plan, length
        self.at_once = max(1, slots // 8)
        """P: sentences that are encoded together, and wait for as many free slots."""
        self.slots = slots
        self.sentences: list[Sentence | None] = [None] * slots
        self.state = self._empty()
        self.offer: Offer | None = None

    def run(self, queue: deque[Sentence]) -> Iterator[Found]:
        """Takes sentences from the queue, which others may share, until none is left.

        While some are handed out, the device goes on with the others.
        """
        # An earlier run moved together at its end, or was not read to its end.
        if len(self.sentences) < self.slots or any(self.sentences):
            self.sentences = [None] * self.slots
            self.state = self._empty()
        done: list[Found] = []
        while True:
            self._fill(queue)
            if not any(self.sentences):
                break
            report = self._advance(self._enough(bool(queue)))
            yield from done
            report = jax.device_get(report)
            done = self._take_done(report)
            self._fit(int(report.longest), bool(queue))
        yield from done

    def _empty(self) -> Slots:
        return empty_slots(
            self.params,
            model=self.model,
            plan=self.plan,
            slots=self.slots,
            length=self.length,
        )

    def _enough(self, waiting: bool) -> int:
        """Sentences that may be alive when the device comes back."""
        slots = len(self.sentences)
        if waiting:
            return slots - self.at_once
        return slots // 4 if slots >= FEWEST_TO_MOVE else 0

    def _fit(self, longest: int, waiting: bool) -> None:
        """Makes the cache as long as its sentences need, and moves the last ones into
        fewer slots."""
        room = self.state.beams.cache.ancestors.shape[1]
        if longest >= room:
            length = min(room_for(room + 1, FIRST_CACHE), self.plan.max_length)
        else:
            length = min(room_for(longest * 4 // 3 + 1, FIRST_CACHE), room)
        running = [i for i, each in enumerate(self.sentences) if each is not None]
        slots = len(self.sentences)
        few = not waiting and slots >= FEWEST_TO_MOVE and len(running) <= slots // 4
        if few and running:
            free = [i for i, each in enumerate(self.sentences) if each is None]
            kept = (running + free)[: slots // 4]
            self.sentences = [self.sentences[i] for i in kept]
            self.state = move(self.state, np.array(kept, np.int32))
            self.offer = self._offer()
        if length != room:
            beams = self.state.beams
            beams = beams._replace(cache=resize(beams.cache, length=length))
            self.state = self.state._replace(beams=beams)

    def _fill(self, queue: deque[Sentence]) -> None:
        new_ones = False
        free = [slot for slot, each in enumerate(self.sentences) if each is None]
        while len(free) >= self.at_once and (new := _take(queue, self.at_once)):
            slots, free = free[: len(new)], free[len(new) :]
            for slot, sentence in zip(slots, new, strict=True):
                self.sentences[slot] = sentence
            unused = [len(self.sentences)] * (self.at_once - len(new))
            beams = self.state.beams
            state = refill(
                self.params,
                self.state._replace(beams=beams._replace(cache=None)),
                np.array([*slots, *unused], np.int32),
                *stacked(new, rows=self.at_once, longest=self.length),
                stacked_jobs(new, rows=self.at_once, plan=self.plan),
                model=self.model,
                plan=self.plan,
            )
            whole = state.beams._replace(cache=beams.cache)
            self.state = state._replace(beams=whole)
            new_ones = True
        if new_ones:
            self.offer = self._offer()

    def _offer(self) -> Offer | None:
        """What the sentences in the slots may choose from, if it is not everything."""
        lists = [
            None
            if each is None or each.candidates is None
            else np.union1d(each.candidates, each.prefix).astype(np.int64)
            for each in self.sentences
        ]
        if all(each is None for each in lists):
            return None
        ids, allowed = joint_choice(lists, self.model.config.target_vocab_size)
        return make_offer(self.params, ids, allowed, model=self.model)

    def _advance(self, enough: int) -> Report:
        """Goes on until no more than `enough` sentences are alive."""
        self.state, report = advance(
            self.params,
            self.state,
            np.int32(enough),
            self.offer,
            model=self.model,
            plan=self.plan,
        )
        return report

    def _take_done(self, report: Report) -> list[Found]:
        done = []
        for slot, sentence in enumerate(self.sentences):
            if sentence is not None and not report.alive[slot]:
                found = report.finished, report.effort
                found = jax.tree.map(lambda x, slot=slot: x[slot], found)
                done.append(Found(sentence.index, *found))
                self.sentences[slot] = None
        return done


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
