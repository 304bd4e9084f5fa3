"""What a search is compiled for, and which search that is."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from transformer_jax.config import SearchConfig
from transformer_jax.models.transformer import Transformer
from transformer_jax.search.beam import advance_beams
from transformer_jax.search.beams import Advance
from transformer_jax.search.constraints import (
    Constraint,
    banned_sequences,
    banned_tokens,
    minimum_length,
    no_repeated_ngram,
)
from transformer_jax.search.greedy import advance_greedily
from transformer_jax.search.result import penalty_table
from transformer_jax.search.sampling import advance_samples
from transformer_jax.search.shortlist import Choice, of_all_tokens, within
from transformer_jax.translation.ensembles import AnyModel, Ensemble


class SearchPlan(NamedTuple):
    """What a compiled search is made for, apart from array shapes."""

    search: SearchConfig
    max_length: int
    start_id: int
    eos_id: int
    banned: tuple[int, ...]
    prefix_width: int = 1
    """P: most tokens that a target is made to begin with, the start token included."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Of at least two tokens each."""
    phrases: tuple[int, int] | None = None
    """C and W: most phrases that a target must hold, and most tokens of one; None: no
    target must hold any."""
    scores: bool = True
    """Whether scores are wanted; greedy search a token at a time can do without."""
    draft: Transformer | None = None
    """A smaller model that guesses, where `search.block` is above 1."""

    @property
    def beams(self) -> int:
        """K."""
        return self.search.beams

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.search.method == "sampling"


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
    advance = {
        "greedy": advance_greedily,
        "beam": advance_beams,
        "sampling": advance_samples,
    }[search.method]
    method = functools.partial(
        advance,
        eos_id=eos_id,
        penalties=penalty_table(search.length_penalty, search.alpha, plan.max_length),
        constraints=constraints,
    )
    if search.method != "sampling":
        method = functools.partial(method, coverage_penalty=search.coverage_penalty)
    if search.method == "greedy":
        method = functools.partial(method, scores=plan.scores)
    if search.method == "beam":
        method = functools.partial(
            method,
            stop=search.stop,
            diversity_rate=search.diversity_rate,
            beam_size=plan.beams,
        )
    if search.method == "sampling":
        method = functools.partial(
            method,
            temperature=search.temperature,
            top_k=search.top_k,
            top_p=search.top_p,
        )
    return method if choice is None else within(choice, method)


def constraints_of(plan: SearchPlan) -> tuple[Constraint, ...]:
    """Those that the settings ask for; the others are not compiled."""
    search, found = plan.search, []
    if plan.banned:
        found.append(banned_tokens(plan.banned))
    if plan.banned_sequences:
        found.append(banned_sequences(plan.banned_sequences))
    if search.min_length:
        found.append(minimum_length(search.min_length, plan.eos_id))
    if search.no_repeat_ngram:
        found.append(no_repeated_ngram(search.no_repeat_ngram))
    return tuple(found)


def check_shortlist(plan: SearchPlan, model: AnyModel) -> None:
    """Raises ValueError for searches that know no shortlists."""
    search = plan.search
    if search.method == "sampling" or search.block > 1 or isinstance(model, Ensemble):
        raise ValueError(
            "A shortlist works with greedy and beam search by one model, a token at a "
            f"time; method is {search.method}, block {search.block}"
            f"{', and the model an ensemble' if isinstance(model, Ensemble) else ''}: "
            "leave out the shortlist, or the other."
        )
