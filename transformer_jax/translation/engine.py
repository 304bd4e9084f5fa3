"""Continuous batching: new sentences take the places of those that are done.

A device has B slots with one sentence each. `advance` adds tokens to all of them until
enough are done, and `refill` encodes new sentences into free slots. Both are compiled
once for each shape, and work in place: only what is new is written.
"""

import functools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import SearchConfig
from transformer_jax.models.cache import init_cache, longer_cache
from transformer_jax.models.functions import encode_memory, make_step_fn
from transformer_jax.models.layers import Memory
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.beam import advance_beams
from transformer_jax.search.beams import (
    Advance,
    Beams,
    alive,
    first_beams,
    make_job,
    replace_sentences,
    search_while,
)
from transformer_jax.search.constraints import banned_tokens
from transformer_jax.search.greedy import advance_greedily
from transformer_jax.search.result import SearchResult, penalty_table
from transformer_jax.translation.planning import SOURCE_LENGTHS, padded_length
from transformer_jax.types import Array, Params

FIRST_CACHE = 32
"""Target tokens that the cache has room for at first; it doubles when need be."""


class SearchPlan(NamedTuple):
    """What a compiled search is made for, apart from array shapes."""

    search: SearchConfig
    max_length: int
    start_id: int
    eos_id: int
    banned: tuple[int, ...]

    @property
    def beams(self) -> int:
        """K."""
        return self.search.beam_size if self.search.method == "beam" else 1


class Sentence(NamedTuple):
    """One sentence to be translated."""

    index: int
    """The caller's number of it."""
    inputs: np.ndarray
    """[S] int32, as the model reads them."""
    max_length: int
    """Most target tokens, end included."""


class Found(NamedTuple):
    """The n best targets of a sentence."""

    index: int
    result: SearchResult
    """On the host, without the axis B."""


class Slots(NamedTuple):
    """What a device holds of its sentences."""

    beams: Beams
    memory: Memory


class Report(NamedTuple):
    """What the host needs to know of the slots."""

    alive: Array
    """[B]: sentences that are not done."""
    full: Array
    """[]: whether one of them needs a longer cache."""
    finished: SearchResult


