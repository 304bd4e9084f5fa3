"""Freed memory stays with the process: no page of it is touched for the first time
again."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc alone is told"
)

FAULTS = """
import ctypes, resource, sys, threading
import numpy as np
from transformer_jax.allocation import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: each page is a fault
if sys.argv[1] == "keep":
    keep_freed_memory()

def use():
    np.ones(8_000_000)  # 64 MB, freed at once

def faults():
    thread = threading.Thread(target=use)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""
PAGES = 8_000_000 * 8 // os.sysconf("SC_PAGE_SIZE")


def faults_of_the_second(how: str, **environment: str) -> int:
    """First touches of pages in the second allocation of a process."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    found = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)


def test_the_second_allocation_gets_the_pages_of_the_first():
    assert faults_of_the_second("leave") > 0.9 * PAGES
    assert faults_of_the_second("keep") < 0.1 * PAGES


def test_what_the_environment_says_counts():
    assert faults_of_the_second("keep", MALLOC_ARENA_MAX="2") > 0.9 * PAGES
