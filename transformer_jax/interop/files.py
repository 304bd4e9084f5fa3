"""Weights in other libraries' files, none of which is trusted.

safetensors files hold arrays and nothing else. `.pt`, `.bin` and `.ckpt` files are
pickles, which can hold programs: PyTorch's weights-only reader refuses all but arrays,
plain containers, and the few classes that a library's checkpoints need. Of those only
the fields are kept, so that no code of theirs runs.
"""

import fnmatch
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

PICKLES = (".pt", ".bin", ".ckpt", ".pth", ".best")
"""Endings of files that PyTorch writes."""
UNKNOWN_CLASS = re.compile(r"GLOBAL ([\w.]+)")
"""In what PyTorch's reader says of a class that it does not let in."""


class FileError(ValueError):
    """A file of weights that is missing, damaged or unsafe."""


class Fields:
    """Stands in for an object of another library: its fields, without its code."""

    def __init__(self, *args: Any):
        self.__dict__["args"] = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; bfloat16 ones become float32."""
    check_file(path)
    try:
        state = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileError(
            f"{path} cannot be read as safetensors: {error}. Is it whole? Copy or "
            "download it again."
        ) from None
    return {name: _known_type(x) for name, x in state.items()}


def write_tensors(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, marked as PyTorch's so that its users' loaders take it."""
    safetensors.numpy.save_file(dict(state), path, metadata={"format": "pt"})


def read_pickle(path: Path, *, classes: Sequence[str] = ()) -> Any:
    """What `torch.save` wrote, tensors as numpy arrays.

    `classes` are the dotted names of classes that may occur, or patterns of them
    (`omegaconf.*`); each becomes `Fields`, and is asked for nothing.
    """
    check_file(path)
    torch = import_torch()
    allowed: dict[str, Any] = {}
    while True:
        pairs = [(stand_in, name) for name, stand_in in allowed.items()]
        try:
            with torch.serialization.safe_globals(pairs):
                value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # The reader names one class at a time, builtin ones by half their name.
            found = UNKNOWN_CLASS.search(str(error))
            name = found[1] if found else ""
            name = name if "." in name else f"builtins.{name}"
            if name in allowed or not _matches(name, classes):
                raise FileError(_refused(path, str(error))) from None
            allowed[name] = _stand_in(name)
        else:
            return _to_numpy(value, torch)


def write_pickle(path: Path, value: Any) -> None:
    """What `torch.load` reads, numpy arrays as tensors."""
    torch = import_torch()
    torch.save(_to_torch(value, torch), path)


def import_torch() -> Any:
    """PyTorch, or an error that says how to get it."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "PyTorch's files can be read and written only with PyTorch, which is not "
            "installed: pip install 'transformer_jax[compare]', or give the weights as "
            "safetensors."
        ) from None


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON: {error}.") from None


def check_file(path: Path) -> None:
    """Raises unless there is a file with something in it."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileError(f"{path} {what}, but a file is expected. Check the path.")
    if not path.stat().st_size:
        raise FileError(f"{path} is empty. Copy or download it again.")


def find_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that a folder has."""
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}. Check the path.")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileError(f"{folder} has none of {', '.join(names)}: copy it there.")


def new_folder(path: Path) -> Path:
    """A folder that is made, and must not be there yet (or be empty)."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} exists already: give the name of a new folder as --output."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _refused(path: Path, reason: str) -> str:
    unknown = sorted(set(UNKNOWN_CLASS.findall(reason)))
    if unknown:
        return (
            f"{path} is refused: besides arrays it holds {', '.join(unknown)}, which "
            "could run any program when it is loaded. If you trust its origin, load it "
            "with its own library and save its state dict as safetensors."
        )
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return f"{path} cannot be read by PyTorch: {first}. Is it whole?"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _stand_in(name: str) -> Any:
    if name == "collections.defaultdict":
        return lambda *_: {}  # the reader puts items into plain dicts only
    return type(name, (Fields,), {})


def _known_type(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.name in ("bfloat16", "float16") else x


def _to_numpy(value: Any, torch: Any, inside: tuple[int, ...] = ()) -> Any:
    """The same with arrays in place of tensors, and dicts in place of `Fields`.

    What holds itself, as a child does its parent, is left out there.
    """
    if isinstance(value, torch.Tensor):
        half = value.dtype in (torch.bfloat16, torch.float16)
        return (value.float() if half else value).detach().numpy()
    if id(value) in inside:
        return None
    inside = (*inside, id(value))
    if isinstance(value, Fields):
        value = {"class": type(value).__name__, **vars(value)}
    if isinstance(value, Mapping):
        return {key: _to_numpy(each, torch, inside) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_numpy(each, torch, inside) for each in value)
    return value


def _to_torch(value: Any, torch: Any) -> Any:
    if isinstance(value, np.ndarray):
        # Arrays that come from jax are read-only, which torch does not know.
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, Mapping):
        return {key: _to_torch(each, torch) for key, each in value.items()}
    return value


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts by dotted name.

    >>> dict(flat({"a": {"b": 1}, "c": 2}))
    {'a.b': 1, 'c': 2}
    """
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from flat(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", each
