"""What a search is compiled for, and which search that is."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from transformer_jax.config import SearchConfig
from transformer_jax.search.beam import advance_beams
from transformer_jax.search.beams import Advance
from transformer_jax.search.constraints import Constraint, banned_tokens
from transformer_jax.search.greedy import advance_greedily
from transformer_jax.search.result import penalty_table
from transformer_jax.search.shortlist import Choice, of_all_tokens, within


class SearchPlan(NamedTuple):
    """What a compiled search is made for, apart from array shapes."""

    search: SearchConfig
    max_length: int
    start_id: int
    eos_id: int
    banned: tuple[int, ...]
    prefix_width: int = 1
    """P: most tokens that a target is made to begin with, the start token included."""

    @property
    def beams(self) -> int:
        """K."""
        return self.search.beam_size if self.search.method == "beam" else 1


def method_of(
    plan: SearchPlan, choice: Choice | None = None, *, vocab_size: int = 0
) -> Advance:
    """How the settings search: logits and beams → beams; with a choice of the V =
    `vocab_size` tokens, logits are of these alone."""
    search, eos_id = plan.search, plan.eos_id
    constraints = constraints_of(plan)
    if choice is not None:
        eos_id = choice.place(jnp.int32(eos_id))
        constraints = tuple(
            of_all_tokens(each, choice, vocab_size=vocab_size) for each in constraints
        )
    method = functools.partial(
        advance_greedily if search.method == "greedy" else advance_beams,
        eos_id=eos_id,
        penalties=penalty_table(search.length_penalty, search.alpha, plan.max_length),
        constraints=constraints,
    )
    if search.method == "beam":
        method = functools.partial(method, stop=search.stop)
    return method if choice is None else within(choice, method)


def constraints_of(plan: SearchPlan) -> tuple[Constraint, ...]:
    """Those that the settings ask for; the others are not compiled."""
    return (banned_tokens(plan.banned),) if plan.banned else ()
