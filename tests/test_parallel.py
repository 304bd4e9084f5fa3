"""However devices are arranged, a step gives the same parameters."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, ModelConfig, OptimizerConfig, ParallelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.models.transformer import Transformer
from transformer_jax.training.objectives import make_objective
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.state import init_params, init_state
from transformer_jax.training.step import make_eval_step, make_train_step
from transformer_jax.trees import leaves_by_path

TINY = ModelConfig(
    num_encoder_layers=1,
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


def parts(name: Any = "adam", **model):
    config = ModelConfig(**{**TINY.__dict__, **model})
    net = Transformer(config)
    # A large epsilon: Adam turns the rounding noise of a gradient near 0 into a step.
    settings = OptimizerConfig(name=name, warmup_steps=1, eps=1e-3, clip_norm=1.0)
    optimizer = make_optimizer(settings, config.d_model)
    objective = make_objective(net, 0.1, deterministic=True)

    def init(rng):
        return init_state(init_params(net, rng), optimizer, ema=True)

    return init, functools.partial(make_train_step, objective, optimizer, ema_decay=0.9)


@functools.cache
def fresh_state(variant):
    """A state on the host, and its shapes."""
    init, _ = parts(**VARIANTS[variant])
    return (
        jax.device_get(jax.jit(init)(jax.random.key(0))),
        jax.eval_shape(init, jax.random.key(0)),
    )


def placed(variant, mesh):
    state, shapes = fresh_state(variant)
    return jax.device_put(state, parallel.state_shardings(shapes, mesh)), shapes


def train(variant, mesh, *, steps=2, wrap="jit"):
    _, make_step = parts(**VARIANTS[variant])
    state, shapes = placed(variant, mesh)
    first = state
    if wrap == "jit":
        step = parallel.jit_train_step(make_step(), mesh, shapes)
    else:
        step = parallel.pmap_train_step(lambda reduce: make_step(reduce=reduce), mesh)
    metrics = {}
    for _ in range(steps):
        batch = parallel.put_batch(make_batch(), mesh)
        state, metrics = step(state, batch, jax.random.key(1))
    assert all(x.is_deleted() for x in jax.tree.leaves(first.params))  # Donated.
    return state, metrics


@functools.cache
def trained_on_one_device(variant):
    return jax.device_get(train(variant, make_mesh(1, 1, 1)))


@pytest.mark.parametrize(
    ("variant", "shape"),
    [
        ("plain", (8, 1, 1)),
        ("plain", (2, 4, 1)),
        ("plain", (2, 2, 2)),
        ("untied", (1, 2, 4)),
    ],
)
def test_every_mesh_trains_as_one_device_does(variant, shape):
    state, metrics = train(variant, make_mesh(*shape))
    wanted, wanted_metrics = trained_on_one_device(variant)
    chex.assert_trees_all_close(jax.device_get(state), wanted, atol=2e-6, rtol=1e-4)
    chex.assert_trees_all_close(jax.device_get(metrics), wanted_metrics, rtol=1e-4)


def test_pmap_trains_as_jit_does():
    state, metrics = train("plain", make_mesh(8, 1, 1), wrap="pmap")
    wanted, wanted_metrics = trained_on_one_device("plain")
    chex.assert_trees_all_close(jax.device_get(state), wanted, atol=2e-6, rtol=1e-4)
    chex.assert_trees_all_close(jax.device_get(metrics), wanted_metrics, rtol=1e-4)


def test_evaluation_agrees_over_meshes():
    step = make_eval_step(make_objective(Transformer(TINY), 0.1, deterministic=True))
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        state, shapes = placed("plain", mesh)
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
        # What is large is cut: only vectors of the model's width are whole.
        assert any(spec) or params[path].shape == (TINY.d_model,), path


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


@pytest.mark.parametrize("name", ["adam", "adafactor", "lion", "muon"])
def test_moments_are_cut_as_their_parameters_and_the_rest_is_whole(name):
    mesh = make_mesh(2, 2, 2)
    init, _ = parts(name)
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
    state, shapes = placed("plain", make_mesh(2, 4, 1))
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
    ("shape", "model", "name"),
    [
        ((1, 1, 8), {}, "num_heads"),
        ((1, 1, 4), {"d_ff": 30}, "d_ff"),
        ((1, 1, 4), {"target_vocab_size": 26, "tied_embeddings": "none"}, "26.*28"),
        ((1, 8, 1), {"d_model": 20}, "d_model"),
    ],
)
def test_sizes_that_do_not_divide_are_named(shape, model, name):
    config = Config(model=ModelConfig(**{**TINY.__dict__, **model}))
    parallel.check_divisible(config, make_mesh(1, 1, 1))
    with pytest.raises(ValueError, match=name):
        parallel.check_divisible(config, make_mesh(*shape))


def test_rows_that_do_not_divide_are_told():
    with pytest.raises(ValueError, match="12 rows for the 8 devices"):
        parallel.put_batch(make_batch(rows=12), make_mesh(2, 4, 1))


def test_rows_are_shared_out_in_order():
    mesh = make_mesh(2, 2, 2)
    batch = parallel.put_batch(np.arange(8)[:, None], mesh)
    np.testing.assert_array_equal(batch[:, 0], np.arange(8))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}


def test_half_an_environment_for_many_processes_is_told():
    parallel.join_processes({})
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is ''"):
        parallel.join_processes({"JAX_COORDINATOR_ADDRESS": "localhost:1"})
