"""What sentences may choose their tokens from."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.models.output import Output, RoughOutput
from transformer_jax.search.shortlist import Choice
from transformer_jax.translation.ensembles import AnyModel, Ensemble
from transformer_jax.translation.methods import SearchPlan
from transformer_jax.translation.sentences import Sentence
from transformer_jax.translation.shortlist import joint_choice
from transformer_jax.types import Array, Params

FEWEST_ROUGH = 4
"""Slots from which on rough logits pay: a single row is no faster with them."""


class Offer(NamedTuple):
    """What the sentences choose from: those in the slots, and those that wait."""

    choice: Choice | None
    """Of B + P sentences; None where each may use every token."""
    output: Output | RoughOutput


@functools.partial(jax.jit, static_argnames=("model",))
def make_offer(params: Params, ids: Array, allowed: Array, *, model: Any) -> Offer:
    """The columns are picked once for many steps."""
    columns = model.apply({"params": params}, ids, method="output_columns")
    return Offer(Choice(ids, allowed), columns)


@functools.partial(jax.jit, static_argnames=("model", "rough"))
def whole_offer(params: Params, *, model: Any, rough: bool = False) -> Offer:
    """Every token, by an output table that is turned once for all steps, and rounded if
    `rough`."""
    method = "rough_output" if rough else "output_columns"
    return Offer(None, model.apply({"params": params}, method=method))


class WholeOffers:
    """What sentences without lists of their own choose from, where it pays to have the
    output table twice: on a CPU, which would turn the target embedding at every step.
    Each kind is made when it is first asked for."""

    def __init__(self, model: AnyModel, params: Params, platform: str) -> None:
        self.model, self.params, self.platform = model, params, platform
        self.made: dict[bool, Offer] = {}

    def for_search(self, plan: SearchPlan, slots: int) -> Offer | None:
        """For a search in so many slots; None where the parameters serve as well."""
        if isinstance(self.model, Ensemble) or plan.search.block > 1:
            return None
        config = self.model.config
        if not (self.platform == "cpu" and config.output_is_target_table):
            return None
        rough = (
            plan.search.method == "greedy"
            and not plan.scores
            and slots >= FEWEST_ROUGH
            and {config.dtype, config.param_dtype} == {"float32"}
            and multiplies_bfloat16()
        )
        if rough not in self.made:
            self.made[rough] = whole_offer(self.params, model=self.model, rough=rough)
        return self.made[rough]


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this computer's processor does, so that XLA need not go by float32."""
    about = Path("/proc/cpuinfo")
    return about.exists() and "avx512_bf16" in about.read_text().split()


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
