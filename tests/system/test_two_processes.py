"""Two processes with two devices each stand in for many hosts.

One training goes by way of two processes, of which one gets SIGTERM, two processes
again, and one with another mesh; another is done by one process alone. They agree.
"""

import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chex
import jax
import numpy as np
from test_loop import events, saved, steps, toy, use_one_device, without_dropout

from transformer_jax import parallel
from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config, OptimizerConfig, ParallelConfig
from transformer_jax.recipes import config_to_json
from transformer_jax.trainer.loop import train

LEARNT = 250
"""Updates after which the first run copies many sentences, if not all."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_two(config: Config, workdir: Path, *more: str) -> list[subprocess.Popen]:
    """The command `train` in two processes, by environment in one, by flags in the
    other."""
    recipe = workdir.with_suffix(".py")
    recipe.write_text(
        "from transformer_jax.recipes import config_from_json\n"
        f"def get_config(): return config_from_json({config_to_json(config)!r})\n"
    )
    command = [sys.executable, "-m", "transformer_jax", "train", "--config"]
    command += [str(recipe), "--workdir", str(workdir), *more]
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Those of all tests, but for the number of devices: the last one counts.
        "XLA_FLAGS": os.environ["XLA_FLAGS"]
        + " --xla_force_host_platform_device_count=2",
    }
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    flags = f"--processes.coordinator {address} --processes.count 2 --processes.index 1"
    return [
        subprocess.Popen(
            command + words,
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words, settings in (([], variables), (flags.split(), {}))
    ]


def outputs(workers: Sequence[subprocess.Popen]) -> list[str]:
    """What each has printed, but for what gloo prints of itself."""
    try:
        found = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [
        "\n".join(line for line in text.splitlines() if "peer ranks" not in line)
        for text in found
    ]


def wait_for_updates(log: Path, count: int, workers: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and all(w.poll() is None for w in workers):
        if log.exists() and log.read_text().count('"event": "train"') >= count:
            return
        time.sleep(0.05)


def by_step(workdir: Path, event: str, *names: str) -> dict[int, list[float]]:
    return {
        record["step"]: [record[name] for name in names]
        for record in events(workdir, event)
    }


def test_two_processes_train_stop_and_go_on_as_one_does(tmp_path, monkeypatch):
    config = without_dropout(toy(tmp_path, log_every=50))
    # Adam makes much of rounding noise where a gradient is nearly 0, but for eps.
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=50, eps=1e-4)
    config = dataclasses.replace(config, optimizer=optimizer)
    origin, workdir, alone = (tmp_path / name for name in ("origin", "two", "one"))
    unseen = dataclasses.replace(config.data, dev_split="")
    with monkeypatch.context() as patch:
        use_one_device(patch)
        train(dataclasses.replace(steps(config, LEARNT), data=unseen), origin)

    settings = dataclasses.replace(config.train, log_every=1, evaluate_every=8)
    config = dataclasses.replace(
        config,
        train=settings,
        evaluation=dataclasses.replace(config.evaluation, max_sentences=0),
        parallel=ParallelConfig(data=2, fsdp=2),
    )
    workers = start_two(config, workdir, "--init-from", str(origin))
    wait_for_updates(workdir / "log.jsonl", 2, workers)
    workers[1].send_signal(signal.SIGTERM)
    main, other = outputs(workers)
    assert [worker.returncode for worker in workers] == [143, 143], main + other
    assert "in 2 processes" in main
    assert "The same command goes on" in main
    assert other == ""
    stopped = CheckpointStore(workdir).latest_step()
    assert stopped is not None

    again = ["--init-from", str(origin), "--train.steps", str(stopped + 2)]
    workers = start_two(config, workdir, *again)
    main, other = outputs(workers)
    assert [worker.returncode for worker in workers] == [0, 0], main + other
    assert f"from step {stopped:,}" in main
    assert other == ""

    last = stopped + 4
    for folder, mesh, devices in (
        (workdir, ParallelConfig(fsdp=2, tensor=2), 4),
        (alone, ParallelConfig(), 1),
    ):
        some = functools.partial(parallel.make_mesh, devices=jax.devices()[:devices])
        with monkeypatch.context() as patch:
            patch.setattr(parallel, "make_mesh", some)
            here = dataclasses.replace(steps(config, last), parallel=mesh)
            train(here, folder, init_from=origin)
    for event, names in (
        ("train", ("loss", "accuracy")),
        ("evaluate", ("loss", "accuracy", "bleu", "chrf")),
    ):
        ours, wanted = (by_step(each, event, *names) for each in (workdir, alone))
        extra = {stopped + 2} if event == "evaluate" else set()
        assert ours.keys() - extra == wanted.keys() - extra
        for step in wanted:
            np.testing.assert_allclose(ours[step], wanted[step], rtol=1e-4)
    (bleu,) = by_step(alone, "evaluate", "bleu")[8]
    assert 5 < bleu < 100
    trees = [saved(folder)["params"] for folder in (workdir, alone)]
    chex.assert_trees_all_close(*trees, atol=1e-4)
