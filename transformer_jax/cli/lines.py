"""Lines in and lines out, for verbs that read text and answer line by line."""

import contextlib
import io
import itertools
import json
import math
import os
import queue
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import tqdm

from transformer_jax.data.text import open_text, stream_lines, without_end

CHUNK_LINES = 8192
"""Lines of a file that are held and answered at a time."""
PATIENCE_SECONDS = 0.1
"""A pipe that is silent for so long has its lines answered before it goes on."""


class Chunk(NamedTuple):
    """Lines that are answered together."""

    lines: list[str]
    damaged: list[int]
    """Places of lines with bytes that are not UTF-8; these were replaced by U+FFFD."""


def count_lines(path: Path) -> int:
    """Lines of a file, the last one with or without a newline."""
    count, last = 0, b"\n"
    with open_text(path) as file:
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def file_chunks(path: Path) -> Iterator[Chunk]:
    """A file's lines."""
    with open_text(path) as file:
        yield from _full_chunks(file)


def stdin_chunks() -> Iterator[Chunk]:
    """Lines of stdin as they come: a terminal's or pipe's at once, a file's in bulk."""
    stream = sys.stdin.buffer
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, io.UnsupportedOperation):
        mode = stat.S_IFREG  # not a real file: it can be read to its end
    if stat.S_ISREG(mode):
        return _full_chunks(stream)
    return _eager_chunks(stream)


def with_lines_of(
    chunks: Iterator[Chunk], *paths: Path | None
) -> Iterator[tuple[Chunk, list[list[str] | None]]]:
    """Each chunk with as many lines of each file that goes beside the input; in place
    of a file that is None, with None.

    Other line counts than the input's raise ValueError.
    """
    files = [stream_lines(path) if path else iter(()) for path in paths]
    done = 0
    for chunk in chunks:
        beside: list[list[str] | None] = []
        for path, file in zip(paths, files, strict=True):
            lines = list(itertools.islice(file, len(chunk.lines)))
            if path and len(lines) < len(chunk.lines):
                raise ValueError(_uneven(path, done + len(lines), "more"))
            beside.append(lines if path else None)
        yield chunk, beside
        done += len(chunk.lines)
    for path, file in zip(paths, files, strict=True):
        if path and (rest := sum(1 for _ in file)):
            raise ValueError(_uneven(path, done + rest, str(done)))


def _uneven(path: Path, count: int, lines: str) -> str:
    return (
        f"{path} has {count} lines and the input has {lines}: line n of one goes with "
        "line n of the other. Give as many, empty ones where nothing is asked."
    )


def check_readable(path: Path) -> None:
    """Raises ValueError with what to do when a file cannot be read."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return  # a pipe can be read once only
    with open_text(path) as file:
        if not file.peek(1):
            raise ValueError(f"{path} is empty: it must hold one sentence a line.")


def _full_chunks(stream: BinaryIO) -> Iterator[Chunk]:
    lines: list[bytes] = []
    for line in stream:
        lines.append(line)
        if len(lines) == CHUNK_LINES:
            yield _decode(lines)
            lines = []
    if lines:
        yield _decode(lines)


def _eager_chunks(stream: BinaryIO) -> Iterator[Chunk]:
    """What has come by the time that the stream pauses."""
    arrived: queue.Queue[bytes] = queue.Queue(maxsize=CHUNK_LINES)

    def read() -> None:
        for line in stream:
            arrived.put(line)
        arrived.put(b"")

    threading.Thread(target=read, daemon=True).start()
    more = True
    while more:
        lines = [arrived.get()]
        with contextlib.suppress(queue.Empty):
            while lines[-1] and len(lines) < CHUNK_LINES:
                lines.append(arrived.get(timeout=PATIENCE_SECONDS))
        if not lines[-1]:
            more = False
            lines.pop()
        if lines:
            yield _decode(lines)


def _decode(raw: list[bytes]) -> Chunk:
    lines, damaged = [], []
    for place, line in enumerate(raw):
        line = without_end(line)
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            damaged.append(place)
            lines.append(line.decode("utf-8", errors="replace"))
    return Chunk(lines, damaged)


def check_output(path: Path | None, *, read: Sequence[Path | None]) -> None:
    """Raises ValueError, before any work, where `output_to` could not write.

    `read` are the verb's own sources; None, as for `path`, is no file.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: name a file.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} for --output: make it.")
    for source in read:
        if source and path.is_file() and source.exists() and path.samefile(source):
            raise ValueError(
                f"--output {path} is the file that is read, which would be lost: name "
                "another file."
            )


def check_at_least_one(**options: int | None) -> None:
    """Raises ValueError for an option that is given and below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {value}: it must be at least 1.")


@contextlib.contextmanager
def lines_bar(total: int | None, *, shown: bool) -> Iterator[tqdm.tqdm]:
    """A progress bar on stderr; an error wipes it away, so that its message is seen."""
    with tqdm.tqdm(total=total, unit=" lines", disable=not shown, leave=False) as bar:
        yield bar
        bar.leave = True


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[TextIO]:
    """stdout, or a file that appears under its name when all is written."""
    if path is None:
        # Whatever the locale, text is UTF-8 and lines end with \n.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
        return
    if path.exists() and not path.is_file():
        # A pipe or a device is written to; it must not be replaced by a file.
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def one_line(text: str) -> str:
    """Text that stays one line of output.

    >>> one_line("a\\nb\\r")
    'a b '
    """
    return text.replace("\n", " ").replace("\r", " ")


def json_line(value: dict[str, Any]) -> str:
    """An object on one line, whoever splits the lines; no NaN and no infinities.

    >>> json_line({"text": "a\\u2028ü", "score": float("-inf")})
    '{"text": "a\\\\u2028ü", "score": null}'
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    for separator in ("\x85", "\u2028", "\u2029"):
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
