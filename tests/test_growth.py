"""The benchmark of how cost grows: what it measures at toy sizes, and what it draws."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MIB = 2**20


@pytest.fixture(scope="module")
def growth() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield importlib.import_module("growth")


def toy(growth: ModuleType, **changes: int) -> Any:
    sizes = {"tokens": 64, "length": 16, "depth": 1, "width": 32, "vocabulary": 600}
    return growth.Point(**sizes | changes)


FEW: dict[str, int] = {"tokens": 64, "vocabulary": 8000}
MANY = FEW | {"tokens": 1024}


def measure_toys() -> dict[str, Any]:
    """Runs in a process of its own: numbers of both contenders."""
    growth = importlib.import_module("growth")
    few, many = toy(growth, **FEW), toy(growth, **MANY)
    return {
        "theirs, few": growth.memory("torch_sdpa", few, "cpu"),
        "theirs": growth.memory("torch_sdpa", many, "cpu"),
        "ours": growth.memory("ours", many, "cpu"),
        "times": growth.times(many, "cpu", rounds=3),
    }


@pytest.fixture(scope="module")
def measured(growth) -> dict[str, Any]:
    pytest.importorskip("torch")
    return growth.in_processes([measure_toys])[0]


def made_up() -> dict[str, Any]:
    """Ours grows in proportion, PyTorch twice as high; memory with the square root."""
    middle = {"tokens": 64, "length": 8, "depth": 2, "width": 32, "vocabulary": 500}

    def numbers(value: int) -> dict[str, dict[str, float]]:
        return {
            "ours": {
                "milliseconds": 3.0 * value,
                "mebibytes": 100 * value**0.5,
                "planned_mebibytes": 90 * value**0.5,
            },
            "torch_sdpa": {"milliseconds": 6.0 * value, "mebibytes": 200 * value**0.5},
        }

    growth = {
        name: {str(v): numbers(v) for v in (value * 2, value)}
        for name, value in middle.items()
    }
    return {"middle": middle, "growth": growth}


def test_time_and_parameters_of_both(measured):
    ours, theirs = (measured["times"][name] for name in ("ours", "torch_sdpa"))
    assert ours["parameters"] == theirs["parameters"]
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 3
    assert ours["milliseconds"] > 0 < theirs["milliseconds"]


def test_memory_is_at_least_what_an_update_must_hold_and_grows_with_tokens(measured):
    few, theirs = (measured[name]["mebibytes"] for name in ("theirs, few", "theirs"))
    ours, planned = (measured["ours"][f"{what}mebibytes"] for what in ("", "planned_"))
    parameters = measured["times"]["ours"]["parameters"]
    state = 3 * 4 * parameters / MIB  # with two moments each
    logits = 4 * MANY["tokens"] * MANY["vocabulary"] / MIB
    assert ours > state < few
    assert theirs > max(few, state + logits)
    # What is measured is what XLA plans, and a little of threads' and allocator's own.
    assert abs(ours - planned) < 3 + 0.1 * planned


def test_plans_change_one_thing_around_their_middle(growth):
    for plan in (growth.QUICK, *growth.PLANS.values()):
        assert set(plan.values) == set(vars(plan.middle))
        for axis, values in plan.values.items():
            assert getattr(plan.middle, axis) in values
            assert list(values) == sorted(set(values))
        for length in plan.values["length"]:
            assert plan.middle.tokens % length == 0
        for tokens in plan.values["tokens"]:
            assert tokens % plan.middle.length == 0


def test_rows_that_tokens_do_not_fill_are_refused(growth):
    with pytest.raises(ValueError, match="64 tokens do not fill rows of 48"):
        growth.batch_of(toy(growth, length=48))


def test_picture_shows_the_numbers(growth, tmp_path):
    picture = tmp_path / "new" / "growth.png"
    result = made_up()
    figure: Any = growth.draw(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 10
    time, memory = figure.axes[0], figure.axes[5]
    for axes in figure.axes:
        assert axes.get_xscale() == axes.get_yscale() == "log"
    curves = {line.get_label(): line.get_xydata() for line in time.lines}
    np.testing.assert_allclose(curves["ours"], [[64, 192], [128, 384]])
    np.testing.assert_allclose(curves["PyTorch"], [[64, 384], [128, 768]])
    np.testing.assert_allclose(curves["in proportion"], curves["ours"])
    curves = {line.get_label(): line.get_xydata() for line in memory.lines}
    np.testing.assert_allclose(curves["PyTorch"][0], [64, 1600])
    np.testing.assert_allclose(curves["ours, as XLA plans it"][0], [64, 720])


def test_redrawing_measures_nothing(growth, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "measure_all", None)
    output, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    output.write_text(json.dumps(made_up()), encoding="utf-8")
    growth.main(growth.Args(output=output, picture=picture, redraw=True))
    assert picture.is_file()
    assert json.loads(output.read_text(encoding="utf-8")) == made_up()


def test_nothing_to_draw_is_an_error(growth, tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        growth.draw({"middle": {}, "growth": {}}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_without_pytorch_the_error_says_what_to_install(growth, monkeypatch):
    monkeypatch.setattr(growth.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torch"):
        growth.check_possible("cpu")
