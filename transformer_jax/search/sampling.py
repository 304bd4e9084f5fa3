"""Sampling: targets drawn from the model's distribution, or from the likely part of it.

The samples of a sentence are its K beams: independent draws, with replacement, that
share its memory. Nothing is sorted but the few tokens of top-k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.search.beam import keep_best
from transformer_jax.search.beams import (
    FREE,
    Beams,
    Job,
    alive,
    compelled_tokens,
    first_beams,
    longer,
    make_job,
    search_to_end,
)
from transformer_jax.search.choosing import best_tokens
from transformer_jax.search.constraints import Constraint
from transformer_jax.search.result import LengthPenalty, SearchResult, penalty_table
from transformer_jax.types import Array, Cache, Memory, PRNGKey, StepFn


def sample_search(
    step_fn: StepFn,
    cache: Cache,
    memory: Memory,
    *,
    prefix: Array,
    samples: int,
    max_length: int,
    eos_id: int,
    draws: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_lengths: Array | None = None,
    length_penalty: LengthPenalty = "average",
    alpha: float = 1.0,
    constraints: Sequence[Constraint] = (),
) -> SearchResult:
    """Draws K = `samples` targets of each sentence, token by token, until they end.

    Each token comes from softmax(logits / temperature), of which `top_k` and then
    `top_p` leave the likely part (see `draw_tokens`). What is drawn depends on the
    sentence's `draws` [B, 2] (seed and number), the sample's number, the token's place
    and its logits, and on nothing else. Log-probabilities are the model's own: neither
    tempered nor normalised over what top-k and top-p left, as in other searches. The
    samples come in order of score; there may be equal ones.

    `prefix`, `max_lengths`, the penalty and `constraints` are those of `greedy_search`.
    The cache has R = B·K rows, samples of a sentence side by side.
    """
    job = make_job(prefix, max_lengths, max_length=max_length, draws=draws)
    start = first_samples(job, cache, samples=samples, max_length=max_length)
    penalties = penalty_table(length_penalty, alpha, max_length)

    def advance(logits: Array, beams: Beams) -> Beams:
        return advance_samples(
            logits,
            beams,
            eos_id=eos_id,
            penalties=penalties,
            constraints=constraints,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    return search_to_end(step_fn, memory, start, advance)


def first_samples(job: Job, cache: Cache, *, samples: int, max_length: int) -> Beams:
    """All K samples live, and hold the start token; each goes on from its own cache."""
    beams = first_beams(
        job, cache, beam_size=samples, n_best=samples, max_length=max_length
    )
    shape = beams.log_probabilities.shape
    own = jnp.arange(samples, dtype=beams.parents.dtype)[None, :]
    return beams._replace(
        log_probabilities=jnp.broadcast_to(beams.log_probabilities[:, :1], shape),
        parents=jnp.broadcast_to(own, shape),
    )


def advance_samples(
    logits: Array,
    beams: Beams,
    *,
    eos_id: int,
    penalties: np.ndarray,
    constraints: Sequence[Constraint],
    temperature: float,
    top_k: int,
    top_p: float,
) -> Beams:
    """Logits [B, K, V] of the next token → the state one token later."""
    allowed = logits
    for constrain in constraints:
        allowed = constrain(allowed, beams)
    if beams.job.draws is None:
        raise ValueError("Nothing to draw by: the job needs draws [B, 2].")
    keys = sample_keys(beams.job.draws, beams.lengths, samples=logits.shape[1])
    tokens = draw_tokens(
        keys, allowed, temperature=temperature, top_k=top_k, top_p=top_p
    )
    compelled = compelled_tokens(beams, eos_id)[:, None]
    tokens = jnp.where(compelled == FREE, tokens, compelled)  # [B, K]
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    chosen = chosen - jax.nn.logsumexp(logits, axis=-1)

    lengths = beams.lengths + alive(beams)
    total = beams.log_probabilities + chosen
    histories, of_tokens = longer(beams, beams.parents, tokens, chosen)
    ended = (tokens == eos_id) & (total > -jnp.inf)
    scores = total / jnp.asarray(penalties)[lengths][:, None]
    whole = SearchResult(
        tokens=histories[..., 1:],
        lengths=jnp.broadcast_to(lengths[:, None], ended.shape),
        scores=jnp.where(ended, scores, -jnp.inf),
        log_probabilities=jnp.where(ended, total, -jnp.inf),
        token_log_probabilities=of_tokens,
    )
    return beams._replace(
        lengths=lengths,
        tokens=histories,
        token_log_probabilities=of_tokens,
        log_probabilities=jnp.where(tokens == eos_id, -jnp.inf, total),
        finished=keep_best(beams.finished, whole),
    )


def sample_keys(draws: Array, places: Array, *, samples: int) -> PRNGKey:
    """A key [B, K] for each sample's next token, of draws [B, 2] and places [B].

    The generator is named, as others may mix what is drawn side by side.
    """

    def key_of(draw: Array, place: Array, sample: Array) -> PRNGKey:
        key = jax.random.key(draw[0], impl="threefry2x32")
        for number in (draw[1], sample, place):
            key = jax.random.fold_in(key, number)
        return key

    of_samples = jax.vmap(key_of, in_axes=(None, None, 0))
    of_sentences = jax.vmap(of_samples, in_axes=(0, 0, None))
    return of_sentences(draws, places, jnp.arange(samples))


def draw_tokens(
    keys: PRNGKey, logits: Array, *, temperature: float, top_k: int, top_p: float
) -> Array:
    """A token for each of the logits [B, K, V], with keys [B, K] → [B, K].

    p = softmax(logits / temperature); with `top_k` (0: all) only of the k likeliest,
    the smaller token among equals; then, normalised anew, the nucleus of `top_p` is
    kept (Holtzman et al., 2020, section 3.1). This order is Hugging Face's.

    argmax(log p + Gumbel noise) is a draw from p (Gumbel, 1954), so that no
    probabilities are summed up, and those of forbidden tokens stay out.
    """
    values, tokens = logits, None
    if top_k:
        values, tokens = _best_of_each(logits, min(top_k, logits.shape[-1]))
    values = values / temperature
    if top_p < 1:
        values = nucleus(values, top_p)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, values.shape[-1:])))
    drawn = _best_of_each(values + noise(keys), 1)[1]
    if tokens is not None:
        drawn = jnp.take_along_axis(tokens, drawn, axis=-1)
    return drawn[..., 0]


def nucleus(logits: Array, top_p: float) -> Array:
    """Logits [..., V], -inf where a token is not in the nucleus of `top_p`.

    A token is in it if all tokens likelier than it have less than `top_p` of the
    probability together. So it holds the fewest likeliest tokens that have `top_p`
    between them, and those that equal the last of them.

    The smallest probability in the nucleus is found by bisection of its bits, which are
    in the order of the numbers: thirty sums over the vocabulary in place of a sort.

    >>> jnp.isfinite(nucleus(jnp.log(jnp.array([0.1, 0.6, 0.3])), 0.7)).tolist()
    [False, True, True]
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))  # 1 at most
    wanted = top_p * weights.sum(axis=-1, keepdims=True)
    one = np.float32(1).view(np.int32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # more than `low`, no more than `high`
        middle = low + (high - low) // 2
        least = jax.lax.bitcast_convert_type(middle, jnp.float32)
        above = jnp.where(weights > least, weights, 0.0).sum(axis=-1, keepdims=True)
        inside = above < wanted
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    low, high = jnp.full_like(wanted, -1, jnp.int32), jnp.full_like(wanted, one, "i4")
    steps = int(one).bit_length()
    least = jax.lax.fori_loop(0, steps, halve, (low, high))[1]
    least = jax.lax.bitcast_convert_type(least, jnp.float32)
    return jnp.where(weights >= least, logits, -jnp.inf)


def _best_of_each(values: Array, count: int) -> tuple[Array, Array]:
    """The highest of each of the values [B, K, V], and their tokens: [B, K, count]."""
    sentences, beams, vocab_size = values.shape
    flat = values.reshape(-1, 1, vocab_size)
    best, _, tokens = best_tokens(flat, jnp.zeros_like(flat[..., 0]), count)
    shape = (sentences, beams, count)
    return best.reshape(shape), tokens.reshape(shape)
