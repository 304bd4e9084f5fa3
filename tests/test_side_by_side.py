"""Several searches on one CPU: they share its programs, and run at the same time."""

import subprocess
import sys

import jax
import pytest

from transformer_jax.parallel import devices_side_by_side

AT_THE_SAME_TIME = """
import os
import threading
from pathlib import Path
from transformer_jax.parallel import devices_side_by_side

devices = devices_side_by_side(2)
import jax
import jax.numpy as jnp
import numpy as np

assert devices == jax.local_devices() * 2, devices
together, compiled, waits = threading.Barrier(2, timeout=60), [], False

def meet(x):
    if waits:
        together.wait()  # passes only while the other one runs, too
    return x

@jax.jit
def met_double(x):
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return 2 * jax.pure_callback(meet, like, x)

def note(event, seconds, **_):
    if event.endswith("backend_compile_duration"):
        compiled.append(seconds)

if hasattr(os, "sched_getaffinity"):  # each thread of the pool has its own core
    threads = Path("/proc/self/task").iterdir()
    pool = [each for each in threads if "XLAEigen" in (each / "comm").read_text()]
    cores = [os.sched_getaffinity(int(each.name)) for each in pool]
    assert sorted(map(list, cores)) == [[i] for i in sorted(os.sched_getaffinity(0))]

inputs = [jax.device_put(np.ones(3, np.float32), each) for each in devices]
jax.monitoring.register_event_duration_secs_listener(note)
found = [None, None]

def work(i):
    found[i] = jax.device_get(met_double(inputs[i]))

for waits in (False, True):  # at first, one compiles and the other waits for it
    found[:] = None, None
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.tolist() for each in found] == [[2, 2, 2]] * 2, found
print("compiled", len(compiled))
"""


def test_searches_of_a_cpu_run_at_once_and_what_they_run_is_compiled_once():
    call = [sys.executable, "-c", AT_THE_SAME_TIME]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.stdout == "compiled 1\n", done.stderr


def test_after_jax_is_used_there_are_as_many_as_devices():
    assert devices_side_by_side() == jax.local_devices()
    assert devices_side_by_side(2) == jax.local_devices()[:2]
    with pytest.raises(ValueError, match="9 devices are wanted, and 8 are here"):
        devices_side_by_side(9)
