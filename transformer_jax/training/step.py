"""Pure train and eval steps, built by closing over what is static."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax.data.batching import Batch
from transformer_jax.training.metrics import Mean, Metrics, merge
from transformer_jax.training.objectives import Objective
from transformer_jax.training.state import TrainState
from transformer_jax.trees import stack_layers, unstack_layers
from transformer_jax.types import Params, PRNGKey

TrainStep = Callable[[TrainState, Batch, PRNGKey], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Batch], Metrics]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    stacked: bool = False,
    reduce: Callable[[Any], Any] = lambda tree: tree,
) -> TrainStep:
    """(state, batch, rng) → (state, metrics): one update.

    The *summed* loss is differentiated; sums are added over `accumulate` micro-batches
    and by `reduce` over devices (identity under jit, psum under pmap), and divided once
    by the count of target tokens. An update whose loss or gradient is not finite leaves
    parameters and optimizer as they were, and is counted.

    With `stacked`, gradients and the optimizer see parameters as `stack_layers` gives
    them, so that what is compiled for them does not grow with depth: for a model that
    runs its layers in a loop, and a state that was made so.
    """
    stack, unstack = (stack_layers, unstack_layers) if stacked else (_same, _same)

    def train_step(
        state: TrainState, batch: Batch, rng: PRNGKey
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(rng, state.step)
        old, old_average = stack(state.params), stack(state.ema_params)
        grads, metrics = reduce(
            _summed_gradients(objective, old, batch, rng, accumulate)
        )
        tokens = jnp.maximum(metrics["loss"].weight, 1)
        grads = jax.tree.map(lambda g, p: (g / tokens).astype(p.dtype), grads, old)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"].sum)

        def update(_: None) -> tuple[Params, optax.OptState, Params | None]:
            updates, opt_state = optimizer.update(grads, state.opt_state, old)
            params = optax.apply_updates(old, updates)
            return params, opt_state, _average(old_average, params, ema_decay)

        def skip(_: None) -> tuple[Params, optax.OptState, Params | None]:
            return old, state.opt_state, old_average

        with jax.named_scope("optimizer"):
            params, opt_state, ema_params = jax.lax.cond(ok, update, skip, None)
        bad = (~ok).astype(jnp.int32)
        one = jnp.ones((), jnp.float32)
        metrics["grad_norm"] = Mean(norm, one)
        metrics["skipped"] = Mean(bad.astype(jnp.float32), one)
        state = TrainState(
            step=state.step + 1,
            params=unstack(params),
            opt_state=opt_state,
            ema_params=unstack(ema_params),
            bad_steps=(state.bad_steps + 1) * bad,
            skipped_steps=state.skipped_steps + bad,
        )
        return state, metrics

    return train_step


def make_eval_step(objective: Objective) -> EvalStep:
    """(params, batch) → metrics, with nothing random."""

    def eval_step(params: Params, batch: Batch) -> Metrics:
        return objective(params, batch, None)[1]

    return eval_step


def _same(params: Params) -> Params:
    return params


def _summed_gradients(
    objective: Objective, params: Params, batch: Batch, rng: PRNGKey, accumulate: int
) -> tuple[Params, Metrics]:
    """Gradients of the summed loss, and metrics, added over micro-batches of rows.

    Many are added in float32, whatever the parameters are stored in.
    """
    gradients = jax.grad(objective, has_aux=True)
    if accumulate == 1:
        return gradients(params, batch, rng)
    # Row b goes to micro-batch b mod k, so that each holds rows of every device.
    micro_batches = jax.tree.map(
        lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total: tuple[Params, Metrics], micro_batch: tuple[Batch, PRNGKey]):
        grads, metrics = gradients(params, *micro_batch)
        grads = jax.tree.map(jnp.add, total[0], grads)
        return (grads, merge(total[1], metrics)), None

    rngs = jax.random.split(rng, accumulate)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradients, params, first, rngs[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, (micro_batches, rngs))[0]


def _average(average: Params | None, params: Params, decay: float) -> Params | None:
    """decay · average + (1 - decay) · params, where an average is kept."""
    if average is None:
        return None
    return jax.tree.map(
        lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params
    )
