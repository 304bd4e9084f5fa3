"""A search that may use only some tokens: U places in place of V token ids.

The step gives logits of U tokens alone, which all sentences share; each may use some of
these. A method of search then works on places: here they are made from token ids, and
become token ids again in what it returns, so that it need not know.
"""

from typing import NamedTuple

import jax.numpy as jnp

from transformer_jax.search.beams import FREE, Advance, Beams, alive
from transformer_jax.search.constraints import Constraint
from transformer_jax.types import Array


class Choice(NamedTuple):
    """The tokens that a step gives logits of, and who may use which."""

    ids: Array
    """[U] int32, growing; from some place on, numbers that are no token's."""
    allowed: Array
    """[B, U] bool: what each sentence may use; its softmax is over these."""

    def place(self, tokens: Array) -> Array:
        """Where these token ids are; `FREE` stays."""
        places = jnp.searchsorted(self.ids, tokens).astype(jnp.int32)
        return jnp.where(tokens == FREE, FREE, places)


def within(choice: Choice, advance: Advance) -> Advance:
    """A method of search on U places as one on token ids; logits are [B, K, U]."""

    def advance_ids(logits: Array, beams: Beams) -> Beams:
        job = beams.job
        logits = jnp.where(choice.allowed[:, None], logits, -jnp.inf)
        inside = beams._replace(job=job._replace(prefix=choice.place(job.prefix)))
        progress = beams.progress
        if progress is not None:
            placed = progress._replace(phrases=choice.place(progress.phrases))
            inside = inside._replace(progress=placed)
        found = advance(logits, inside)
        if progress is not None and found.progress is not None:
            kept = found.progress._replace(phrases=progress.phrases)
            found = found._replace(progress=kept)

        # Only what was added in this step holds places.
        new, finished = found.lengths[:, None], found.finished
        grown = alive(beams)[:, None]
        tokens = _ids_at(found.tokens, new, grown, choice.ids)
        added = grown & (finished.lengths == new)
        ended = _ids_at(finished.tokens, new - 1, added, choice.ids)
        return found._replace(
            job=job, tokens=tokens, finished=finished._replace(tokens=ended)
        )

    return advance_ids


def of_all_tokens(
    constrain: Constraint, choice: Choice, *, vocab_size: int
) -> Constraint:
    """A constraint on logits of V tokens as one on those of U places."""

    def constrain_places(logits: Array, beams: Beams) -> Array:
        whole = jnp.full((*logits.shape[:2], vocab_size), -jnp.inf, logits.dtype)
        whole = whole.at[..., choice.ids].set(logits, mode="drop")
        whole = constrain(whole, beams)
        return whole.at[..., choice.ids].get(mode="fill", fill_value=-jnp.inf)

    return constrain_places


def _ids_at(tokens: Array, place: Array, which: Array, ids: Array) -> Array:
    """Tokens [B, X, T]: at `place` [B, 1], of hypotheses `which` [B, X or 1], token ids
    in place of places."""
    place = place[..., None]
    here = jnp.arange(tokens.shape[-1])[None, None, :] == place
    found = ids.at[jnp.take_along_axis(tokens, place, axis=-1)].get(mode="clip")
    return jnp.where(here & which[..., None], found, tokens)
