"""Recipes: found by path or by name, kept as JSON, compared setting by setting."""

import dataclasses
import difflib
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from transformer_jax.config import Config
from transformer_jax.validation import explain

MAY_CHANGE = (
    r"train\.(steps|checkpoint_every|evaluate_every|log_every)",
    r"train\.(keep_checkpoints|patience|max_bad_steps|curves|profile)",
    r"(evaluation|search|parallel)\..*",
    r"model\.(attention|remat)",
    r"data\.(dir|prepared_dir|(train|dev)_(source|target)|num_workers)",
)
"""Settings that may differ when a run is started again: none changes what an update
computes but for rounding, as long as the rows of a batch divide over the mesh (else a
batch has fewer).
Files may lie elsewhere: what they hold is part of the data position. Schedules carry
their own horizon, so `steps` is among them."""

_CONFIG = TypeAdapter(Config)


class Change(NamedTuple):
    """A setting with two values."""

    name: str
    """Its dotted name, as `model.dropout`."""
    old: Any
    new: Any


def recipe_folder() -> Path:
    """Where recipes live: in an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Names that `--config` understands."""
    return sorted(
        path.stem
        for path in recipe_folder().glob("*.py")
        if not path.stem.startswith("_")
    )


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, or by name."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".py" or len(path.parts) > 1:
        raise ValueError(
            f"No recipe file {name}. Give the path of a Python file with get_config(), "
            f"or one of these names: {', '.join(recipe_names())}."
        )
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"No recipe is named {name!r}.{hint} There are: {', '.join(names)}; or "
            "give the path of a file."
        )
    return recipe_folder() / f"{name}.py"


def load_recipe(name: str) -> Config:
    """The settings that a recipe's `get_config()` returns.

    >>> load_recipe("phrasebook").data.name
    'phrasebook'
    """
    path = find_recipe(name)
    try:
        functions = runpy.run_path(str(path))
        config = functions["get_config"]() if "get_config" in functions else None
    except Exception as error:
        reason = str(error) or "no message"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"The recipe {path} fails. {kind}{reason}") from error
    if not isinstance(config, Config):
        raise ValueError(
            f"The recipe {path} must define get_config(), which returns a "
            "transformer_jax.config.Config; "
            + ("it defines none." if config is None else f"it gives {config!r}.")
        )
    return config


def config_to_json(config: Config) -> str:
    """All settings as JSON text, one a line.

    >>> config_from_json(config_to_json(Config(seed=3))) == Config(seed=3)
    True
    """
    return _CONFIG.dump_json(config, indent=2).decode()


def config_from_json(text: str | bytes) -> Config:
    """The settings that `config_to_json` wrote; those not named get their defaults."""
    try:
        return _CONFIG.validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"These are not the settings of a run. {explain(error)}"
        ) from None


def flat_settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name.

    >>> flat_settings(Config())["train.accumulate"]
    1
    """

    def walk(value: Any, name: str) -> dict[str, Any]:
        if not dataclasses.is_dataclass(value):
            return {name: value}
        found = {}
        for field in dataclasses.fields(value):
            dotted = f"{name}.{field.name}" if name else field.name
            found.update(walk(getattr(value, field.name), dotted))
        return found

    return walk(config, "")


def changed_settings(old: Config, new: Config) -> list[Change]:
    """Every setting that differs.

    >>> changed_settings(Config(), Config(seed=1))
    [Change(name='seed', old=0, new=1)]
    """
    before, after = flat_settings(old), flat_settings(new)
    return [
        Change(name, before[name], after[name])
        for name in after
        if before[name] != after[name]
    ]


def may_change(name: str) -> bool:
    """Whether a setting may differ between two starts of one run.

    >>> may_change("train.steps"), may_change("model.dropout")
    (True, False)
    """
    return any(re.fullmatch(pattern, name) for pattern in MAY_CHANGE)


def check_same_run(old: Config, new: Config, workdir: Path) -> None:
    """Raises when `new` cannot go on with the run that `old` began in `workdir`.

    Lengths of buckets, whose default has changed, are nothing to runs that pack.
    """
    idle = {"data.bucket_lengths"} if old.data.batching == "pack" else set()
    changes = [
        change
        for change in changed_settings(old, new)
        if not may_change(change.name) and change.name not in idle
    ]
    if not changes:
        return
    lines = "\n".join(
        f"  {name}: {before!r} there, {after!r} now" for name, before, after in changes
    )
    raise ValueError(
        f"{workdir} holds a run with other settings:\n{lines}\n"
        "Give the settings of that run to go on with it, or another --workdir. "
        "Nothing was changed."
    )
