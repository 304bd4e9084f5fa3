"""Reads the imports of the package and holds them against the floors of the house."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "transformer_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "": 0,  # the version
    "validation": 0,
    "types": 0,
    "sealed": 0,
    "compilation": 0,
    "allocation": 0,
    "processes": 0,
    "trees": 1,
    "exponential": 1,
    "model_config": 1,
    "config": 2,
    "recipes": 3,
    "scaling": 3,
    "data": 4,
    "models": 4,
    "search": 4,
    "parallel": 4,
    "checkpoint": 4,
    "training": 5,
    "interop": 5,
    "analysis": 5,
    "translation": 6,
    "trainer": 7,
    "cli": 8,
    "__main__": 9,
    "testing": 9,
}
"""By first part of a module's name below `transformer_jax`."""
NO_JAX = ("data", "config", "model_config", "validation", "recipes", "scaling")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def part(module: str) -> str:
    """transformer_jax.data.batching → data; transformer_jax → ''."""
    return [*module.split("."), ""][1]


def imports(tree: ast.AST) -> set[str]:
    """Modules imported anywhere in a file, `from package import name` in full."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"relative import of {module}"
            whole = module == "transformer_jax"
            found |= {
                f"{module}.{alias.name}" if whole else module for alias in node.names
            }
    return found


def own(modules: set[str]) -> set[str]:
    """Rooms of this package among the imports."""
    return {part(m) for m in modules if m.split(".")[0] == "transformer_jax"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_from_lower_floors_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = room_of(path)
    floor = FLOORS[room]
    for other in own(imports(tree)) - {room}:
        if other not in FLOORS:  # `from transformer_jax import __version__`
            assert other.startswith("__")
            continue
        assert FLOORS[other] < floor, f"{room} (floor {floor}) imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_data_and_settings_touch_no_device(path):
    if room_of(path) in NO_JAX:
        names = {m.split(".")[0] for m in imports(ast.parse(path.read_text()))}
        assert not names & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_there_is_no_utils_file():
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc")]
