"""What sentences may choose their tokens from."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.models.transformer import Output
from transformer_jax.search.shortlist import Choice
from transformer_jax.translation.sentences import Sentence
from transformer_jax.translation.shortlist import joint_choice
from transformer_jax.types import Array, Params


class Offer(NamedTuple):
    """What the sentences choose from: those in the slots, and those that wait."""

    choice: Choice | None
    """Of B + P sentences; None where each may use every token."""
    output: Output


@functools.partial(jax.jit, static_argnames=("model",))
def make_offer(params: Params, ids: Array, allowed: Array, *, model: Any) -> Offer:
    """The columns are picked once for many steps."""
    columns = model.apply({"params": params}, ids, method="output_columns")
    return Offer(Choice(ids, allowed), columns)


@functools.partial(jax.jit, static_argnames=("model",))
def whole_offer(params: Params, *, model: Any) -> Offer:
    """Every token, by an output table that is turned once for all steps."""
    return Offer(None, model.apply({"params": params}, method="output_columns"))


def offer_for(
    sentences: Sequence[Sentence | None],
    whole: Offer | None,
    params: Params,
    *,
    model: Any,
) -> Offer | None:
    """By the sentences' lists of candidates; the `whole` offer where there are none."""
    lists = [
        None
        if each is None or each.candidates is None
        else np.union1d(each.candidates, each.prefix).astype(np.int64)
        for each in sentences
    ]
    if all(each is None for each in lists):
        return whole
    ids, allowed = joint_choice(lists, model.config.target_vocab_size)
    return make_offer(params, ids, allowed, model=model)
