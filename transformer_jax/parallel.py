"""Devices: the mesh, where every array lives on it, and compiled steps.

A mesh has three axes: `data` shares out the batch; `fsdp` shares out the batch and the
parameters too; `tensor` shares out heads, feed-forward widths and the vocabulary. One
device is the mesh of 1 × 1 × 1.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.config import Config, ParallelConfig
from transformer_jax.trees import STACKED, leaves_by_path

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that rows of a batch are shared out over."""

PARAM_RULES: tuple[tuple[str, P], ...] = (
    (r"(.*/)?(query|key|value)/kernel", P("fsdp", "tensor", None)),  # [D, N, H]
    (r"(.*/)?(query|key|value)/bias", P("tensor", None)),  # [N, H]
    (r"(.*/)?[a-z_]*attention/out/kernel", P("tensor", None, "fsdp")),  # [N, H, D]
    (r"(.*/)?feed_forward/(up|gate)/kernel", P("fsdp", "tensor")),  # [D, F]
    (r"(.*/)?feed_forward/(up|gate)/bias", P("tensor")),  # [F]
    (r"(.*/)?feed_forward/down/kernel", P("tensor", "fsdp")),  # [F, D]
    (r"(.*/)?(out|down)/bias", P()),  # [D]
    (r"(.*/)?([a-z_]+_)?norm/(scale|bias)", P()),  # [D]
    # By rows: were the width cut, what is looked up would have to change hands.
    (r"(source|target|shared)_embedding/embedding", P(("tensor", "fsdp"))),  # [V, D]
    (r"(source|target)_positions/embedding", P()),  # [positions, D]
    (r"output/kernel", P("fsdp", "tensor")),  # [D, V]
    (r"output/bias", P("tensor")),  # [V]
)
"""How each parameter is cut over the mesh, by its path; every one must match."""


MOST_CPU_SEARCHES = 8


def devices_side_by_side(wanted: int | None = None) -> list[Any]:
    """Where searches that are independent of each other run: on all devices, or as many
    as `wanted`.

    A CPU is one device, and here as many times as it has cores, up to eight: two
    searches at once are faster than one that has all threads, and what is compiled
    for one serves them all. That is settled when jax is first used in a process, whose
    pool of threads is then bound to the cores; after that, there are as many as there
    are devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    searches = wanted or min(cores, MOST_CPU_SEARCHES)
    in_time = _share_out_cores(searches)
    devices = jax.local_devices()
    if in_time and devices[0].platform == "cpu":
        devices = devices * searches
        if searches > 1:
            _bind_pool()
    if wanted and wanted > len(devices):
        raise ValueError(
            f"{wanted} devices are wanted, and {len(devices)} are here: ask for fewer."
        )
    return devices[:wanted]


def _share_out_cores(searches: int) -> bool:
    """Makes a CPU run the programs of several searches in the threads that ask for
    them; larger pieces still go to threads that all searches share (jax 0.10). →
    whether that was in time: before jax was used."""
    try:
        jax.config.update("jax_num_cpu_devices", 1)
    except RuntimeError:
        return False
    if searches > 1:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        flags = "--xla_cpu_multi_thread_eigen=false", os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
    return True


def _bind_pool() -> None:
    """Binds each of the threads that all searches share to a core of its own: Linux was
    seen to leave two of them on one core for 16 ms at a time, and the other idle."""
    if not hasattr(os, "sched_setaffinity"):
        return
    with contextlib.suppress(OSError):  # where it is not allowed, or a thread has ended
        threads = [
            int(each.name)
            for each in Path("/proc/self/task").iterdir()
            if (each / "comm").read_text().strip() == "tf_XLAEigen"
        ]
        cores = sorted(os.sched_getaffinity(0))
        if len(threads) == len(cores):
            for thread, core in zip(sorted(threads), cores, strict=True):
                os.sched_setaffinity(thread, {core})


def host_device() -> Any | None:
    """The CPU of a single process that computes elsewhere; None where there is none, as
    with JAX_PLATFORMS=cuda."""
    if jax.process_count() > 1 or jax.default_backend() == "cpu":
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def make_mesh(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the settings over all devices, or over those given.

    >>> dict(make_mesh(ParallelConfig(), jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    others = config.fsdp * config.tensor
    data = len(devices) // others if config.data == -1 else config.data
    if data * others != len(devices):
        raise ValueError(
            f"The mesh has parallel.data {config.data} × fsdp {config.fsdp} × tensor "
            f"{config.tensor} devices, and {len(devices)} are here: their product must "
            "be the number of devices. With data -1, the number must be a multiple of "
            "fsdp × tensor."
        )
    if config.wrapper == "pmap" and (others > 1 or jax.process_count() > 1):
        raise ValueError(
            "parallel.wrapper is pmap, which has the data axis only and one process: "
            "set parallel.fsdp and parallel.tensor to 1, or wrapper to jit."
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(
        shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES)
    )


def num_data_shards(mesh: Mesh) -> int:
    """Parts that a batch's rows are cut into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_divisible(config: Config, mesh: Mesh) -> None:
    """Raises unless the sizes of the model divide over the mesh."""
    model = config.model
    vocabulary = ("tensor", "fsdp")
    uses = (
        ("num_heads", model.num_heads, ("tensor",)),
        ("d_ff", model.d_ff, ("tensor",)),
        ("source_vocab_size", model.source_vocab_size, vocabulary),
        ("target_vocab_size", model.target_vocab_size, vocabulary),
        ("d_model", model.d_model, ("fsdp",)),
    )
    for name, size, axes in uses:
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            shared = " × ".join(f"parallel.{axis} {mesh.shape[axis]}" for axis in axes)
            hint = ""
            if name.endswith("vocab_size"):
                more = -(-size // parts) * parts
                hint = f" (to {more}: rows past the tokenizer's pieces do no harm)"
            raise ValueError(
                f"model.{name} is {size}, and the devices that share it are {shared}: "
                f"it must be a multiple. Change one of them{hint}."
            )


# Where arrays live.


def param_specs(params: Any) -> dict[str, P]:
    """The cut of each parameter, by path.

    >>> specs = param_specs({"output": {"kernel": np.zeros((4, 8))}})
    >>> specs["output/kernel"] == P("fsdp", "tensor")
    True
    """
    return {path: PARAM_RULES[_rule(path)][1] for path in leaves_by_path(params)}


def _rule(path: str) -> int:
    """Which of the rules speaks of a parameter."""
    for index, (pattern, _) in enumerate(PARAM_RULES):
        if re.fullmatch(pattern, path):
            return index
    raise ValueError(
        f"No rule says how the parameter {path} is cut over the mesh: add one to "
        "PARAM_RULES in parallel.py."
    )


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for each array of a training state; `state` may be its shapes.

    What has the shape of a parameter and a path that ends with the parameter's (moments
    of an optimizer, averages) is cut as the parameter is; that of stacked layers as the
    one of each, and not between them. The rest (counters, factored moments) is whole on
    every device.
    """
    specs = param_specs(state.params)
    shapes = {path: x.shape for path, x in leaves_by_path(state.params).items()}

    def sharding(path: str, x: Any) -> NamedSharding:
        parts = path.split("/")
        stacked = STACKED in parts
        parts = ["layer_0" if part == STACKED else part for part in parts]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if shapes.get(end) == x.shape[stacked:]:
                whole = (None,) * stacked
                return NamedSharding(mesh, P(*whole, *specs[end]))
        return replicated(mesh)

    leaves = [sharding(path, x) for path, x in leaves_by_path(state).items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    return NamedSharding(mesh, P(ROWS))


def shares_here(mesh: Mesh) -> tuple[int, ...]:
    """Which of the `num_data_shards` parts of a batch's rows this process's devices
    hold, in order. Processes that share out a tensor axis hold the same ones."""
    here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    tensor = mesh.shape["tensor"]
    return tuple(sorted({place // tensor for place, mine in enumerate(here) if mine}))


def rows_here(batch: Any, mesh: Mesh) -> Any:
    """The rows of a whole batch that this process gives to `put_batch`."""
    shards, here = num_data_shards(mesh), list(shares_here(mesh))

    def pick(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.split(x, shards)[share] for share in here])

    return jax.tree.map(pick, batch)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays of rows, of which each process gives those of its `shares_here`."""
    sharding = batch_sharding(mesh)
    shards, here = num_data_shards(mesh), len(shares_here(mesh))

    def put(x: np.ndarray) -> jax.Array:
        rows = len(x) * shards // here
        if rows % shards or len(x) % here:
            raise ValueError(
                f"A batch has {rows} rows for the {shards} devices of the data and "
                "fsdp axes: it must be a multiple. Change data.batch_tokens or the "
                "mesh."
            )
        return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

    return jax.tree.map(put, batch)


