"""A checkpoint is whole or absent, exact, and never silently damaged."""

import json
import shutil
import subprocess
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.checkpoint import (
    CheckpointError,
    CheckpointStore,
    average_params,
    count_params,
    params_sha256,
)

TOKENIZER = {"tokenizer.json": b'{"kind": "none"}', "source.model": bytes(range(256))}


def some_params(seed=0, width=4):
    keys = jax.random.split(jax.random.key(seed), 3)
    up = {
        "kernel": jax.random.normal(keys[0], (8, width)),
        "bias": jax.random.normal(keys[1], (width,)),
    }
    table = jax.random.normal(keys[2], (16, 8)).astype(jnp.bfloat16)
    return {"encoder": {"up": up}, "source_embedding": {"embedding": table}}


def like(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def new_store(tmp_path, **kwargs):
    store = CheckpointStore(tmp_path / "run", **kwargs)
    store.write_run('{"seed": 1}', TOKENIZER)
    return store


def checkpoint_files(store, step):
    folder = store.workdir / "checkpoints" / f"{step:08d}"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


OPTIMIZERS = {
    "adam": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "adafactor": lambda: optax.adafactor(1e-3, min_dim_size_to_factor=4),
    "lion": lambda: optax.lion(1e-3),
    "muon": lambda: optax.contrib.muon(1e-3),
    "masked": lambda: optax.masked(
        optax.sgd(lambda count: 0.1 * count, momentum=0.9),
        lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_bit_comes_back(tmp_path, name):
    params, optimizer = some_params(), OPTIMIZERS[name]()
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(some_params(1), opt_state, params)
    training = {
        "step": jnp.int32(7),
        "opt_state": opt_state,
        "rng": jax.random.key_data(jax.random.key(3)),
        "nothing": None,
    }
    items = {"params": params, "ema_params": some_params(2), "training": training}
    position = {"data": {"epoch": 2, "place": [1, 2]}}
    store = new_store(tmp_path)
    store.save(7, items, data_position=position, metrics={"bleu": 0.1})

    again = CheckpointStore(store.workdir)
    restored, found = again.restore({name: like(x) for name, x in items.items()})
    assert_same_bits(restored, items)
    assert found == again.position(7) == position
    assert again.metrics(7) == {"bleu": 0.1}
    for step in (None, 7):
        assert json.loads(again.config_json(step)) == {"seed": 1}
        assert again.tokenizer_files(step) == TOKENIZER
    assert_same_bits(
        jax.tree.map(jnp.asarray, again.restore_params()), items["ema_params"]
    )


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
    def sharding(*sizes):
        mesh = jax.make_mesh(
            sizes, ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
        )
        return NamedSharding(mesh, PartitionSpec("fsdp"))

    tree = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
    store = new_store(tmp_path)
    store.save(1, {"params": jax.device_put(tree, sharding(1, 8))})
    for sizes in ((8, 1), (2, 4)):
        wanted = sharding(*sizes)
        restored, _ = store.restore({"params": like(tree, wanted)})
        assert restored["params"]["kernel"].sharding.is_equivalent_to(wanted, 2)
        assert_same_bits(restored["params"], tree)
    assert_same_bits(jax.tree.map(jnp.asarray, store.restore_params()), tree)


def test_the_latest_and_the_best_are_kept(tmp_path):
    store = new_store(tmp_path, keep=2)
    assert store.steps() == []
    assert store.latest_step() is None
    for step, best in enumerate([True, True, False, False, False], start=1):
        store.save(step, {"params": {"x": jnp.full(2, step)}}, best=best)
    assert store.steps() == [2, 4, 5]
    assert (store.best_step(), store.latest_step()) == (2, 5)
    assert store.chosen_step() == 2
    assert store.restore_params()["x"][0] == 2
    assert store.restore_params(step=4)["x"][0] == 4
    assert (
        store.restore({"params": like({"x": jnp.full(2, 0)})})[0]["params"]["x"][0] == 5
    )
    store.save(6, {"params": {"x": jnp.full(2, 6)}}, best=True)
    assert store.steps() == [5, 6]
    assert len(list((store.workdir / "checkpoints").iterdir())) == 2


def test_a_step_saved_again_is_replaced(tmp_path):
    store = new_store(tmp_path)
    for value in (1, 2):
        store.save(3, {"params": {"x": jnp.full(2, value)}})
    assert store.steps() == [3]
    assert store.restore_params()["x"][0] == 2


def test_what_an_interrupted_save_left_does_not_count(tmp_path):
    store = new_store(tmp_path)
    store.save(1, {"params": {"x": jnp.zeros(2)}})
    folder = store.workdir / "checkpoints"
    shutil.copytree(folder / "00000001", folder / "unfinished-00000002")
    assert store.steps() == [1]
    store.save(2, {"params": {"x": jnp.zeros(2)}})
    assert store.steps() == [1, 2]
    assert len(list(folder.iterdir())) == 2


def read_everything(store):
    store.restore({"params": like({"x": jnp.zeros(300)})})
    store.restore_params()
    store.config_json(1)
    store.tokenizer_files(1)
    store.metrics(1)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_is_found(tmp_path, damage):
    store = new_store(tmp_path)
    store.save(1, {"params": {"x": jnp.arange(300.0)}}, metrics={"bleu": 1.0})
    read_everything(store)
    files = checkpoint_files(store, 1)
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        place = len(whole) // 2
        if damage == "flip":
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
            )
        elif damage == "cut":
            path.write_bytes(whole[:place])
        else:
            path.unlink()
        with pytest.raises(ValueError, match=r"damaged|cannot be read"):
            read_everything(store)
        path.write_bytes(whole)
    read_everything(store)


def test_every_flipped_byte_of_the_arrays_is_found(tmp_path):
    store = new_store(tmp_path)
    store.save(1, {"params": {"x": jax.random.normal(jax.random.key(0), (300,))}})
    files = [path for path in checkpoint_files(store, 1) if "params" in path.parts]
    path = max(files, key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    for place in range(0, len(whole), 101):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            store.restore_params()


def test_sha256sum_agrees(tmp_path):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    store = new_store(tmp_path)
    store.save(1, {"params": {"x": jnp.arange(300.0)}})
    folder = store.workdir / "checkpoints" / "00000001"
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_a_damaged_checkpoint_does_not_stop_training(tmp_path):
    store = new_store(tmp_path, keep=2)
    store.save(1, {"params": {"x": jnp.zeros(2)}}, best=True)
    (store.workdir / "checkpoints" / "00000001" / "SHA256SUMS").unlink()
    for step in (2, 3):
        store.save(step, {"params": {"x": jnp.zeros(2)}})
    assert store.steps() == [2, 3]


def test_another_models_checkpoint_is_refused_by_name_and_shapes(tmp_path):
    store = new_store(tmp_path)
    store.save(1, {"params": some_params(width=4)})
    with pytest.raises(
        CheckpointError, match=r"encoder/up/bias is float32 \[4\] there and .* \[6\]"
    ):
        store.restore({"params": like(some_params(width=6))})
    more = {**some_params(), "gate": {"kernel": jnp.zeros(3)}}
    with pytest.raises(CheckpointError, match="gate/kernel is absent there"):
        store.restore({"params": like(more)})
    less = {"encoder": some_params()["encoder"]}
    with pytest.raises(CheckpointError, match=r"embedding is bfloat16 .* absent here"):
        store.restore({"params": like(less)})
    with pytest.raises(CheckpointError, match="weights only"):
        store.restore({"params": like(some_params()), "training": {}})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no folder"):
        CheckpointStore(tmp_path / "nowhere").config_json()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    other = CheckpointStore(tmp_path / "other")
    assert not other.has_run()
    for read in (other.config_json, other.tokenizer_files, other.restore_params):
        with pytest.raises(CheckpointError, match="is not a run"):
            read()
    store = new_store(tmp_path)
    assert store.has_run()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        store.restore_params()
    store.save(12, {"params": {"x": jnp.zeros(2)}})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3.*these: 12"):
        store.restore_params(step=3)
    inside = CheckpointStore(store.workdir / "checkpoints" / "00000012")
    with pytest.raises(CheckpointError, match=r"single checkpoint.*--step 12"):
        inside.restore_params()


def test_the_runs_own_files_are_checked(tmp_path):
    store = new_store(tmp_path)
    run = store.workdir / "run.json"
    text = run.read_text()
    for changed, message in (
        (text.replace('"seed": 1', '"seed": 2'), "damaged"),
        (text[:50], "damaged"),
        ("[]", "is not a"),
        (text.replace('"version": 1', '"version": 99'), "newer"),
    ):
        run.write_text(changed)
        with pytest.raises(ValueError, match=message):
            store.config_json()
    run.write_text(text)
    (store.workdir / "tokenizer" / "source.model").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"source\.model is damaged"):
        store.tokenizer_files()


def test_settings_can_be_renewed_and_old_checkpoints_keep_theirs(tmp_path):
    store = new_store(tmp_path)
    store.save(1, {"params": {"x": jnp.zeros(2)}})
    store.write_run('{"seed": 1, "steps": 9}', TOKENIZER)
    assert json.loads(store.config_json()) == {"seed": 1, "steps": 9}
    assert json.loads(store.config_json(1)) == {"seed": 1}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_the_average_of_equal_parameters_is_themselves(count):
    params = some_params()
    assert_same_bits(average_params([params] * count), jax.tree.map(np.asarray, params))


def test_the_average_is_the_mean_rounded_once():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(5, 1000)).astype(np.float32)
    drawn[:2] *= 1e6
    mean = average_params({"x": x} for x in drawn)["x"]
    exact = drawn.astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(mean, exact.astype(np.float32))


def test_only_checkpoints_of_one_model_are_averaged():
    with pytest.raises(ValueError, match="encoder/up/bias"):
        average_params([some_params(width=4), some_params(width=6)])
    with pytest.raises(ValueError, match="nothing to average"):
        average_params([])


def test_the_digest_sees_every_difference_but_not_the_order_of_names():
    base = {"a": np.array([1, 2], np.float32), "b": np.array([3], np.float32)}
    same = params_sha256({"b": base["b"], "a": jnp.asarray(base["a"])})
    assert params_sha256(base) == same
    for other in (
        {**base, "b": np.array([4], np.float32)},
        {**base, "b": np.array([[3]], np.float32)},
        {**base, "b": np.array([3], np.float32).view(np.int32)},
        {"a": base["a"], "c": base["b"]},
    ):
        assert params_sha256(other) != params_sha256(base)


def test_parameters_are_counted():
    params = some_params(width=4)
    assert count_params(params) == 8 * 4 + 4 + 16 * 8
    chex.assert_equal(count_params(like(params)), count_params(params))


def test_saving_numpy_arrays_makes_no_copy_of_all(tmp_path):
    """So that a model is imported within twice its size."""
    store = CheckpointStore(tmp_path / "run")
    store.write_run("{}", {"tokenizer": b""})
    # As imports have them: some of them views with their axes in another order.
    arrays = [np.ones((512, 1024), np.float32) for _ in range(8)]
    params = {f"{i}": x.T if i % 2 else x for i, x in enumerate(arrays)}
    total = sum(x.nbytes for x in arrays)
    tracemalloc.start()
    try:
        params_sha256(params)
        store.save(0, {"params": params})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * total
    chex.assert_trees_all_equal(store.restore_params(), params)