class Decoder:
    """The slots of one device and the sentences in them."""

    def __init__(
        self,
        model: Transformer,
        params: Params,
        plan: SearchPlan,
        *,
        slots: int,
        length: int,
    ) -> None:
        """B `slots` for sources of up to S = `length` tokens, on the device where the
        parameters lie."""
        self.model, self.params, self.plan, self.length = model, params, plan, length
        self.at_once = max(1, slots // 8)
        """P: sentences that are encoded together, and wait for as many free slots."""
        self.sentences: list[Sentence | None] = [None] * slots
        self.state = self._empty()

    def run(self, queue: deque[Sentence]) -> Iterator[Found]:
        """Takes sentences from the queue, which others may share, until none is left.

        While some are handed out, the device goes on with the others.
        """
        if any(self.sentences):  # of an earlier run that was not read to its end
            self.sentences = [None] * len(self.sentences)
            self.state = self._empty()
        done: list[Found] = []
        while True:
            self._fill(queue)
            if not any(self.sentences):
                break
            enough = len(self.sentences) - self.at_once if queue else 0
            report = self._advance(enough)
            yield from done
            done = self._take_done(jax.device_get(report))
        yield from done

    def _empty(self) -> Slots:
        return empty_slots(
            self.params,
            model=self.model,
            plan=self.plan,
            slots=len(self.sentences),
            length=self.length,
        )

    def _fill(self, queue: deque[Sentence]) -> None:
        free = [slot for slot, each in enumerate(self.sentences) if each is None]
        while len(free) >= self.at_once and (new := _take(queue, self.at_once)):
            slots, free = free[: len(new)], free[len(new) :]
            for slot, sentence in zip(slots, new, strict=True):
                self.sentences[slot] = sentence
            unused = [len(self.sentences)] * (self.at_once - len(new))
            self.state = refill(
                self.params,
                self.state,
                np.array([*slots, *unused], np.int32),
                *stacked(new, rows=self.at_once, longest=self.length),
                model=self.model,
                plan=self.plan,
            )

    def _advance(self, enough: int) -> Report:
        """Goes on until no more than `enough` sentences are alive."""
        self.state, report = advance(
            self.params,
            self.state,
            np.int32(enough),
            model=self.model,
            plan=self.plan,
        )
        return report

    def _take_done(self, report: Report) -> list[Found]:
        if report.full:
            length = self.state.beams.cache.ancestors.shape[1]
            self.state = grow(self.state, length=min(2 * length, self.plan.max_length))
        done = []
        for slot, sentence in enumerate(self.sentences):
            if sentence is not None and not report.alive[slot]:
                result = jax.tree.map(lambda x, slot=slot: x[slot], report.finished)
                done.append(Found(sentence.index, result))
                self.sentences[slot] = None
        return done


def stacked(
    sentences: Sequence[Sentence], *, rows: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources and their segment ids [P, S], and limits [P], in one of a few shapes;
    rows without a sentence are all padding, and ask for nothing."""
    needed = max(len(each.inputs) for each in sentences)
    length = padded_length(needed, SOURCE_LENGTHS, longest)
    inputs, segment_ids = np.zeros((2, rows, length), np.int32)
    max_lengths = np.zeros(rows, np.int32)
    for row, sentence in enumerate(sentences):
        inputs[row, : len(sentence.inputs)] = sentence.inputs
        segment_ids[row, : len(sentence.inputs)] = 1
        max_lengths[row] = sentence.max_length
    return inputs, segment_ids, max_lengths


@functools.partial(jax.jit, static_argnames=("model", "plan", "slots", "length"))
def empty_slots(
    params: Params, *, model: Transformer, plan: SearchPlan, slots: int, length: int
) -> Slots:
    """B free slots for sources of up to S = `length` tokens."""
    ids = jax.ShapeDtypeStruct((slots, length), jnp.int32)
    encode = functools.partial(encode_memory, model)
    memory = jax.eval_shape(encode, params, ids, ids)
    cache = init_cache(
        model.config, slots, min(FIRST_CACHE, plan.max_length), beams=plan.beams
    )
    nothing = jnp.zeros((slots,), jnp.int32)
    return Slots(
        beams=_first_beams(plan, nothing)._replace(cache=cache),
        memory=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), memory),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def refill(
    params: Params,
    state: Slots,
    slots: Array,
    inputs: Array,
    segment_ids: Array,
    max_lengths: Array,
    *,
    model: Transformer,
    plan: SearchPlan,
) -> Slots:
    """Encodes P sentences, inputs and segment ids [P, S], into `slots` [P].

    The cache stays as it is: a sentence begins at position 0, and never reads what it
    has not written.
    """
    memory = encode_memory(model, params, inputs, segment_ids)
    memory = jax.tree.map(_padded_like, memory, state.memory)
    cache = state.beams.cache
    beams = replace_sentences(
        state.beams._replace(cache=None), _first_beams(plan, max_lengths), slots
    )
    return Slots(
        beams=beams._replace(cache=cache),
        memory=replace_sentences(state.memory, memory, slots),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",)
)
def advance(
    params: Params,
    state: Slots,
    enough: Array,
    *,
    model: Transformer,
    plan: SearchPlan,
) -> tuple[Slots, Report]:
    """Searches on until no more than `enough` sentences are alive, or the cache is too
    short for one of them."""
    room = state.beams.cache.ancestors.shape[1]

    def full(beams: Beams) -> Array:
        return jnp.any(alive(beams) & (beams.lengths >= room))

    def going_on(beams: Beams) -> Array:
        return (alive(beams).sum() > enough) & ~full(beams)

    beams = search_while(
        going_on,
        make_step_fn(model, params),
        state.memory,
        state.beams,
        method_of(plan),
    )
    report = Report(alive(beams), full(beams), beams.finished)
    return state._replace(beams=beams), report


@functools.partial(jax.jit, static_argnames=("length",))
def grow(state: Slots, *, length: int) -> Slots:
    """The same slots with room for `length` target tokens in the cache."""
    cache = longer_cache(state.beams.cache, length)
    return state._replace(beams=state.beams._replace(cache=cache))


def method_of(plan: SearchPlan) -> Advance:
    """How the settings search: logits and beams → beams."""
    search = plan.search
    method = functools.partial(
        advance_greedily if search.method == "greedy" else advance_beams,
        eos_id=plan.eos_id,
        penalties=penalty_table(search.length_penalty, search.alpha, plan.max_length),
        constraints=(banned_tokens(plan.banned),) if plan.banned else (),
    )
    if search.method == "beam":
        method = functools.partial(method, stop=search.stop)
    return method


def _first_beams(plan: SearchPlan, max_lengths: Array) -> Beams:
    """Beams, without cache, of as many sentences as there are limits."""
    start = jnp.full((max_lengths.shape[0], 1), plan.start_id, jnp.int32)
    return first_beams(
        make_job(start, max_lengths, max_length=plan.max_length),
        None,
        beam_size=plan.beams,
        n_best=plan.search.n_best,
        max_length=plan.max_length,
    )


def _padded_like(x: Array, whole: Array) -> Array:
    """Zeros behind x, up to the other's size on every axis but the first."""
    more = zip(x.shape[1:], whole.shape[1:], strict=True)
    return jnp.pad(x, [(0, 0), *((0, large - small) for small, large in more)])


def _take(queue: deque[Sentence], count: int) -> list[Sentence]:
    """Up to `count` sentences; another thread may take the last ones first."""
    taken: list[Any] = []
    while len(taken) < count:
        try:
            taken.append(queue.popleft())
        except IndexError:
            break
    return taken


def decode_side_by_side(
    decoders: Sequence[Decoder], queue: deque[Sentence]
) -> Iterator[Found]:
    """What several devices find, each in a thread of its own, as it comes.

    A device takes the next sentences of the queue when it has room for them.
    """
    if len(decoders) == 1:
        yield from decoders[0].run(queue)
        return
    found: SimpleQueue[Found | BaseException | None] = SimpleQueue()
    stopped = threading.Event()

    def work(decoder: Decoder) -> None:
        try:
            for each in decoder.run(queue):
                found.put(each)
                if stopped.is_set():
                    return
            found.put(None)
        except BaseException as error:  # raised again by the thread that waits
            found.put(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in decoders]
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
