"""However devices are arranged, a step gives the same parameters."""

import functools
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, ModelConfig, OptimizerConfig, ParallelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models.functions import init_params
from transformer_jax.models.transformer import Transformer
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_state
from transformer_jax.training.step import make_eval_step, make_train_step
from transformer_jax.trees import leaves_by_path

TINY = ModelConfig(
    num_encoder_layers=2,
    num_decoder_layers=1,
    d_model=16,
    d_ff=32,
    num_heads=4,
    dropout=0.0,
    source_vocab_size=24,
    target_vocab_size=24,
)
VARIANTS = {
    "plain": {},
    "untied": {
        "tied_embeddings": "none",
        "positions": "learned",
        "max_positions": 16,
        "output_bias": True,
    },
    "pre_gated": {"norm_position": "pre", "gated": True, "activation": "silu"},
    "half_tied": {"tied_embeddings": "source_target", "attention_bias": False},
    "target_output": {"tied_embeddings": "target_output"},
}


def make_mesh(data, fsdp, tensor):
    config = ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
    return parallel.make_mesh(config, jax.devices()[: data * fsdp * tensor])


def make_batch(rows=16, source=7, target=6):
    rng = np.random.default_rng(0)

    def side(length):
        used = rng.integers(1, length + 1, size=rows)
        segments = (np.arange(length) < used[:, None]).astype(np.int32)
        ids = rng.integers(4, 24, size=(rows, length)).astype(np.int32) * segments
        positions = np.arange(length, dtype=np.int32) * segments
        return ids, segments, positions

    inputs, targets = side(source), side(target)
    decoder_inputs = np.roll(targets[0], 1, axis=1) * targets[1]
    return Batch(*inputs, decoder_inputs, *targets)


def parts(optimizer: Any = None, *, stacked: bool = False, **model):
    config = ModelConfig(**{**TINY.__dict__, **model})
    net = Transformer(config)
    # Linear in the gradient; Adam would blow up the rounding noise of those near 0.
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    objective = make_objective(net, 0.1, deterministic=True)

    def init(rng):
        return init_state(init_params(net, rng), optimizer, stacked=stacked)

    make_step = functools.partial(
        make_train_step, objective, optimizer, stacked=stacked
    )
    return init, make_step


@functools.cache
def fresh_state(*, stacked=False):
    """A state on the host, and its shapes."""
    init, _ = parts(**VARIANTS["untied"], scan_layers=stacked, stacked=stacked)
    return (
        jax.device_get(jax.jit(init)(jax.random.key(0))),
        jax.eval_shape(init, jax.random.key(0)),
    )


def placed(mesh, *, stacked=False):
    state, shapes = fresh_state(stacked=stacked)
    return jax.device_put(state, parallel.state_shardings(shapes, mesh)), shapes


def train(mesh, *, steps=2, wrap="jit", stacked=False):
    _, make_step = parts(**VARIANTS["untied"], scan_layers=stacked, stacked=stacked)
    state, shapes = placed(mesh, stacked=stacked)
    first = state
    batch, rng = parallel.put_batch(make_batch(), mesh), jax.random.key(1)
    if wrap == "jit":
        jitted = parallel.jit_train_step(make_step(), mesh, shapes)
        quick_to_compile = {"xla_backend_optimization_level": 0}
        step = jitted.lower(state, batch, rng).compile(quick_to_compile)
    else:
        step = parallel.pmap_train_step(lambda reduce: make_step(reduce=reduce), mesh)
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, batch, rng)
    assert all(x.is_deleted() for x in jax.tree.leaves(first.params))  # Donated.
    return state, metrics


@functools.cache
def trained_on_one_device():
    return jax.device_get(train(make_mesh(1, 1, 1)))


def assert_trained_as_on_one_device(trained):
    trained, wanted = jax.device_get(trained), trained_on_one_device()
    chex.assert_trees_all_close(trained, wanted, atol=2e-6, rtol=1e-4)


def test_a_mesh_trains_as_one_device_does():
    """The parameters too; losses on all kinds of meshes: test_mesh_curves.py."""
    assert_trained_as_on_one_device(train(make_mesh(2, 2, 2)))


