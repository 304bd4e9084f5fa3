"""What a folder holds decides how a run starts: anew, from there, or not at all."""

import dataclasses
import gzip
import shutil
import signal
from pathlib import Path

import chex
import jax
import pytest
from test_loop import (
    MODEL,
    saved,
    steps,
    toy,
    use_one_device,
)

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore, params_sha256
from transformer_jax.config import Config, ModelConfig
from transformer_jax.recipes import config_from_json
from transformer_jax.trainer.engine import Engine, build_engine
from transformer_jax.trainer.loop import train


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """A mesh of one of the eight devices: quicker."""
    use_one_device(monkeypatch)


def contents(workdir: Path) -> dict[Path, bytes]:
    """Every file of a run but its records."""
    return {
        path: path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and "data" not in path.relative_to(workdir).parts
    }


def test_other_settings_in_the_folder_are_an_error_and_change_nothing(tmp_path):
    config = steps(toy(tmp_path), 2)
    workdir = tmp_path / "run"
    train(config, workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    other = dataclasses.replace(
        config, model=dataclasses.replace(MODEL, dropout=0.3), seed=4
    )
    with pytest.raises(ValueError, match=r"model\.dropout: 0\.1 there, 0\.3 now") as e:
        train(steps(other, 9), workdir)
    assert "seed: 0 there, 4 now" in str(e.value)
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_start_from_another_run_takes_weights_model_and_tokenizer(tmp_path):
    config = steps(toy(tmp_path), 2)
    train(config, tmp_path / "origin")
    other = dataclasses.replace(config, model=ModelConfig(), seed=3)
    train(steps(other, 0), tmp_path / "tuned", init_from=tmp_path / "origin")
    origin, tuned = (CheckpointStore(tmp_path / name) for name in ("origin", "tuned"))
    assert params_sha256(tuned.restore_params()) == params_sha256(
        origin.restore_params()
    )
    assert tuned.tokenizer_files() == origin.tokenizer_files()
    counts = saved(tmp_path / "tuned")["training"]
    assert counts["step"] == 0
    # The same command goes on, also when the other run is gone.
    (tmp_path / "origin").rename(tmp_path / "elsewhere")
    result = train(steps(other, 1), tmp_path / "tuned", init_from=tmp_path / "origin")
    assert result.step == 1


def test_changed_text_is_noticed_when_a_run_goes_on(tmp_path):
    config = steps(toy(tmp_path), 2)
    train(config, tmp_path / "run")
    path = tmp_path / "train.source"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "h g"]) + "\n")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="it belongs to other data"):
        train(steps(config, 4), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_the_origin_of_weights_is_noted_and_cannot_come_later(tmp_path):
    config = steps(toy(tmp_path), 1)
    for name, origin in (("first", None), ("second", tmp_path / "first")):
        train(steps(config, 0 if origin else 1), tmp_path / name, init_from=origin)
    noted = CheckpointStore(tmp_path / "second").origin()
    weights = CheckpointStore(tmp_path / "first").restore_params()
    assert noted == {
        "run": str(tmp_path / "first"),
        "step": 1,
        "params_sha256": params_sha256(weights),
    }
    with pytest.raises(ValueError, match="--init-from comes too late"):
        train(config, tmp_path / "first", init_from=tmp_path / "second")


def moved(config: Config, folder: Path, *, compress: bool = False) -> Config:
    """The same run on a copy of its text in another folder."""
    folder.mkdir()
    places = {}
    for name in ("train_source", "train_target", "dev_source", "dev_target"):
        (path,) = getattr(config.data, name)
        copy = folder / f"{path.name}{'.gz' if compress else ''}"
        text = path.read_bytes()
        copy.write_bytes(gzip.compress(text) if compress else text)
        places[name] = (copy,)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **places))


@pytest.mark.parametrize("compress", [False, True])
def test_a_run_goes_on_when_its_text_has_moved(tmp_path, compress):
    config = steps(toy(tmp_path), 2)
    train(config, tmp_path / "run")
    elsewhere = moved(config, tmp_path / "elsewhere", compress=compress)
    for path in tmp_path.glob("*.source"):
        path.unlink()
    assert train(steps(elsewhere, 3), tmp_path / "run").step == 3


def test_ctrl_c_while_compiling_leaves_the_folder_free_for_other_settings(
    tmp_path, monkeypatch
):
    config = steps(toy(tmp_path), 1)
    with monkeypatch.context() as patch:
        stop = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
        patch.setattr(Engine, "compile_train_step", stop)
        result = train(config, tmp_path / "run")
    assert (result.reason, result.exit_code) == ("stopped", 130)
    other = dataclasses.replace(config, seed=3)
    assert train(other, tmp_path / "run").reason == "finished"


def test_a_run_killed_before_its_first_checkpoint_gives_way_to_another(tmp_path):
    config = steps(toy(tmp_path), 1)
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    other = dataclasses.replace(
        config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=19)
    )
    train(other, tmp_path / "run")
    store = CheckpointStore(tmp_path / "run")
    assert store.tokenizer_files() == store.tokenizer_files(1)
    found = config_from_json(store.config_json())
    assert found.tokenizer == other.tokenizer
    assert found.model.target_vocab_size == 19


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    for workdir in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(ValueError, match=r"--workdir is .*taken is a file"):
            train(toy(tmp_path), workdir)


def test_another_init_from_than_at_first_is_refused(tmp_path):
    config = steps(toy(tmp_path), 1)
    for name, seed in (("first", 0), ("other", 1)):
        train(dataclasses.replace(config, seed=seed), tmp_path / name)
    train(config, tmp_path / "tuned", init_from=tmp_path / "first")
    before = contents(tmp_path / "tuned")
    longer = steps(config, 2)
    for place, message in (
        ("other", r"started from .*first, and --init-from is .*other"),
        ("none", r"There is no folder .*none"),
    ):
        with pytest.raises(ValueError, match=message):
            train(longer, tmp_path / "tuned", init_from=tmp_path / place)
    assert contents(tmp_path / "tuned") == before
    # A copy of the first run is as good as the run itself.
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert train(longer, tmp_path / "tuned", init_from=tmp_path / "copy").step == 2


def test_a_host_draws_for_its_device_what_that_would_draw(monkeypatch):
    sizes = {"source_vocab_size": 16, "target_vocab_size": 16}
    engine = build_engine(Config(model=dataclasses.replace(MODEL, **sizes)))
    in_place = engine.fresh_state(jax.random.key(3))
    monkeypatch.setattr(parallel, "host_device", lambda: jax.devices()[1])
    drawn = engine.fresh_state(jax.random.key(3))
    chex.assert_trees_all_equal(drawn, in_place)
    for x, y in zip(jax.tree.leaves(drawn), jax.tree.leaves(in_place), strict=True):
        assert x.sharding == y.sharding