def put_key(rng: jax.Array, mesh: Mesh) -> jax.Array:
    """A random key that every process holds, as an array of the whole mesh."""
    data = np.asarray(jax.random.key_data(rng))
    return jax.random.wrap_key_data(jax.device_put(data, replicated(mesh)))


# Compiled steps.

GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""Products by cuBLAS, which adds biases and applies relu as it goes; XLA's own, among
which it would choose, leave that to loops."""


def jit_train_step(step: Callable[..., Any], mesh: Mesh, state_like: Any) -> Any:
    """(state, batch, rng) → (state, metrics), compiled; the state is donated: its
    memory becomes the new state's."""
    state, whole = state_shardings(state_like, mesh), replicated(mesh)
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    return jax.jit(
        step,
        in_shardings=(state, batch_sharding(mesh), whole),
        out_shardings=(state, whole),
        donate_argnums=0,
        compiler_options=GPU_OPTIONS if on_gpu else None,
    )


def jit_eval_step(step: Callable[..., Any], mesh: Mesh, state_like: Any) -> Any:
    """(params, batch) → metrics, compiled."""
    params = state_shardings(state_like, mesh).params
    return jax.jit(
        step,
        in_shardings=(params, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def pmap_train_step(
    make_step: Callable[[Callable[[Any], Any]], Callable[..., Any]], mesh: Mesh
) -> Callable[..., Any]:
    """(state, batch, rng) → (state, metrics) by `jax.pmap` over the data axis, in place
    of `jit_train_step`: it takes and gives the same arrays.

    `make_step(reduce)` builds the step; `reduce` adds a tree over devices. A device
    draws its own dropout, so the two agree only without.
    """
    if mesh.shape["data"] != mesh.size:
        raise ValueError(f"pmap has the data axis only, and the mesh is {mesh.shape}.")
    step = make_step(lambda tree: jax.lax.psum(tree, "data"))

    def on_device(state: Any, batch: Any, rng: jax.Array) -> Any:
        return step(state, batch, jax.random.fold_in(rng, jax.lax.axis_index("data")))

    mapped = jax.pmap(
        on_device,
        axis_name="data",
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    def train_step(state: Any, batch: Any, rng: jax.Array) -> Any:
        by_device = jax.tree.map(
            lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch
        )
        return mapped(state, by_device, rng)

    return train_step
