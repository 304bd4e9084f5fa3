"""How processes find each other: launchers' variables are made up, and jax's own start
is replaced. What they do then is for tests/system/test_two_processes.py."""

import os
import re
from pathlib import Path

import jax
import pytest
from jax._src.clusters import ClusterEnv

from transformer_jax import processes
from transformer_jax.cli import train as train_verb

EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
}
ONE_A_NODE = {
    **SLURM,
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI_4 = {
    **OPEN_MPI_5,
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
JOB = {**POD, "JOB_COMPLETION_INDEX": "2"}
TPU_HOSTS = {"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}


@pytest.fixture
def started(monkeypatch):
    """The calls of jax.distributed.initialize, which starts nothing."""
    calls: list[dict] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **known: calls.append(known)
    )
    return calls


@pytest.fixture
def packages(monkeypatch):
    """Names of packages that seem to be installed, besides those that are not asked
    for."""
    names: set[str] = set()
    monkeypatch.setattr(
        processes.importlib.util, "find_spec", lambda name: name in names or None
    )
    return names


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # A shell of salloc, of four tasks, none of which it is.
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[1-4]"},
        # Its shell, where that is a step of its own.
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        # A batch script, outside srun.
        {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},
        {**OPEN_MPI_4, "OMPI_COMM_WORLD_SIZE": "1"},
        # mpirun for one process, itself inside a step of several.
        {**SLURM, **OPEN_MPI_4, "OMPI_COMM_WORLD_SIZE": "1"},
        POD,
        {"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"},
    ],
)
def test_one_process_starts_nothing_and_says_nothing(environment, started, capfd):
    processes.join_processes(environment=environment)
    assert not started
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("environment", [SLURM, OPEN_MPI_4, JOB, TPU_HOSTS, EXPLICIT])
def test_a_count_of_one_is_alone_under_any_launcher(environment, started):
    processes.join_processes(count=1, environment=environment)
    assert not started


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        # jax takes a device for each process, by its number on the host.
        (SLURM, ("slurm", 8, 5, [1])),
        # A process that has a host to itself takes all of its devices.
        (ONE_A_NODE, ("slurm", 2, 1, [])),
        ({**ONE_A_NODE, "JAX_LOCAL_DEVICE_IDS": "0,1"}, ("slurm", 2, 1, None)),
        (OPEN_MPI_4, ("ompi", 4, 3, [1])),
        (OPEN_MPI_5, ("mpi4py", 4, 3, [1])),
        # mpirun inside a SLURM job: its variables are those that hold.
        ({**SLURM, **OPEN_MPI_4}, ("ompi", 4, 3, [1])),
        (JOB, (None, None, 2, None)),
        (TPU_HOSTS, (None, None, None, None)),
        ({"TPU_ML_PLATFORM": "JAX"}, (None, None, None, None)),
        (
            {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
            (None, None, None, None),
        ),
    ],
)
def test_launchers_are_known_by_their_variables(environment, wanted, started, packages):
    packages |= {"mpi4py", "kubernetes"}
    processes.join_processes(environment=environment)
    (call,) = started
    names = (
        "cluster_detection_method",
        "num_processes",
        "process_id",
        "local_device_ids",
    )
    assert tuple(call[name] for name in names) == wanted
    assert wanted[0] in {None, *(each.name for each in ClusterEnv._cluster_types)}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (SLURM, ("node07:", 8, 5, [1])),
        (ONE_A_NODE, ("node07:", 2, 1, [])),
        (OPEN_MPI_4, ("10.96.0.1:", 4, 3, [1])),
    ],
)
def test_jax_finds_process_0_by_what_it_is_told(
    environment, wanted, started, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join_processes(environment=os.environ)
    (call,) = started
    address, *rest = ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address=None,
        num_processes=call["num_processes"],
        process_id=call["process_id"],
        local_device_ids=call["local_device_ids"],
        cluster_detection_method=call["cluster_detection_method"],
        initialization_timeout=1,
    )
    assert str(address).startswith(wanted[0])
    assert tuple(rest) == wanted[1:]


def test_flags_come_before_variables_and_variables_before_the_launcher(started):
    flags = "--processes.coordinator h:1 --processes.count 3 --processes.index 2"
    args = train_verb.parse(["--config", "phrasebook", *flags.split()])
    given = {
        "coordinator": args.processes.coordinator,
        "count": args.processes.count,
        "index": args.processes.index,
    }
    processes.join_processes(**given, environment={**EXPLICIT, **SLURM})
    processes.join_processes(environment={**EXPLICIT, **ONE_A_NODE})
    # A coordinator is enough where the launcher tells the rest.
    processes.join_processes(coordinator="h:1", environment=OPEN_MPI_5)
    names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    assert [tuple(call[name] for name in names) for call in started] == [
        ("h:1", 3, 2, [1]),
        ("10.0.0.1:8476", 2, 1, []),
        ("h:1", 4, 3, [1]),
    ]
    assert {call["cluster_detection_method"] for call in started} == {"deactivate"}


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({}, {**EXPLICIT, "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        ({"coordinator": "10.0.0.1"}, {}, "coordinator is '10.0.0.1'.*free port"),
        ({"coordinator": "h:1"}, {}, "--processes.count N .* is missing"),
        ({"coordinator": "h:1", "count": 2}, {}, "--processes.index I .* is missing"),
        ({"count": 2, "index": 2}, {}, "no coordinator: give all three"),
        ({"coordinator": "h:1", "count": 2, "index": 2}, {}, "one of 0 to 1"),
        ({}, OPEN_MPI_5, "Open MPI started .* number 3 .*mpi4py"),
        ({}, JOB, "Kubernetes started .* number 2 .*package kubernetes"),
    ],
)
def test_what_is_missing_is_told(given, environment, message, started, packages):
    with pytest.raises(ValueError, match=message):
        processes.join_processes(**given, environment=environment)
    assert not started


def test_what_jax_complains_of_is_told_with_what_helps(monkeypatch):
    def fail(**known):
        raise RuntimeError("DEADLINE_EXCEEDED.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"DEADLINE_EXCEEDED.*--processes.count 1"):
        processes.join_processes(environment=EXPLICIT)


def test_shares_of_processes_are_even_and_leave_nothing_out(monkeypatch):
    for count, length in ((1, 5), (3, 7), (4, 2)):
        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        shares = []
        for index in range(count):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            shares.append(processes.share(length))
        assert [place for each in shares for place in each] == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_commands_of_the_documentation_are_understood():
    text = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
    text = text.replace("\\\n", " ")
    commands = re.findall(r"transformer-jax train RUN((?: +--[\w.-]+ [\w.:]+)*)", text)
    assert len(commands) > 6
    run = ["--config", "wmt14_en_de", "--workdir", "runs/wmt"]
    for flags in commands:
        args = train_verb.parse([*run, *flags.split()])
        assert ("--processes" in flags) == (args.processes.coordinator is not None)
