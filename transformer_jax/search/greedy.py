"""Greedy search: the likeliest token at each place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.search.beams import (
    FREE,
    Beams,
    alive,
    compelled_tokens,
    first_beams,
    longer,
    make_job,
    search_to_end,
)
from transformer_jax.search.choosing import best_token, log_totals
from transformer_jax.search.constraints import Constraint
from transformer_jax.search.coverage import coverage_score, first_coverage
from transformer_jax.search.result import (
    LengthPenalty,
    SearchResult,
    penalty_table,
)
from transformer_jax.types import Array, Cache, Logits, Memory, StepFn


def greedy_search(
    step_fn: StepFn,
    cache: Cache,
    memory: Memory,
    *,
    prefix: Array,
    max_length: int,
    eos_id: int,
    max_lengths: Array | None = None,
    length_penalty: LengthPenalty = "average",
    alpha: float = 1.0,
    constraints: Sequence[Constraint] = (),
    coverage_penalty: float = 0.0,
    source_mask: Array | None = None,
    scores: bool = True,
) -> SearchResult:
    """Takes the likeliest token (the smallest id among equals) until the end token.

    `prefix` [B, P] begins with the start token; more than that forces how each target
    begins. `max_lengths` [B] bounds each target, end included (default: `max_length`;
    0: do not search); at its last place every target is forced to end, at the price of
    the end token's log-probability. The cache has R = B rows. The penalties only make
    the score: see `beam_search`. Without `scores`, these and all log-probabilities of
    what is found are 0, and nothing is spent on them. Tokens that `constraints` forbid
    are passed over; the others keep their log-probabilities. Where all are forbidden,
    nothing is found. A sentence's result does not depend on the others.
    """
    job = make_job(prefix, max_lengths, max_length=max_length)
    start = first_beams(job, cache, beam_size=1, n_best=1, max_length=max_length)
    coverage = first_coverage(coverage_penalty * scores, source_mask, 1)
    start = start._replace(coverage=coverage)
    penalties = penalty_table(length_penalty, alpha, max_length)

    def advance(logits: Logits, beams: Beams) -> Beams:
        return advance_greedily(
            logits,
            beams,
            eos_id=eos_id,
            penalties=penalties,
            constraints=constraints,
            coverage_penalty=coverage_penalty,
            scores=scores,
        )

    return search_to_end(step_fn, memory, start, advance)


def advance_greedily(
    logits: Logits,
    beams: Beams,
    *,
    eos_id: int,
    penalties: np.ndarray,
    constraints: Sequence[Constraint],
    coverage_penalty: float = 0.0,
    scores: bool = True,
) -> Beams:
    """Logits [B, 1, V] of the next token → the state one token later; without `scores`
    they may be rough."""

    def allow(logits: Array) -> Array:
        for constrain in constraints:
            logits = constrain(logits, beams)
        return logits

    going_on = alive(beams)[:, None]
    compelled = compelled_tokens(beams, eos_id)[:, None]
    best, tokens = best_token(logits, allow, going_on & (compelled == FREE))
    possible = going_on & ((compelled != FREE) | (best > -jnp.inf))
    tokens = jnp.where(compelled == FREE, tokens, compelled)  # [B, 1]
    lengths = beams.lengths + going_on[:, 0]
    chosen = jnp.zeros(tokens.shape)
    if scores:
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        chosen = chosen - log_totals(logits)
    total = jnp.where(possible, beams.log_probabilities + chosen, -jnp.inf)
    penalised = total / jnp.asarray(penalties)[lengths][:, None]
    if beams.coverage is not None:
        penalised += coverage_score(beams.coverage, coverage_penalty)
    histories, of_tokens = longer(beams, beams.parents, tokens, chosen)
    ended = possible & (tokens == eos_id)
    whole = SearchResult(
        tokens=histories[..., 1:],
        lengths=lengths[:, None],
        scores=penalised,
        log_probabilities=total,
        token_log_probabilities=of_tokens,
    )

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(ended if new.ndim == 2 else ended[..., None], new, old)

    return beams._replace(
        lengths=lengths,
        tokens=histories,
        token_log_probabilities=of_tokens,
        log_probabilities=jnp.where(ended, -jnp.inf, total),
        finished=jax.tree.map(keep, whole, beams.finished),
    )
