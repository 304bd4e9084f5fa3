"""Weights in other libraries' files, none of which is trusted.

safetensors files hold arrays and nothing else. `.pt`, `.bin` and `.ckpt` files are
pickles, which can hold programs: PyTorch's weights-only reader refuses all but arrays,
plain containers, and the few classes that a library's checkpoints need. Of those only
the fields are kept, so that no code of theirs runs.
"""

import contextlib
import fnmatch
import importlib
import json
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import yaml

PICKLES = (".pt", ".bin", ".ckpt", ".pth", ".best")
"""Endings of files that PyTorch writes."""
UNKNOWN_CLASS = re.compile(r"GLOBAL ([\w.]+)")
"""In what PyTorch's reader says of a class that it does not let in."""
WIDENED = ("bfloat16", "float16")
"""Types of arrays that are read as float32, which holds all their numbers."""
STORED_TYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BF16": "<u2",
    "BOOL": "?",
}
"""Types in safetensors files by their names there; numpy itself has no bfloat16."""


class FileError(ValueError):
    """A file of weights that is missing, damaged or unsafe."""


class Fields:
    """Stands in for an object of another library: its fields, without its code."""

    def __init__(self, *args: Any):
        self.__dict__["args"] = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; bfloat16 and float16 ones become float32.

    The file is read once, and its arrays are views of what was read.
    """
    check_file(path)
    try:
        with safetensors.safe_open(path, framework="np"):
            pass  # which checks that the header describes all bytes of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            data = np.fromfile(file, np.uint8)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileError(
            f"{path} cannot be read as safetensors: {error}. Is it whole? Copy or "
            "download it again."
        ) from None
    header.pop("__metadata__", None)
    return {name: _stored(path, name, data, about) for name, about in header.items()}


def _stored(
    path: Path, name: str, data: np.ndarray, about: Mapping[str, Any]
) -> np.ndarray:
    """One array of a file with these bytes."""
    stored = about["dtype"]
    if stored not in STORED_TYPES:
        raise FileError(
            f"{path}: {name} is of type {stored}, which cannot be read: save it as "
            "float32."
        )
    first, end = about["data_offsets"]
    x = data[first:end].view(STORED_TYPES[stored]).reshape(about["shape"])
    if stored == "BF16":
        # Its bits are the upper half of a float32's.
        return (x.astype(np.uint32) << 16).view(np.float32)
    return np.require(_known_type(x), requirements="A")


def write_tensors(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, marked as PyTorch's so that its users' loaders take it."""
    safetensors.numpy.save_file(dict(state), path, metadata={"format": "pt"})


def read_pickle(path: Path, *, classes: Sequence[str] = ()) -> Any:
    """What `torch.save` wrote, tensors as numpy arrays.

    `classes` are the dotted names of classes that may occur, or patterns of them
    (`omegaconf.*`); each becomes `Fields`, and is asked for nothing. Files of PyTorch
    1.6 and later are compared with their checksums; older ones have none.
    """
    check_file(path)
    torch = import_torch()
    _check_sums(path)
    allowed: dict[str, Any] = {}
    while True:
        pairs = [(stand_in, name) for name, stand_in in allowed.items()]
        try:
            with torch.serialization.safe_globals(pairs), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about age and version of the file
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
            return _to_numpy(value, torch, str(path))


def _check_sums(path: Path) -> None:
    """Raises if a file that is a zip archive differs from its checksums."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory can break it in many ways
        raise FileError(
            f"{path} is damaged: {error}. Copy or download it again."
        ) from None
    if damaged is not None:
        raise FileError(
            f"{path} is damaged: its part {damaged} does not have the checksum that "
            "was noted. Copy or download it again; or, if it was saved with "
            "torch.serialization.set_crc32_options(False), save it without that."
        )


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an object of a class (`!Name`) is a mapping too."""
    check_file(path)
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise FileError(f"{path} is not valid YAML: {error}.") from None
    if not isinstance(value, dict):
        raise FileError(f"{path} holds no settings, but {type(value).__name__}.")
    return value


