"""Phrases that every target must hold.

Each sentence has C phrases of up to W tokens (`Job.phrases`). Beams are offered the
next token of each phrase that they lack, however unlikely it is, and their own best
token, as in dynamic beam allocation (Post and Vilar, 2018; as arrays, Hu et al., 2019).
Beams that paid for a token would lose to those that did not yet: there, the places in
the beam are shared out by how many tokens of phrases are met, and a small beam has too
few places for that. Here one is the furthest beam's, and the others are compared at a
price for what they lack.

A beam's way through a phrase is that of Knuth, Morris and Pratt (1977): where the next
token is not the phrase's, its longest beginning that the target now ends with is left.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.search.choosing import likeliest
from transformer_jax.search.result import SearchResult
from transformer_jax.types import Array

FREE = -1
"""In a phrase: behind its end; in a prefix: a place where the search chooses."""

PRICE = 4.0
"""Nats that a token which a target still lacks is taken to cost. The less, the later
phrases come; the more, the earlier, where they do not belong."""


class Progress(NamedTuple):
    """What the targets hold of their phrases."""

    phrases: Array
    """[B, C, W] int32, `FREE` behind the last token of each."""
    matched: Array
    """[B, K, C] int32: tokens of each phrase that the beam ends with; once it holds the
    whole phrase, always all of them."""
    borders: Array
    """[B, C, W, W] bool, m down and n across: whether the first n tokens of the phrase
    are the last n of its first m."""


class Ways(NamedTuple):
    """Ways to go on from the live beams; all [B, X]."""

    preferences: Array
    """-inf: not possible."""
    parents: Array
    tokens: Array


def first_progress(phrases: Array | None, beam_size: int) -> Progress | None:
    """Of phrases [B, C, W], nothing is there yet. Without phrases there is nothing to
    keep: None."""
    if phrases is None:
        return None
    sentences, count, width = phrases.shape
    place = np.arange(width)
    later = np.minimum(place[:, None] + place, width - 1)
    same = phrases[..., None, :] == phrases[..., later]  # place i and, d behind, i + d
    run = jnp.cumprod(same, axis=-1, dtype=jnp.int32) > 0
    run = jnp.pad(run[..., :-1], [(0, 0)] * 3 + [(1, 0)], constant_values=True)
    apart = place[:, None] - place  # m - n
    borders = run[..., np.maximum(apart, 0), place] & (apart >= 0)[None, None]
    return Progress(
        phrases=phrases,
        matched=jnp.zeros((sentences, beam_size, count), jnp.int32),
        borders=borders,
    )


def sizes_of(progress: Progress) -> Array:
    """[B, 1, C]: tokens of each phrase; 0: there is none."""
    sizes = (progress.phrases != FREE).sum(axis=-1, dtype=jnp.int32)
    return sizes[:, None]


def matched_after(progress: Progress, parents: Array, tokens: Array) -> Array:
    """What targets hold that go on from `parents` [B, X] by `tokens`: [B, X, C].

    >>> found = first_progress(jnp.array([[[7, 7, 8]]]), beam_size=1)
    >>> beam, held = jnp.zeros((1, 1), jnp.int32), []
    >>> for token in (7, 7, 7, 8, 9):
    ...     new = matched_after(found, beam, jnp.array([[token]]))
    ...     found = found._replace(matched=new)
    ...     held.append(new.item())
    >>> held
    [1, 2, 2, 3, 3]
    """
    width = progress.phrases.shape[-1]
    before = jnp.take_along_axis(progress.matched, parents[..., None], axis=1)
    row = jnp.minimum(before, width - 1)  # those that are whole go no further
    borders = progress.borders[:, None]  # [B, 1, C, W, W]
    ends = jnp.take_along_axis(borders, row[..., None, None], axis=-2)[..., 0, :]
    ends = ends & (progress.phrases[:, None] == tokens[..., None, None])  # [B, X, C, W]
    counts = jnp.arange(1, width + 1, dtype=jnp.int32)
    after = jnp.where(ends, counts[None, None, None, :], 0).max(axis=-1)
    return jnp.where(before == sizes_of(progress), before, after)


def without_early_end(logits: Array, progress: Progress, eos_id: int | Array) -> Array:
    """Logits [B, K, V] that let no target end that lacks a phrase."""
    lacks = jnp.any(progress.matched < sizes_of(progress), axis=-1)
    ends = jnp.arange(logits.shape[-1]) == eos_id
    return jnp.where(lacks[..., None] & ends[None, None, :], -jnp.inf, logits)


def with_next_tokens(
    ways: Ways, logits: Array, offsets: Array, progress: Progress
) -> Ways:
    """The ways, and each beam's ways on through the phrases that it lacks and by its
    best token, those apart that are there already: [B, X + K·(C + 1)]. Without the best
    tokens a beam that paid for its phrases would be lost among those that did not.
    Sums are of offsets [B, K] and logits."""
    sentences, beam_size, count = progress.matched.shape
    lacks = progress.matched < sizes_of(progress)
    phrases = progress.phrases
    place = jnp.minimum(progress.matched, phrases.shape[-1] - 1)[..., None]
    tokens = jnp.take_along_axis(phrases[:, None], place, axis=-1)[..., 0]
    tokens = jnp.where(lacks, tokens, 0)
    best = likeliest(logits).astype(tokens.dtype)[..., None]
    tokens = jnp.concatenate([tokens, best], axis=-1)  # [B, K, C + 1]
    lacks = jnp.concatenate([lacks, jnp.ones_like(best, bool)], axis=-1)
    sums = offsets[..., None] + jnp.take_along_axis(logits, tokens, axis=-1)

    # Several may be the same token: the first one counts.
    same = tokens[..., None] == tokens[..., None, :]
    same = same & lacks[..., None, :] & jnp.tri(count + 1, k=-1, dtype=bool)[None, None]
    beams = jnp.arange(beam_size)[None, :, None, None]
    there = (ways.parents[:, None, None] == beams) & (
        ways.tokens[:, None, None] == tokens[..., None]
    )
    new = lacks & ~jnp.any(same, axis=-1) & ~jnp.any(there, axis=-1)
    parents = jnp.broadcast_to(beams[..., 0], tokens.shape)
    more = Ways(jnp.where(new, sums, -jnp.inf), parents, tokens)
    return Ways(
        *(
            jnp.concatenate([one, other.reshape(sentences, -1)], axis=1)
            for one, other in zip(ways, more, strict=True)
        )
    )


def shared_out(ways: Ways, progress: Progress, room: Array) -> Array:
    """Preferences [B, X] by which the beam takes some of the ways.

    First comes the best of those that hold the most tokens of phrases: of those that
    are whole, and of the one that is furthest. So all come in time, however unlikely
    they are. The others are compared as if each token that they lack had cost `PRICE`.
    Ways that may not have the `room` [B] for what they lack come last.
    """
    matched = matched_after(progress, ways.parents, ways.tokens)
    sizes = sizes_of(progress)
    whole = matched == sizes
    held = jnp.where(whole, matched, 0).sum(axis=-1)
    held = held + jnp.where(whole, 0, matched).max(axis=-1)  # [B, X]
    lacked = sizes.sum(axis=-1) - held

    possible = ways.preferences > -jnp.inf
    most = jnp.where(possible, held, -1).max(axis=-1, keepdims=True)
    furthest = jnp.where(held == most, ways.preferences, -jnp.inf)
    index = jnp.arange(held.shape[1])[None, :]
    first = index == jnp.argmax(furthest, axis=-1, keepdims=True)
    value = ways.preferences - PRICE * lacked
    _, order = jax.lax.top_k(value, held.shape[1])
    turn = jnp.argsort(order, axis=-1)
    turn = jnp.where(first, -1, turn)
    turn = turn + jnp.where(lacked > room[:, None], held.shape[1], 0)
    return jnp.where(possible, -turn.astype(jnp.float32), -jnp.inf)


def fewest_lacking(
    old: SearchResult, new: SearchResult, parents: Array, progress: Progress
) -> SearchResult:
    """Of the targets that end now, of `parents` [B, K], what does not lack the fewest
    phrases of all has score -inf.

    Those that ended before, `old`, lack none: only at a sentence's last place may a
    target end that lacks some.
    """
    lacks = (progress.matched < sizes_of(progress)).sum(axis=-1)
    lacks = jnp.take_along_axis(lacks, parents, axis=1)
    most = progress.phrases.shape[1]
    fewest = jnp.where(new.scores > -jnp.inf, lacks, most).min(axis=-1)
    fewest = jnp.where(jnp.any(old.scores > -jnp.inf, axis=-1), 0, fewest)
    worse = lacks > fewest[:, None]
    return new._replace(scores=jnp.where(worse, -jnp.inf, new.scores))
