"""Folders whose files are compared with their SHA-256 whenever they are read.

The digests stand in a file SHA256SUMS beside them, which `sha256sum -c` reads too.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
ADVICE = (
    "Use another checkpoint (--step N) or a copy of this one; a training goes on from "
    "the checkpoint before when the folder of this one is moved away."
)


class DamagedError(ValueError):
    """A file that is missing, cut short, or not as it was written."""


class SealedFolder:
    """A folder that `seal` has closed."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = read_file(folder / SUMS).decode(errors="replace").splitlines()
        pairs = [line.split("  ", 1) for line in lines if "  " in line]
        self._sums = {name: digest for digest, name in pairs}

    def read(self, name: str) -> bytes:
        """A small file."""
        data = read_file(self.folder / name)
        check_digest(self.folder / name, digest(data), self._sums.get(name, ""))
        return data

    def read_all(self, folder: str) -> dict[str, bytes]:
        """All small files of a folder inside, by their paths in it."""
        return {name[len(folder) + 1 :]: self.read(name) for name in self._in(folder)}

    def check(self, folder: str) -> None:
        """Raises if a file of a folder inside, of whatever size, is not as written."""
        found = {
            path.relative_to(self.folder).as_posix()
            for path in (self.folder / folder).rglob("*")
            if path.is_file()
        }
        for name in sorted(found.union(self._in(folder))):
            path = self.folder / name
            check_digest(path, digest_file(path), self._sums.get(name, ""))

    def _in(self, folder: str) -> list[str]:
        return [name for name in self._sums if name.startswith(f"{folder}/")]


def seal(folder: Path) -> None:
    """Writes the digests of all files, and forces everything onto the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in paths]
    (folder / SUMS).write_text("".join(lines))
    for path in [folder, *folder.rglob("*")]:
        sync(path)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal.

    >>> digest(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file of any size."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def check_digest(path: Path, found: str, wanted: str) -> None:
    """Raises if the content of `path` is not what was saved."""
    if found != wanted:
        raise DamagedError(
            f"{path} is damaged: its content is not what was saved (its SHA-256 is "
            f"{found[:8]}…, and {wanted[:8] or 'nothing'}… was noted). {ADVICE}"
        )


def read_file(path: Path) -> bytes:
    """The content of a file that must be there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by their paths in a folder, which is made if need be."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def sync(path: Path) -> None:
    """Forces a file, or the entries of a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreadable(path: Path, error: OSError) -> DamagedError:
    return DamagedError(f"{path} cannot be read: {error.strerror}. {ADVICE}")
