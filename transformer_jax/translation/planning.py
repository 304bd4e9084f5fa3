"""Which sentences are translated side by side, and in which of a few shapes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

SOURCE_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Padded lengths at which sources are encoded: each that is met is compiled once."""
FINE_LENGTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, *SOURCE_LENGTHS[6:])
"""The same where so many sentences come that less padding is worth more compiling
(`rows_for` pads their number less, too)."""
GROUP_LENGTHS = (32, 64, 128, 256, 512, 1024)
"""Source lengths that slots have room for: each that is met is compiled once too."""
CPU_ROWS = 150
"""Rows that a CPU searches side by side at most: keys and values of more do not stay in
its caches from step to step, and products are no faster, so that all take longer."""
ROWS_TOGETHER = 30
"""What a CPU's rows come in, where there are as many: with fewer each takes longer,
with more hardly less. XLA's kernels (YNNPACK) multiply five rows at a time with AVX-512
and six with AVX2, and two that are left over take as long as a full set."""
MOST_WAITING = 64
"""Sentences that are encoded together at most."""


class Group(NamedTuple):
    """Sentences that share the slots of a device, the longest first."""

    indices: np.ndarray
    """Places of the sentences in the list given."""
    slots: int
    """Sentences that are searched side by side."""
    length: int
    """Most source positions of a slot."""
    allowed: int
    """Slots that it could have at this length."""


def plan_groups(
    lengths: Sequence[int],
    *,
    positions: int,
    longest: int,
    allowed_slots: Callable[[int], int] = lambda slots: slots,
    wanted_slots: Callable[[int], int] | None = None,
) -> Iterator[Group]:
    """Longest sentences first, as many slots as `positions` allow at their length, and
    `allowed_slots` of so many.

    A group's length is the first of `GROUP_LENGTHS` that holds its longest sentence,
    but at most `longest`. Shorter ones fill its slots, and stay in the group unless
    their own length is a quarter at most or has more slots, and they can fill these.
    They have `wanted_slots` of their number, if no more than are allowed: by default
    the power of four that holds them all.

    >>> groups = plan_groups([70, 9, 3, 2, 4, 5], positions=128, longest=1024)
    >>> [(group.indices.tolist(), group.slots, group.length) for group in groups]
    [([0], 1, 128), ([1, 5, 4, 2, 3], 4, 32)]
    """
    wanted_slots = wanted_slots or next_power_of_four
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")

    def slots_at(length: int) -> int:
        return allowed_slots(full_rows(positions, length))

    start = 0
    while start < len(order):
        length = padded_length(lengths[order[start]], GROUP_LENGTHS, longest)
        stop = min(start + slots_at(length), len(order))
        while stop < len(order):
            shorter = padded_length(lengths[order[stop]], GROUP_LENGTHS, longest)
            more = slots_at(shorter)
            pays = more > slots_at(length) or 4 * shorter <= length
            if pays and len(order) - stop >= more:
                break
            stop += 1
        most = slots_at(length)
        slots = min(most, wanted_slots(stop - start))
        yield Group(order[start:stop], slots, length, most)
        start = stop


