"""One of two processes: python two_processes.py WORKDIR, with the JAX_… variables set.

Two updates of a matrix, its rows and the batch's shared out over both processes, saved
and restored.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import ParallelConfig
from transformer_jax.processes import join_processes

OPTIMIZER = optax.sgd(1e-3, momentum=0.9)
WHOLE_BATCH = np.arange(64, dtype=np.float32).reshape(8, 8) / 64


class State(NamedTuple):
    params: Any
    opt_state: Any


def init(rng):
    params = {"output": {"kernel": jax.random.normal(rng, (8, 4))}}
    return State(params, OPTIMIZER.init(params))


def step(state, batch, rng):
    def loss(params):
        return ((batch @ params["output"]["kernel"]) ** 2).sum()

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), opt_state), value


def main(workdir: Path) -> None:
    join_processes()
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    mesh = parallel.make_mesh(ParallelConfig(data=1, fsdp=4))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = parallel.state_shardings(shapes, mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    train_step = parallel.jit_train_step(step, mesh, shapes)
    first = 4 * jax.process_index()
    store = CheckpointStore(workdir)
    store.write_run("{}", {"tokenizer.json": b"{}"})
    for count in (1, 2):
        batch = parallel.put_batch(WHOLE_BATCH[first : first + 4], mesh)
        state, _ = train_step(state, batch, jax.random.key(1))
        items = {"params": state.params, "training": state.opt_state}
        store.save(count, items, data_position={"count": count})
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    wanted = {"params": like.params, "training": like.opt_state}
    restored, position = store.restore(wanted)
    assert position == {"count": 2}
    kernels = (restored["params"]["output"]["kernel"], state.params["output"]["kernel"])
    pairs = zip(*(kernel.addressable_shards for kernel in kernels), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine.data, theirs.data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
