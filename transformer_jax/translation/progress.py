"""How many lines are done."""

import contextlib
from collections.abc import Callable, Iterator

import tqdm


@contextlib.contextmanager
def updating(
    progress: bool | Callable[[int], object], total: int
) -> Iterator[Callable[[int], object]]:
    """`with … as update`: the caller's function, or that of a bar, shown or not."""
    if callable(progress):
        yield progress
        return
    with tqdm.tqdm(total=total, unit=" lines", disable=not progress) as bar:
        yield bar.update
