"""Settings classes that check themselves, and complain in this project's words."""

import difflib
import functools
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Class = TypeVar("Class")

SECTIONS = {
    "ModelConfig": "model",
    "TokenizerConfig": "tokenizer",
    "DataConfig": "data",
    "OptimizerConfig": "optimizer",
    "TrainConfig": "train",
    "SearchConfig": "search",
    "EvaluationConfig": "evaluation",
    "ParallelConfig": "parallel",
}
"""Where the settings of each class stand in a whole config."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[Class]) -> type[Class]:
    """A frozen dataclass, its fields checked on construction and named in calls.

    A mistake raises a plain ValueError that names the setting, in place of pydantic's
    ValidationError, whose text speaks of pydantic.
    """
    made: Any = dataclass(
        cls,
        frozen=True,
        kw_only=True,
        config=ConfigDict(extra="forbid", allow_inf_nan=False),
    )
    validate = made.__init__

    @functools.wraps(validate)
    def init(self: Any, **fields: Any) -> None:
        try:
            validate(self, **fields)
        except ValidationError as error:
            names = list(made.__dataclass_fields__)
            message = explain(error, section=SECTIONS.get(cls.__name__), names=names)
            raise ValueError(message) from None

    made.__init__ = init
    return made


def explain(
    error: ValidationError,
    *,
    section: str | None = None,
    names: list[str] | None = None,
) -> str:
    """One line for each mistake: the setting, what came, and what it must be.

    `section` goes before each setting's name; `names` are the settings there are.
    """
    prefix = [section] if section else []
    lines = []
    for mistake in error.errors(include_url=False):
        path = [str(part) for part in mistake["loc"]]
        own_message = mistake.get("ctx", {}).get("error")
        if isinstance(own_message, Exception):
            lines.append(str(own_message))
        elif mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(unknown_setting(".".join(prefix + path), names or []))
        elif mistake["type"] == "missing":
            lines.append(f"{'.'.join(prefix + path)} is missing: it must be given.")
        else:
            wanted = mistake["msg"].replace("Input should be", "it must be")
            name = ".".join(prefix + path) or "the text"
            lines.append(f"{name} is {mistake['input']!r}: {wanted}.")
    return "\n".join(lines)


def unknown_setting(name: str, names: list[str]) -> str:
    """Says that a setting is unknown, and which one may have been meant.

    >>> unknown_setting("model.dropuot", ["dropout", "d_model"])
    'There is no setting model.dropuot. Did you mean dropout?'
    """
    close = difflib.get_close_matches(name.split(".")[-1], names, n=1)
    return f"There is no setting {name}." + (
        f" Did you mean {close[0]}?" if close else ""
    )
