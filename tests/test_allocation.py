"""Freed memory stays with the process: no page of it is touched for the first time
again."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import numpy as np
from transformer_jax.allocation import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else False

def use():
    np.ones(8_000_000)  # 64 MB, freed at once

def faults():
    thread = threading.Thread(target=use)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""
PAGES = 8_000_000 * 8 // os.sysconf("SC_PAGE_SIZE")


def second_allocation(how: str, **environment: str) -> tuple[str, int]:
    """What the function says, and first touches of pages in a second allocation."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    # With huge pages a page is 512, and the counts say nothing.
    clean["NUMPY_MADVISE_HUGEPAGE"] = "0"
    found = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = found.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told")
def test_the_second_allocation_gets_the_pages_of_the_first():
    assert second_allocation("leave")[1] > 0.9 * PAGES
    kept, faults = second_allocation("keep")
    assert kept == "True"
    assert faults < 0.1 * PAGES


def test_what_the_environment_says_counts():
    kept, faults = second_allocation("keep", MALLOC_ARENA_MAX="2")
    assert kept == "False"
    assert faults > 0.9 * PAGES
