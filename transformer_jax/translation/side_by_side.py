"""Devices that search at the same time."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from transformer_jax.translation.sentences import Found


def side_by_side(searches: Sequence[Iterator[list[Found]]]) -> Iterator[Found]:
    """What several searches find, each in a thread of its own, as it comes: several at
    a time, since going from thread to thread takes longer than using one."""
    if len(searches) == 1:
        yield from itertools.chain.from_iterable(searches[0])
        return
    found: SimpleQueue[list[Found] | BaseException | None] = SimpleQueue()
    stopped = threading.Event()

    def work(search: Iterator[list[Found]]) -> None:
        try:
            for each in search:
                if each:
                    found.put(each)
                if stopped.is_set():
                    return
            found.put(None)
        except BaseException as error:  # raised again by the thread that waits
            found.put(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in searches]
    for thread in threads:
        thread.start()
    try:
        working = len(threads)
        while working:
            each = found.get()
            if isinstance(each, BaseException):
                raise each
            if each is None:
                working -= 1
            else:
                yield from each
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
