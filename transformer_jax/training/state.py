"""What a training carries from step to step, and saves."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from transformer_jax.trees import stack_layers
from transformer_jax.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state and counters; a pytree."""

    step: Array
    """Updates done, skipped ones included: int32."""
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None
    """Exponential average of the parameters in float32, or None."""
    bad_steps: Array
    """Updates skipped in a row, because loss or gradient was not finite: int32."""
    skipped_steps: Array
    """Updates skipped in all: int32."""


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    stacked: bool = False,
) -> TrainState:
    """The state before the first update of these parameters; with `stacked`, the
    optimizer's part is of layers that are stacked (see `make_train_step`)."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(stack_layers(params) if stacked else params),
        ema_params=jax.tree.map(_float32_copy, params) if ema else None,
        bad_steps=jnp.copy(zero),
        skipped_steps=jnp.copy(zero),
    )


def _float32_copy(x: Array) -> Array:
    # Steps of an average are too small for bfloat16, which would not move.
    return jnp.array(x, jnp.float32, copy=True)
