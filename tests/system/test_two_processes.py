"""Two processes with two devices each stand in for many hosts."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from transformer_jax.checkpoint import CheckpointStore

WORKER = Path(__file__).parent / "two_processes.py"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_two_processes_train_and_save_as_one_does(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    workers = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-W", "error", str(WORKER), str(tmp_path)]
        workers.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)

    alone = runpy.run_path(str(WORKER))
    state = alone["init"](jax.random.key(0))
    store = CheckpointStore(tmp_path)
    for count in store.steps():
        state, _ = alone["step"](state, alone["WHOLE_BATCH"], jax.random.key(1))
        saved = store.restore_params(step=count)["output"]["kernel"]
        np.testing.assert_allclose(saved, state.params["output"]["kernel"], rtol=1e-5)
    assert store.steps() == [1, 2]