class _PlainLoader(yaml.SafeLoader):
    """Makes no objects: mappings, lists and numbers only."""


def _plain_mapping(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(
            None, None, f"!{tag} is not a mapping", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


def _plain_list(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return loader.construct_sequence(node, deep=True)  # pyright: ignore[reportArgumentType]


_PlainLoader.add_multi_constructor("!", _plain_mapping)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _plain_list)


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


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which has this name once all is in it.

    It must not be there yet (or be empty). After an error nothing is left of it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} exists already: give the name of a new folder as --output."
        )
    there = path.resolve()
    unfinished = there.with_name(f".{there.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if there.exists():
            for inside in unfinished.iterdir():
                shutil.move(inside, there / inside.name)
        else:
            unfinished.rename(there)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refused(path: Path, reason: str) -> str:
    unknown = sorted(set(UNKNOWN_CLASS.findall(reason)))
    if unknown:
        return (
            f"{path} is refused: besides arrays it holds {', '.join(unknown)}, which "
            "could run any program when it is loaded. If you trust its origin, load it "
            "with its own library and save its state dict as safetensors."
        )
    return (
        f"{path} cannot be read by PyTorch: it is no file that torch.save wrote, or is "
        "damaged, or holds more than arrays and plain containers. Is it whole? Copy or "
        "download it again, or save its state dict as safetensors."
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _stand_in(name: str) -> Any:
    if name == "collections.defaultdict":
        return lambda *_: {}  # the reader puts items into plain dicts only
    return type(name, (Fields,), {})


def _known_type(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.name in WIDENED else x


def as_array(value: Any, name: str) -> Any:
    """A tensor of PyTorch or an array of jax as one of numpy, anything else as it is.

    `name` stands in the error about a tensor that has no such form.
    """
    torch = sys.modules.get("torch")  # without it there are no tensors of its
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor(value, torch, name)
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__"):
        return value
    return np.asarray(value)


def _tensor(x: Any, torch: Any, name: str) -> np.ndarray:
    """One tensor; half precision becomes float32."""
    kind = str(x.dtype).removeprefix("torch.")
    if x.layout != torch.strided:
        kind = f"sparse ({x.layout})"
    elif x.is_quantized or x.is_meta:
        kind = f"quantized ({kind})" if x.is_quantized else "meta, without numbers"
    else:
        x = x.detach().cpu()
        try:
            return (x.float() if kind in WIDENED else x).numpy()
        except (TypeError, RuntimeError):
            pass  # types that numpy does not have
    raise FileError(
        f"{name} is a tensor of the kind {kind}, which cannot be read: save it as an "
        "ordinary tensor of float32."
    )


def _to_numpy(value: Any, torch: Any, name: str, inside: tuple[int, ...] = ()) -> Any:
    """The same with arrays in place of tensors, and dicts in place of `Fields`.

    What holds itself, as a child does its parent, is left out there. `name` says where
    in which file the value is.
    """
    if isinstance(value, torch.Tensor):
        return _tensor(value, torch, name)
    if id(value) in inside:
        return None
    inside = (*inside, id(value))
    if isinstance(value, Fields):
        value = {"class": type(value).__name__, **vars(value)}
    if isinstance(value, Mapping):
        return {
            key: _to_numpy(each, torch, f"{name}: {key}", inside)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_to_numpy(each, torch, name, inside) for each in value)
    return value


def _to_torch(value: Any, torch: Any) -> Any:
    if isinstance(value, np.ndarray):
        # Arrays that come from jax are read-only, which torch does not know.
        value = np.require(value, requirements=["C", "W"])
        if value.dtype.name == "bfloat16":  # which torch does not take from numpy
            return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _to_torch(each, torch) for key, each in value.items()}
    return value