def test_a_mesh_trains_layers_in_a_loop_as_one_device_does_a_list():
    trained, _ = jax.device_get(train(make_mesh(2, 2, 2), stacked=True))
    wanted, _ = trained_on_one_device()
    chex.assert_trees_all_close(trained.params, wanted.params, atol=2e-6, rtol=1e-4)


def test_pmap_trains_as_jit_does():
    assert_trained_as_on_one_device(train(make_mesh(8, 1, 1), wrap="pmap"))


def test_evaluation_agrees_over_meshes():
    model = Transformer(ModelConfig(**{**TINY.__dict__, **VARIANTS["untied"]}))
    step = make_eval_step(make_objective(model, 0.1, deterministic=True))
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        state, shapes = placed(mesh)
        evaluate = parallel.jit_eval_step(step, mesh, shapes)
        batch = parallel.put_batch(make_batch(), mesh)
        results.append(jax.device_get(evaluate(state.params, batch)))
    chex.assert_trees_all_close(*results, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_rule_that_fits_it(variant):
    init, _ = parts(**VARIANTS[variant])
    params = leaves_by_path(jax.eval_shape(init, jax.random.key(0)).params)
    specs = parallel.param_specs(jax.eval_shape(init, jax.random.key(0)).params)
    assert specs.keys() == params.keys()
    for path, spec in specs.items():
        assert len(spec) <= params[path].ndim, path
        # What is large is cut: whole are vectors of the model's width and positions.
        small = params[path].shape == (TINY.d_model,) or "positions" in path
        assert any(spec) or small, path


def test_every_rule_is_used():
    used = set()
    for variant in VARIANTS.values():
        init, _ = parts(**variant)
        for path in leaves_by_path(jax.eval_shape(init, jax.random.key(0)).params):
            used.add(parallel._rule(path))
    assert used == set(range(len(parallel.PARAM_RULES)))


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match="parameter encoder/extra/kernel"):
        parallel.param_specs({"encoder": {"extra": {"kernel": jnp.zeros((2, 2))}}})


def test_moments_of_stacked_layers_are_cut_as_those_of_each():
    adam = make_optimizer(OptimizerConfig(), TINY.d_model)
    init, _ = parts(adam, scan_layers=True, stacked=True)
    shapes = jax.eval_shape(init, jax.random.key(0))
    specs, mesh = parallel.param_specs(shapes.params), make_mesh(2, 2, 2)
    of_layers = set()
    for path, x in leaves_by_path(parallel.state_shardings(shapes, mesh)).items():
        if "/layers/" in path:
            name = path.partition("/mu/")[2] or path.partition("/nu/")[2]
            name = name.replace("layers", "layer_0")
            assert tuple(x.spec) == (None, *specs[name]), path
            of_layers.add(name)
    assert of_layers == {path for path in specs if "/layer_0/" in path}


@pytest.mark.parametrize("name", ["adam", "adafactor", "lion", "muon"])
def test_moments_are_cut_as_their_parameters_and_the_rest_is_whole(name: Any):
    mesh = make_mesh(2, 2, 2)
    init, _ = parts(make_optimizer(OptimizerConfig(name=name), TINY.d_model))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = parallel.state_shardings(shapes, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    specs = parallel.param_specs(shapes.params)
    by_path, params = leaves_by_path(shardings), leaves_by_path(shapes.params)
    matched = 0
    for path, x in leaves_by_path(shapes).items():
        param = next((p for p in specs if path.endswith("/" + p)), "")
        same = param != "" and x.shape == params[param].shape
        assert by_path[path].spec == (specs[param] if same else PartitionSpec())
        matched += bool(same and path.startswith("opt_state"))
    moments = {"adam": 2, "adafactor": 1, "lion": 1, "muon": 1}[name]
    assert matched >= moments * len(specs)


def test_a_state_is_restored_onto_another_mesh(tmp_path):
    state, shapes = placed(make_mesh(2, 4, 1))
    store = CheckpointStore(tmp_path)
    store.write_run("{}", {})
    store.save(1, {"params": state.params, "training": {"opt_state": state.opt_state}})
    for mesh in (make_mesh(1, 1, 1), make_mesh(2, 2, 2)):
        shardings = parallel.state_shardings(shapes, mesh)
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            shardings,
        )
        items, _ = store.restore(
            {"params": like.params, "training": {"opt_state": like.opt_state}}
        )
        chex.assert_trees_all_equal(
            jax.device_get(items["params"]), jax.device_get(state.params)
        )
        jax.tree.map(
            lambda x, s: chex.assert_equal(
                x.sharding.is_equivalent_to(s, x.ndim), True
            ),
            (items["params"], items["training"]["opt_state"]),
            (shardings.params, shardings.opt_state),
        )


