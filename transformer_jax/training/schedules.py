"""Learning-rate schedules: update count → rate. The first update is step 1."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from transformer_jax.config import OptimizerConfig
from transformer_jax.types import Array


def inverse_sqrt(peak: float, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then peak · √(warmup / step).

    >>> [round(float(inverse_sqrt(1.0, 100)(count)), 2) for count in (0, 49, 99, 399)]
    [0.01, 0.5, 1.0, 0.5]
    """

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count, jnp.float32) + 1
        return peak * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / step))

    return schedule


def paper(factor: float, d_model: int, warmup_steps: int) -> optax.Schedule:
    """factor · d_model^-0.5 · min(step^-0.5, step · warmup^-1.5): equation 3 of the
    paper, which is `inverse_sqrt` with the peak factor / √(d_model · warmup).

    >>> round(float(paper(1.0, 512, 4000)(3999)), 6)
    0.000699
    """
    return inverse_sqrt(factor * (d_model * warmup_steps) ** -0.5, warmup_steps)


def decay(
    shape: str, peak: float, warmup_steps: int, horizon: int, final_ratio: float
) -> optax.Schedule:
    """Linear warm-up to `peak`, then down to final_ratio · peak at step `horizon`, in a
    straight line ("linear") or along half a cosine ("cosine"), and level from there.

    >>> schedule = decay("cosine", 1.0, 10, 110, 0.0)
    >>> [round(float(schedule(count)), 2) for count in (0, 9, 59, 109, 500)]
    [0.1, 1.0, 0.5, 0.0, 0.0]
    """

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count, jnp.float32) + 1
        travelled = jnp.clip((step - warmup_steps) / (horizon - warmup_steps), 0, 1)
        if shape == "cosine":
            travelled = (1 - jnp.cos(jnp.pi * travelled)) / 2
        rate = 1 - (1 - final_ratio) * travelled
        return peak * jnp.minimum(step / max(warmup_steps, 1), rate)

    return schedule


def constant(peak: float, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then level.

    >>> [float(constant(1.0, 4)(count)) for count in (0, 3, 99)]
    [0.25, 1.0, 1.0]
    """

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count, jnp.float32) + 1
        return peak * jnp.minimum(step / max(warmup_steps, 1), 1)

    return schedule


def make_schedule(config: OptimizerConfig, d_model: int) -> optax.Schedule:
    """The schedule that the settings name."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return inverse_sqrt(peak, warmup)
    if config.schedule == "paper":
        return paper(peak, d_model, warmup)
    if config.schedule == "constant":
        return constant(peak, warmup)
    return decay(
        config.schedule, peak, warmup, config.schedule_steps, config.final_ratio
    )
