"""Lines of text files, plain or gzip: split on \\n only, and strictly UTF-8."""

import contextlib
import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_GZIP = b"\x1f\x8b"
"""How gzip files begin; no UTF-8 text can."""
_MARK = b"\xef\xbb\xbf"
"""The byte-order mark, which is no part of a text."""


@contextlib.contextmanager
def open_text(path: Path) -> Iterator["io.BufferedReader[Any]"]:
    """The bytes of a text file or pipe, plain or gzip, behind a byte-order mark if any.

    A file that cannot be opened or read to its end raises ValueError.
    """
    try:
        with contextlib.ExitStack() as stack:
            text: Any = stack.enter_context(path.open("rb"))
            if text.peek(len(_GZIP)).startswith(_GZIP):
                inside = stack.enter_context(gzip.GzipFile(fileobj=text))
                text = stack.enter_context(io.BufferedReader(inside))
            if text.peek(len(_MARK)).startswith(_MARK):
                text.read(len(_MARK))
            yield text
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(_unreadable(path, error)) from None


def stream_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time, without their ends (\\n or \\r\\n).

    A missing, empty or unreadable file, or bytes that are not UTF-8, raise ValueError.
    """
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                yield without_end(line).decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise ValueError(
            f"{path}, line {number}: byte {error.start + 1} of the line is "
            f"0x{wrong:02x}, which is not valid UTF-8. Convert the file to UTF-8 (for "
            "example with iconv), or mend the line."
        ) from None
    if not number:
        raise ValueError(f"{path} is empty: it must hold one sentence a line.")


def stream_pairs(
    source: Sequence[Path], target: Sequence[Path]
) -> Iterator[tuple[str, str]]:
    """Line n of the source files with line n of the target files.

    As many files on both sides are matched file by file; otherwise each side is one
    long text. Different line counts raise ValueError.
    """
    if not source or not target:
        raise ValueError(
            f"There are {len(source)} source files and {len(target)} target files: "
            "give at least one on each side."
        )
    if len(source) == len(target):
        for files in zip(source, target, strict=True):
            yield from _stream_pairs(files[:1], files[1:])
    else:
        yield from _stream_pairs(source, target)


def read_pairs(
    source: Sequence[Path], target: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """All lines of both sides, as many of the one as of the other."""
    pairs = list(stream_pairs(source, target))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def fingerprint(paths: Sequence[Path]) -> str:
    """Twelve hex digits of the files' texts, in order; compressed or not is the same.

    Raises ValueError when a file is missing, empty or damaged.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open_text(path) as file:
            if not file.peek(1):
                raise ValueError(f"{path} is empty: it must hold one sentence a line.")
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _stream_pairs(
    source: Sequence[Path], target: Sequence[Path]
) -> Iterator[tuple[str, str]]:
    source_lines = itertools.chain.from_iterable(map(stream_lines, source))
    target_lines = itertools.chain.from_iterable(map(stream_lines, target))
    pairs = itertools.zip_longest(source_lines, target_lines)
    for common, (left, right) in enumerate(pairs):
        if left is not None and right is not None:
            yield left, right
            continue
        # The longer side has given one line more than the other, so far.
        rest = target_lines if left is None else source_lines
        longer = common + 1 + sum(1 for _ in rest)
        counts = (common, longer) if left is None else (longer, common)
        raise ValueError(
            f"{_names(source)} has {counts[0]} lines and {_names(target)} has "
            f"{counts[1]}: line n of one must be the translation of line n of the "
            f"other. First line without a partner: {common + 1}."
        )


def without_end(line: bytes) -> bytes:
    """A line without its \\n or \\r\\n.

    >>> without_end(b"a\\r\\n")
    b'a'
    """
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _names(paths: Sequence[Path]) -> str:
    return " + ".join(map(str, paths))


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"There is no file {path}. Check the path."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, but a text file is expected. Name a file in it."
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path} cannot be read: {reason}. Is it whole, and yours to read?"