def test_the_mesh_takes_the_devices_that_are_left():
    assert dict(parallel.make_mesh(ParallelConfig(fsdp=2, tensor=2)).shape) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    assert parallel.num_data_shards(make_mesh(2, 2, 2)) == 4
    for data, fsdp, tensor in ((-1, 3, 1), (3, 1, 1), (4, 1, 4)):
        config = ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
        with pytest.raises(ValueError, match="8 are here"):
            parallel.make_mesh(config)
    with pytest.raises(ValueError, match="pmap"):
        parallel.make_mesh(ParallelConfig(fsdp=2, wrapper="pmap"))


@pytest.mark.parametrize(
    ("shape", "model", "message"),
    [
        ((1, 1, 8), {}, "model.num_heads is 4, .* parallel.tensor 8: it must be a"),
        ((1, 1, 4), {"d_ff": 30}, "model.d_ff is 30, .* parallel.tensor 4: it must"),
        (
            (1, 1, 4),
            {"target_vocab_size": 26, "tied_embeddings": "none"},
            r"model.target_vocab_size is 26, .* parallel.tensor 4 × parallel.fsdp 1: "
            r"it must be a multiple. Change one of them \(to 28: rows past",
        ),
        (
            (1, 2, 2),
            {"source_vocab_size": 30, "tied_embeddings": "none"},
            r"model.source_vocab_size is 30, .* parallel.tensor 2 × parallel.fsdp 2: "
            r"it must be a multiple. Change one of them \(to 32: rows past",
        ),
        (
            (1, 8, 1),
            {"d_model": 20},
            "model.d_model is 20, .* parallel.fsdp 8: it",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_named(shape, model, message):
    config = Config(model=ModelConfig(**{**TINY.__dict__, **model}))
    parallel.check_divisible(config, make_mesh(1, 1, 1))
    with pytest.raises(ValueError, match=message):
        parallel.check_divisible(config, make_mesh(*shape))


def test_rows_that_do_not_divide_are_told():
    with pytest.raises(ValueError, match="12 rows for the 8 devices"):
        parallel.put_batch(make_batch(rows=12), make_mesh(2, 4, 1))


def test_rows_are_shared_out_in_order():
    mesh = make_mesh(2, 2, 2)
    batch = parallel.put_batch(np.arange(8)[:, None], mesh)
    np.testing.assert_array_equal(batch[:, 0], np.arange(8))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}


@pytest.mark.parametrize(
    ("owners", "wanted"),
    [
        # Of each device, its process: on data × fsdp × tensor. A process a host.
        ([[[0, 0], [0, 0]], [[1, 1], [1, 1]]], {0: (0, 1), 1: (2, 3)}),
        # A tensor axis over two processes: both give the same rows.
        ([[[0, 1], [0, 1]], [[2, 3], [2, 3]]], {0: (0, 1), 1: (0, 1), 2: (2, 3)}),
        # Neighbours in the network need not be neighbours on the mesh.
        ([[[0, 0], [1, 1]], [[1, 1], [0, 0]]], {0: (0, 3), 1: (1, 2)}),
    ],
)
def test_a_process_gives_the_rows_of_its_devices(owners, wanted, monkeypatch):
    devices = np.vectorize(lambda owner: SimpleNamespace(process_index=owner))(owners)
    shape = dict(zip(parallel.AXES, devices.shape, strict=True))
    mesh: Any = SimpleNamespace(devices=devices, shape=shape)
    for process, shares in wanted.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert parallel.shares_here(mesh) == shares
        rows = parallel.rows_here(np.arange(8), mesh)
        assert rows.tolist() == [row for s in shares for row in (2 * s, 2 * s + 1)]
