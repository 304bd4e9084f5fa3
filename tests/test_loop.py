import dataclasses
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import chex
import jax
import numpy as np
import pytest

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TokenizerConfig,
    TrainConfig,
)
from transformer_jax.recipes import config_to_json
from transformer_jax.trainer import loop
from transformer_jax.trainer.dev import DevReport, DevSet
from transformer_jax.trainer.loop import train
from transformer_jax.trees import leaves_by_path
from transformer_jax.types import Params

MODEL = ModelConfig(
    num_encoder_layers=1, num_decoder_layers=1, d_model=16, d_ff=32, num_heads=2
)
EIGHT_DEVICES = ParallelConfig(data=4, fsdp=2)


def use_one_device(monkeypatch):
    first = functools.partial(parallel.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", first)


@pytest.fixture
def one_device(monkeypatch):
    """A mesh of one of the eight devices: quicker."""
    use_one_device(monkeypatch)


def write_pairs(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Words to copy: 200 lines for training, 20 for evaluation."""
    draw = random.Random(0)
    paths = {}
    for part, count in (("train", 200), ("dev", 20)):
        lines = [
            " ".join(draw.choices("abcdefgh", k=draw.randint(1, 6)))
            for _ in range(count)
        ]
        for side in ("source", "target"):
            path = folder / f"{part}.{side}"
            path.write_text("\n".join(lines) + "\n")
            paths[f"{part}_{side}"] = (path,)
    return paths


def toy(
    folder: Path,
    *,
    batching: Literal["pack", "bucket"] = "pack",
    **train_settings: Any,
) -> Config:
    """A run of seconds on files in `folder`."""
    files: dict[str, Any] = write_pairs(folder)
    data = DataConfig(
        **files,
        name="parallel_text",
        batching=batching,
        batch_tokens=128,
        pack_length=16,
        bucket_lengths=(8, 16),
        max_length=16,
    )
    settings = {"evaluate_every": 1000, "checkpoint_every": 1000, "log_every": 2}
    return Config(
        model=MODEL,
        data=data,
        tokenizer=TokenizerConfig(vocab_size=20),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=5),
        train=TrainConfig(**{**settings, "curves": False, **train_settings}),
        evaluation=EvaluationConfig(max_sentences=4, num_samples=1),
    )


def without_dropout(config: Config) -> Config:
    model = dataclasses.replace(config.model, dropout=0.0)
    return dataclasses.replace(config, model=model)


def steps(config: Config, number: int) -> Config:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=number)
    )


def saved(workdir: Path) -> dict:
    """Arrays of the latest checkpoint as they lie on disk, by path."""
    import orbax.checkpoint as ocp

    store = CheckpointStore(workdir)
    folder = workdir / "checkpoints" / f"{store.latest_step():08d}"
    with ocp.StandardCheckpointer() as checkpointer:
        return {
            name: jax.tree.map(np.asarray, checkpointer.restore(folder / name))
            for name in ("params", "training")
        }


def events(workdir: Path, name: str) -> list[dict]:
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == name]


@pytest.mark.parametrize(("batching", "scan"), [("pack", False), ("bucket", True)])
def test_a_run_in_two_parts_is_bitwise_the_run_in_one(
    tmp_path, batching, scan, one_device
):
    config = toy(tmp_path, batching=batching, ema_decay=0.9 * scan)
    model = dataclasses.replace(config.model, scan_layers=scan)
    config = dataclasses.replace(config, model=model)
    train(steps(config, 8), tmp_path / "whole")
    train(steps(config, 3), tmp_path / "parts")
    result = train(steps(config, 8), tmp_path / "parts")
    assert result.step == 8
    whole = saved(tmp_path / "whole")
    chex.assert_trees_all_equal(saved(tmp_path / "parts"), whole)
    assert any("/layers/" in path for path in leaves_by_path(whole["training"])) == scan
    assert not any("/layers/" in path for path in leaves_by_path(whole["params"]))


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 2)],
)
def test_a_run_killed_with_its_group_goes_on_bitwise(tmp_path, number, workers):
    config = without_dropout(toy(tmp_path, log_every=1))
    config = dataclasses.replace(config, parallel=EIGHT_DEVICES)
    recipe = tmp_path / "toy.py"
    recipe.write_text(
        "from transformer_jax.recipes import config_from_json\n"
        f"def get_config(): return config_from_json({config_to_json(config)!r})\n"
    )
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", "transformer_jax", "train"]
    command += ["--config", str(recipe), "--workdir", str(workdir)]
    command += ["--data.num-workers", str(workers)]
    process = subprocess.Popen(
        command,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = workdir / "log.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and '"event": "train"' in log.read_text():
            break
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C: workers too
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 128 + number, output
    assert "The same command goes on" in output
    assert "Traceback" not in output
    stopped = CheckpointStore(workdir).latest_step()
    assert stopped is not None
    assert f"at step {stopped:,}" in output
    config = steps(config, stopped + 3)
    train(config, workdir)
    train(config, tmp_path / "whole")
    chex.assert_trees_all_equal(saved(workdir), saved(tmp_path / "whole"))
    assert events(workdir, "resume")[0]["step"] == stopped


def test_a_run_tells_what_its_updates_take_and_traces_those_asked_for(
    tmp_path, capsys, one_device
):
    config = toy(tmp_path, profile="2:3")
    result = train(steps(config, 4), tmp_path / "run")
    for record in events(tmp_path / "run", "train"):
        assert 0 < record["mfu"] < 1
        assert 0 <= record["waiting"] <= 1
    (end,) = events(tmp_path / "run", "end")
    assert 0 < end["waiting_seconds"] <= end["update_seconds"]
    assert result.progress.waiting_seconds == pytest.approx(
        end["waiting_seconds"], rel=1e-3
    )
    out = capsys.readouterr().out
    assert "MFU" in out
    assert "of the time in updates" in out
    assert list((tmp_path / "run/profile").rglob("perfetto_trace.json.gz"))
    train(
        steps(
            dataclasses.replace(
                config, train=dataclasses.replace(config.train, profile="")
            ),
            5,
        ),
        tmp_path / "run",
    )


def test_a_finished_run_has_nothing_to_do(tmp_path, capsys, one_device, monkeypatch):
    config = steps(toy(tmp_path), 2)
    first = train(config, tmp_path / "run")
    monkeypatch.setattr("transformer_jax.trainer.startup.prepare", pytest.fail)
    again = train(config, tmp_path / "run")
    assert (again.step, again.reason) == (2, "finished")
    assert again.progress.target_tokens == first.progress.target_tokens > 0
    assert "nothing to do" in capsys.readouterr().out


def test_training_stops_when_patience_runs_out(tmp_path, one_device):
    # With a rate of nearly nothing, the first evaluation stays the best.
    config = toy(tmp_path, evaluate_every=2, patience=2, best_metric="accuracy")
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=1e-12, warmup_steps=1)
    )
    result = train(config, tmp_path / "run")
    assert (result.step, result.reason) == (6, "out of patience")
    store = CheckpointStore(tmp_path / "run")
    assert store.best_step() == 2
    assert store.latest_step() == 6
    assert train(config, tmp_path / "run").reason == "out of patience"


def test_evaluation_is_logged_and_kept_with_the_checkpoint(
    tmp_path, capsys, one_device
):
    config = steps(toy(tmp_path, evaluate_every=2), 3)
    result = train(config, tmp_path / "run")
    logged = events(tmp_path / "run", "evaluate")
    assert [record["step"] for record in logged] == [2, 3]
    assert {"loss", "nll", "perplexity", "accuracy", "bleu", "chrf"} <= set(logged[0])
    assert np.isclose(np.exp(logged[0]["nll"]), logged[0]["perplexity"], rtol=1e-4)
    assert result.metrics["loss"] == pytest.approx(
        CheckpointStore(tmp_path / "run").metrics(3)["loss"]
    )
    train_events = events(tmp_path / "run", "train")
    assert [record["step"] for record in train_events] == [2, 3]
    assert train_events[0]["learning_rate"] == pytest.approx(0.01 * 2 / 5)
    assert "translation" in capsys.readouterr().out


@pytest.mark.parametrize("place", [2, 3])
def test_ctrl_c_during_evaluation_saves_and_evaluates_the_next_time(
    place, tmp_path, one_device, monkeypatch, capsys
):
    config = steps(toy(tmp_path, evaluate_every=place), 3)
    with monkeypatch.context() as patch:
        stop = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
        patch.setattr(DevSet, "evaluate", stop)
        result = train(config, tmp_path / "run")
    assert (result.step, result.reason, result.exit_code) == (place, "stopped", 130)
    assert CheckpointStore(tmp_path / "run").latest_step() == place
    assert "The same command goes on" in capsys.readouterr().out
    assert train(config, tmp_path / "run").reason == "finished"
    logged = events(tmp_path / "run", "evaluate")
    assert [record["step"] for record in logged] == sorted({place, 3})


def test_a_signal_while_the_run_stops_for_another_process_ends_nothing(
    tmp_path, one_device, monkeypatch
):
    monkeypatch.setattr(loop, "largest", lambda number: signal.SIGTERM)
    save = CheckpointStore.save

    def get_a_signal_and_save(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr(CheckpointStore, "save", get_a_signal_and_save)
    result = train(steps(toy(tmp_path), 3), tmp_path / "run")
    assert (result.reason, result.exit_code) == ("stopped", 143)
    assert CheckpointStore(tmp_path / "run").latest_step() == 0


def test_an_evaluation_made_up_for_is_kept_though_it_is_not_the_best(
    tmp_path, one_device, monkeypatch, capsys
):
    # With a rate of nearly nothing, the first evaluation stays the best.
    config = steps(toy(tmp_path, evaluate_every=2, best_metric="accuracy"), 3)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=1e-12, warmup_steps=1)
    )
    evaluate, earlier = DevSet.evaluate, itertools.count()

    def stop_the_second(dev: DevSet, params: Params) -> DevReport:
        if next(earlier):
            signal.raise_signal(signal.SIGINT)
        return evaluate(dev, params)

    with monkeypatch.context() as patch:
        patch.setattr(DevSet, "evaluate", stop_the_second)
        assert train(config, tmp_path / "run").reason == "stopped"
    store = CheckpointStore(tmp_path / "run")
    assert not store.metrics(3)
    assert train(config, tmp_path / "run").reason == "finished"
    assert store.metrics(3)["accuracy"] == store.metrics(2)["accuracy"]
    assert store.best_step() == 2
    assert "nothing to do" not in capsys.readouterr().out
    train(config, tmp_path / "run")
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_that_is_not_finite_stops_and_says_so(tmp_path, one_device):
    config = toy(tmp_path, max_bad_steps=3, log_every=1)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=1)
    )
    with pytest.raises(ValueError, match="not finite in 3 updates in a row"):
        train(config, tmp_path / "run")
    assert events(tmp_path / "run", "end")[0]["reason"] == "not finite"


@pytest.mark.parametrize(
    "many", [EIGHT_DEVICES, ParallelConfig(wrapper="pmap")], ids=["jit", "pmap"]
)
def test_eight_devices_train_as_one(tmp_path, many, monkeypatch):
    config = without_dropout(steps(toy(tmp_path, log_every=1), 4))
    train(dataclasses.replace(config, parallel=many), tmp_path / "many")
    use_one_device(monkeypatch)
    train(config, tmp_path / "one")
    losses = [
        [record["loss"] for record in events(tmp_path / name, "train")]
        for name in ("many", "one")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_dev_sentences_beyond_learned_positions_are_found_before_training(
    tmp_path, one_device
):
    config = steps(toy(tmp_path), 1)
    with (tmp_path / "dev.source").open("a") as source:
        source.write("a b c d e f g h " * 4 + "\n")
    with (tmp_path / "dev.target").open("a") as target:
        target.write("a\n")
    model = dataclasses.replace(MODEL, positions="learned", max_positions=16)
    config = dataclasses.replace(config, model=model)
    with pytest.raises(ValueError, match=r"Pair 21 of validation has \d+ pieces"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_skipped_updates_do_not_move_the_logged_rate(tmp_path, one_device):
    """All updates are skipped, so the rate stays that of the first."""
    config = toy(tmp_path, max_bad_steps=3, log_every=1)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=10)
    )
    with pytest.raises(ValueError, match="not finite"):
        train(config, tmp_path / "run")
    logged = events(tmp_path / "run", "train")
    skipped = np.cumsum([record["skipped"] for record in logged])
    rates = [record["learning_rate"] for record in logged]
    updates = [max(r["step"] - n, 0) for r, n in zip(logged, skipped, strict=True)]
    np.testing.assert_allclose(rates, [1e29 * n for n in updates], rtol=1e-5)