def most_slots(slots: int, *, beams: int, batch_size: int | None, platform: str) -> int:
    """Of so many slots, those that a device of that platform should have.

    >>> [most_slots(512, beams=5, batch_size=128, platform=x) for x in ("cpu", "gpu")]
    [30, 128]
    >>> [most_slots(128, beams=n, batch_size=None, platform="cpu") for n in (1, 4)]
    [120, 30]
    >>> [most_slots(128, beams=1, batch_size=n, platform="cpu") for n in (8, 40)]
    [8, 30]
    """
    slots = min(slots, batch_size or slots)
    if platform != "cpu":
        return slots
    slots, together = min(slots, max(1, CPU_ROWS // beams)), _slots_together(beams)
    return slots // together * together or slots


def slots_wanted(sentences: int, *, beams: int, devices: int, platform: str) -> int:
    """Slots that each device should have for so many sentences that all share.

    All at the same time pay where a step takes as long for many as for few. On a CPU it
    does not: there each slot should serve two to four, so that few stand empty at the
    end, but a core be kept busy.

    >>> [slots_wanted(n, beams=1, devices=2, platform="cpu") for n in (1, 9, 240, 900)]
    [1, 16, 30, 120]
    >>> [slots_wanted(n, beams=5, devices=2, platform="cpu") for n in (1, 9, 240, 900)]
    [1, 6, 48, 192]
    >>> [slots_wanted(40, beams=n, devices=2, platform="cpu") for n in (4, 8)]
    [8, 8]
    >>> slots_wanted(240, beams=5, devices=1, platform="gpu")
    256
    """
    all_of_them = next_power_of_four(sentences)
    if platform != "cpu":
        return all_of_them
    slots = -(-ROWS_TOGETHER // beams)
    while 4 * devices * slots < sentences:
        slots *= 2
    return min(slots, all_of_them)


def are_many(sentences: int, *, devices: int, platform: str) -> bool:
    """Whether so many sentences that devices share are worth more programs: a siding's,
    and on a CPU those for finer lengths of sources. A siding pays sooner there, as a
    step with fewer rows takes less time.

    >>> [are_many(n, devices=2, platform="cpu") for n in (127, 128)]
    [False, True]
    >>> are_many(127, devices=1, platform="gpu")
    False
    """
    return sentences >= devices * (64 if platform == "cpu" else 128)


def _slots_together(beams: int) -> int:
    """The fewest slots with a multiple of `ROWS_TOGETHER` rows."""
    return ROWS_TOGETHER // math.gcd(ROWS_TOGETHER, beams)


def most_waiting(slots: int) -> int:
    """Sentences that are encoded together, and then wait for one of so many slots.

    >>> most_waiting(8), most_waiting(512)
    (8, 64)
    """
    return min(slots, MOST_WAITING)


def taken_together(left: int, most: int, *, sharing: int) -> int:
    """Sentences that one of `sharing` devices encodes next, of so many that are left:
    towards the end fewer, so that all end together, but not very few, as each time has
    its price.

    >>> [taken_together(n, 64, sharing=2) for n in (1000, 200, 40)]
    [64, 50, 16]
    >>> taken_together(40, 64, sharing=1)
    64
    """
    if sharing == 1:
        return most
    return max(-(-most // 4), min(most, left // (2 * sharing)))


def rows_for(sentences: int, most: int) -> int:
    """Rows in which so many sentences are encoded, where up to `most` may be.

    >>> [rows_for(n, 64) for n in (9, 17, 40)]
    [16, 32, 64]
    """
    return padded_length(sentences, (-(-most // 4), -(-most // 2)), most)


def padded_length(length: int, ladder: Sequence[int], longest: int) -> int:
    """The first of the ladder that is not below `length`, but at most `longest`.

    >>> padded_length(20, SOURCE_LENGTHS, 1024), padded_length(20, SOURCE_LENGTHS, 22)
    (24, 22)
    """
    return min(next((size for size in ladder if size >= length), longest), longest)


def room_for(length: int) -> int:
    """The least of 1, 1½, 2, 3, 4, 6, 8, … times 16 that is not below `length`: cache
    lengths, each of which is compiled when it is met.

    >>> [room_for(length) for length in (7, 20, 33, 50, 65, 97)]
    [16, 24, 48, 64, 96, 128]
    """
    whole = 16
    while whole < length and whole * 3 // 2 < length:
        whole *= 2
    return whole if length <= whole else whole * 3 // 2


def full_rows(positions: int, length: int) -> int:
    """Rows of `length` for that many positions: at least one, and a multiple of eight
    when more than that.

    >>> full_rows(4096, 24), full_rows(100, 24), full_rows(10, 24)
    (168, 4, 1)
    """
    rows = max(1, positions // length)
    return rows if rows < 8 else rows // 8 * 8


def next_power_of_four(count: int) -> int:
    """The least power of four that is not below `count`.

    >>> [next_power_of_four(n) for n in (1, 2, 4, 5, 64)]
    [1, 4, 4, 16, 64]
    """
    power = 1
    while power < count:
        power *= 4
    return power
