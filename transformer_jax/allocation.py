"""What a process does with memory that it has freed."""

import ctypes
import os
import platform

# From malloc.h of glibc.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets a process keep what it frees for its next allocation. → whether it will.

    XLA takes the memory of a CPU program in one piece whenever the program runs. Pieces
    beyond 32 MiB glibc gets from the kernel and gives back at once, and the kernel
    fills every page with zeros at its first touch: a fifth of a training step's time.
    The price is that the process never becomes smaller (mallopt(3)).

    With glibc alone; and not where MALLOC_… or GLIBC_TUNABLES in the environment say
    what is wanted. To be called before threads are started, which have pools of their
    own otherwise.
    """
    decided = [name for name in os.environ if name.startswith("MALLOC_")]
    if decided or "GLIBC_TUNABLES" in os.environ:
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
