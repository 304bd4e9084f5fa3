"""Processes that train together, one on each host as a rule: how they find each other,
and the little that they tell each other besides what the devices exchange."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

LAST_WAIT = 60
"""Seconds that a process waits at its end for the others to end too. One that fails
alone takes the others with it after that."""

# What follows works in one process too, where it costs nothing.


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Comes back when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """The block runs in the main process, then in the others, which find on disk what
    it has made."""
    if not is_main_process():
        wait_for_all(name)
    try:
        yield
    finally:
        # Also after an error: those that wait would never hear of it.
        if is_main_process():
            wait_for_all(name)


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(number)).max())


def gather(data: bytes) -> list[bytes]:
    """What each process gives, in the order of the processes.

    >>> gather(b"alone")
    [b'alone']
    """
    if jax.process_count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    # Arrays that are gathered must be of one size.
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [
        row[: int(size)].tobytes()
        for row, size in zip(everyone, sizes[:, 0], strict=True)
    ]


def from_main(make: Callable[[], bytes]) -> bytes:
    """What `make` gives in the main process; if it raises a ValueError, all do.

    >>> from_main(lambda: b"made once")
    b'made once'
    """
    made, error = b"", None
    if is_main_process():
        try:
            made = b"+" + make()
        except ValueError as caught:
            made, error = b"-" + str(caught).encode(), caught
    made = gather(made)[0]
    if made[:1] == b"-":
        raise error or ValueError(made[1:].decode())
    return made[1:]


def share(length: int) -> range:
    """This process's places of `length`: as many as any other's, or one more or less.

    >>> share(3)
    range(0, 3)
    """
    index, count = jax.process_index(), jax.process_count()
    return range(length * index // count, length * (index + 1) // count)


# How they find each other.


class Launcher(NamedTuple):
    """What the program that started this process says of it and its siblings."""

    name: str
    count: int | None = None
    """Processes; None where only jax can find out. So with the index."""
    index: int | None = None
    method: str | None = None
    """What jax calls the way to find process 0, where it has to be told."""
    findable: bool = True
    """Whether there is a way."""
    local_index: int | None = None
    """Number among the processes of this host; None if it is the only one."""
    remedy: str = ""
    """What helps where there is none, besides naming the coordinator."""


def find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """Open MPI, SLURM, a TPU slice or Kubernetes, if one started several processes.

    >>> find_launcher({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})  # no task of them
    """
    for find in (_open_mpi, _slurm, _tpu, _kubernetes):
        known, launcher = find(environment)
        if known:
            return launcher
    return None


Finding = tuple[bool, Launcher | None]
"""Whether there is such an environment, and the launcher if it runs several."""


def _open_mpi(environment: Mapping[str, str]) -> Finding:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return False, None
    count, index, siblings, local_index = (
        int(environment.get(f"OMPI_COMM_WORLD_{name}", default))
        for name, default in (
            ("SIZE", 1),
            ("RANK", 0),
            ("LOCAL_SIZE", 1),
            ("LOCAL_RANK", 0),
        )
    )
    if count == 1:
        return True, None
    tells = "OMPI_MCA_orte_hnp_uri" in environment  # up to version 4
    return True, Launcher(
        "Open MPI",
        count,
        index,
        method="ompi" if tells else "mpi4py",
        findable=tells or importlib.util.find_spec("mpi4py") is not None,
        local_index=local_index if siblings > 1 else None,
        remedy=", or install mpi4py, by which Open MPI 5 tells it",
    )


def _slurm(environment: Mapping[str, str]) -> Finding:
    # A shell of salloc has the job's variables, and only a task those of a step.
    needed = ("JOB_ID", "PROCID", "LOCALID", "STEP_NODELIST", "NTASKS")
    if not all(f"SLURM_{name}" in environment for name in needed):
        return False, None
    # In an interactive step NTASKS is what was asked for, and one task is there.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
    if int(tasks) == 1:
        return True, None
    nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES"))
    local = None if nodes == tasks else int(environment["SLURM_LOCALID"])
    index = int(environment["SLURM_PROCID"])
    return True, Launcher("SLURM", int(tasks), index, method="slurm", local_index=local)


def _tpu(environment: Mapping[str, str]) -> Finding:
    hosts = environment.get(
        "TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", "")
    )
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if hosts:
        several = len(hosts.split(",")) * slices > 1
        return True, Launcher("TPU") if several else None
    # jax sets the first where it sees TPU chips, and the second where there is no
    # metadata server, which a machine of a slice asks for the others.
    asks = "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment
    return asks, Launcher("TPU") if asks else None


def _kubernetes(environment: Mapping[str, str]) -> Finding:
    # Every pod has the first; the second those of an indexed job, which may be many.
    names = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")
    if not all(name in environment for name in names):
        return False, None
    return True, Launcher(
        "Kubernetes",
        index=int(environment["JOB_COMPLETION_INDEX"]),
        findable=importlib.util.find_spec("kubernetes") is not None,
        remedy=" and --processes.count N, or install the package kubernetes",
    )


def join_processes(
    *,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Joins the processes of a run, if there are several. Comes before the first use of
    a device.

    What is not given is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, and then from the launcher: SLURM, Open MPI, Kubernetes or a TPU
    slice. Without any of these, or with a `count` of 1, this process is alone.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number(count, "JAX_NUM_PROCESSES", environment)
    index = _number(index, "JAX_PROCESS_ID", environment)
    if count == 1:
        return
    launcher = find_launcher(environment)
    if launcher is None and (coordinator, count, index) == (None, None, None):
        return
    if launcher is not None:
        count = launcher.count if count is None else count
        index = launcher.index if index is None else index
    if coordinator is not None:
        _check(coordinator, count, index)
        _initialize(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=index,
            local_device_ids=_local_devices(launcher, environment),
            cluster_detection_method="deactivate",
        )
        return
    if launcher is None or not launcher.findable:
        raise ValueError(_no_coordinator(launcher))
    _initialize(
        num_processes=count,
        process_id=index,
        local_device_ids=_local_devices(launcher, environment),
        cluster_detection_method=launcher.method,
    )


def _no_coordinator(launcher: Launcher | None) -> str:
    if launcher is None:
        return (
            "There is a count or an index of processes, but no coordinator: give all "
            "three of --processes.coordinator HOST:PORT, --processes.count N and "
            "--processes.index I (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, "
            "JAX_PROCESS_ID), or none of them."
        )
    return (
        f"{launcher.name} started this process as number {launcher.index} of several, "
        "and does not tell where process 0 is: give --processes.coordinator HOST:PORT"
        f"{launcher.remedy}. --processes.count 1 trains alone."
    )


def _local_devices(
    launcher: Launcher | None, environment: Mapping[str, str]
) -> list[int] | None:
    """Numbers of this host's devices that are this process's; None leaves it to jax.

    Under SLURM and Open MPI jax takes one, of the process's number on its host: right
    for a process a device. A process that has its host to itself takes all: [].
    """
    by_number = launcher is not None and launcher.name in ("SLURM", "Open MPI")
    if launcher is None or not by_number or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return [] if launcher.local_index is None else [launcher.local_index]


def _number(given: int | None, name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name, "")
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise ValueError(f"{name} is {text!r}: it must be a number, or not be set.")
    return int(text)


def _check(coordinator: str, count: int | None, index: int | None) -> None:
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise ValueError(
            f"The coordinator is {coordinator!r}: it must be the address of process 0 "
            "and a free port there, as 10.0.0.1:8476 (--processes.coordinator or "
            "JAX_COORDINATOR_ADDRESS)."
        )
    if count is None or index is None:
        missing = "--processes.count N" if count is None else "--processes.index I"
        variable = "JAX_NUM_PROCESSES" if count is None else "JAX_PROCESS_ID"
        raise ValueError(
            f"The coordinator is {coordinator}, and {missing} (or {variable}) is "
            "missing: give each process all three."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"--processes.index (or JAX_PROCESS_ID) is {index}, and there are {count} "
            f"processes: it must be one of 0 to {count - 1}, another for each."
        )


def _initialize(**known: Any) -> None:
    """Starts what jax has for many processes; its complaints come in our words."""
    name = "jax_cpu_collectives_implementation"
    if getattr(jax.config, name, "gloo") is None:
        jax.config.update(name, "gloo")
    try:
        jax.distributed.initialize(**known, shutdown_timeout_seconds=LAST_WAIT)
    except Exception as error:
        raise ValueError(
            f"The processes of this run did not find each other. {error} Give each "
            "--processes.coordinator, --processes.count and --processes.index, or "
            "--processes.count 1 to train alone."
        ) from error
