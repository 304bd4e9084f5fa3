"""What other libraries' files hold, checked before it is used.

A file from elsewhere may hold anything: an error names the entry, what it is and what
it should be.
"""

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

import numpy as np

from transformer_jax.interop.files import FileError, read_json
from transformer_jax.interop.library import Options

Kinds = Mapping[str, type | tuple[type, ...]]
"""What fields hold: bool, int, float, str, list, dict, or one of several."""
WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "nothing",
    list: "a list",
    dict: "names with values",
}


def kinds_of(examples: Mapping[str, Any]) -> dict[str, type]:
    """The kinds of these values.

    >>> kinds_of({"heads": 8, "dropout": 0.1})
    {'heads': <class 'int'>, 'dropout': <class 'float'>}
    """
    return {name: type(value) for name, value in examples.items()}


def is_kind(value: Any, kind: type) -> bool:
    """Whether a value is of a kind: whole numbers are numbers, switches are not.

    >>> is_kind(1, float), is_kind(True, int), is_kind(1, bool), is_kind({}, dict)
    (True, False, True, True)
    """
    if kind is bool:
        return isinstance(value, int) and value in (True, False)
    if isinstance(value, bool):
        return False
    if kind is dict:
        return isinstance(value, Mapping)
    return isinstance(value, int | float if kind is float else kind)


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Names with values, as they are in the place that `where` names."""
    if not is_kind(value, dict) or not all(isinstance(name, str) for name in value):
        raise FileError(
            f"{where} must hold {WORDS[dict]} (a JSON object), but holds "
            f"{_shown(value)}: is it of such a model, and whole?"
        )
    return dict(value)


def arrays(value: Any, where: str) -> dict[str, np.ndarray]:
    """A state dict: arrays by name."""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in value.items()
    ):
        raise FileError(
            f"{where} holds no state dict (arrays by name): save model.state_dict()."
        )
    return dict(value)


def symbol_list(value: Any, where: str) -> tuple[str, ...]:
    """Symbols in the order of their ids."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise FileError(
            f"{where} must hold one list of symbols, but holds {_shown(value)}."
        )
    return tuple(value)


def given_settings(options: Options) -> dict[str, Any]:
    """Those of the option --settings; without it none."""
    if options.settings is None:
        return {}
    return mapping(read_json(options.settings), str(options.settings))


def check_fields(
    fields: Mapping[str, Any], kinds: Kinds, where: str, *, needed: bool = True
) -> None:
    """Raises unless these fields are there (if they are needed) and of these kinds.

    >>> check_fields({"heads": "8"}, {"heads": int, "layers": int}, "config")
    Traceback (most recent call last):
    ValueError: config: heads is '8', and must be a whole number; layers is missing. \
Give what is right in a file as --settings.
    """
    wrong = []
    for name, kind in kinds.items():
        choices = kind if isinstance(kind, tuple) else (kind,)
        if name not in fields:
            wrong += [f"{name} is missing"] if needed else []
        elif not any(is_kind(fields[name], each) for each in choices):
            words = " or ".join(WORDS[each] for each in choices)
            wrong.append(f"{name} is {_shown(fields[name])}, and must be {words}")
    if wrong:
        raise ValueError(
            f"{where}: {'; '.join(wrong)}. Give what is right in a file as --settings."
        )


def changed(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Says of what was one value there, and is another one here, what it will be.

    >>> changed({"decoder.dropout": (0.1, 0.3), "encoder.dropout": (0.3, 0.3)})
    ['decoder.dropout is 0.1, and will be 0.3']
    """
    return [
        f"{name} is {there}, and will be {here}"
        for name, (there, here) in pairs.items()
        if there != here
    ]


def collected(
    found: Iterable[tuple[str, str, np.ndarray]], where: str
) -> dict[str, np.ndarray]:
    """A state dict from names of now, names in the file and arrays.

    Raises where two of the file have one name now: one of them would be lost.
    """
    state: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, old, array in found:
        if name in state:
            raise FileError(
                f"{where} hold {name} twice, as {origin[name]} and as {old}, and only "
                "one can be right: remove the other."
            )
        state[name], origin[name] = array, old
    return state


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"{text[:60]}…" if len(text) > 60 else text
