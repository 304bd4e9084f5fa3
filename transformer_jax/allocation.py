"""What a process does with memory that it has freed."""

import ctypes
import os
import platform

# From malloc.h of glibc.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets a process keep what it frees for its next allocation (mallopt(3)).

    XLA takes the memory of a CPU program in one piece whenever the program runs. Pieces
    beyond 32 MiB glibc gets from the kernel and gives back at once, and the kernel
    fills every page with zeros at its first touch: a fifth of a small model's CPU time.
    The price is a process that never becomes smaller, and that grows to some times the
    largest piece where pieces of many sizes take turns: it pays for programs of one
    shape.

    Nothing happens without glibc, nor where MALLOC_… or GLIBC_TUNABLES in the
    environment say what is wanted. To be called before threads are started, which have
    pools of their own otherwise.
    """
    decided = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if decided or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(TRIM_THRESHOLD, -1)
    mallopt(MMAP_MAX, 0)
    mallopt(ARENA_MAX, 1)
