"""Pictures as PNG files: attention, and the curves of a run.

Every function writes its picture and returns the figure. None touches matplotlib's
global state, so they work anywhere, also without a display.
"""

import functools
import json
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
BLUE, ORANGE, GREEN, PURPLE = "#1f6fb4", "#d9660f", "#2e8b57", "#7a4fa3"
GREY = "#5f6670"
OTHER_SCRIPTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
"""Fonts, where installed, for words that DejaVu Sans has no letters for."""


def plot_attention(
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    output: Path,
    *,
    title: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> "Figure":
    """Heat maps [layers, N, T, S] in a grid, one row a layer and one column a head.

    `rows` are the T words that look, `columns` the S words looked at. All panels share
    one colour scale, from 0 to 1. `layers` and `heads` number the grid where it shows
    a part of the model.
    """
    expected = (len(rows), len(columns))
    if weights.ndim != 4 or weights.shape[2:] != expected:
        raise ValueError(
            f"Attention weights have shape {weights.shape}: there are {expected[0]} "
            f"words down and {expected[1]} across, so [layers, heads, "
            f"{expected[0]}, {expected[1]}] is needed."
        )
    layers = range(weights.shape[0]) if layers is None else layers
    heads = range(weights.shape[1]) if heads is None else heads
    grid = _Grid(len(layers), len(heads), rows, columns)
    figure = _figure(grid.width, grid.height)
    figure.text(
        0.1 / grid.width,
        1 - 0.12 / grid.height,
        title,
        va="top",
        fontsize=11,
        fontweight="bold",
        family=_fonts(),
    )
    for i, layer in enumerate(layers):
        for j, head in enumerate(heads):
            axes = figure.add_axes(grid.panel(i, j))
            image = axes.imshow(
                weights[i, j], cmap="Blues", vmin=0, vmax=1, aspect="auto"
            )
            _label_panel(axes, grid, rows, columns, i, j)
            if i == 0:
                axes.set_title(f"head {head}", fontsize=9, color=GREY, pad=4)
            if j == len(heads) - 1:
                axes.yaxis.set_label_position("right")
                axes.set_ylabel(f"layer {layer}", fontsize=9, color=GREY, labelpad=4)
            if i == j == 0:
                bar = figure.colorbar(image, cax=figure.add_axes(grid.color_bar()))
                bar.set_ticks([0, 0.5, 1])
                bar.ax.tick_params(labelsize=8, colors=GREY)
                bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return _save(figure, output)


def plot_curves(log_path: Path, output: Path) -> "Figure":
    """Training and dev loss, learning rate, BLEU and chrF by step, from `log.jsonl`.

    A step that was logged twice, because a run was stopped and resumed, counts once,
    as it was logged last.
    """
    train, dev = read_log(log_path)
    figure = _figure(13, 3.6, layout="constrained")
    loss, rate, quality = figure.subplots(1, 3)
    steps, values = _series(train, "loss")
    if len(values) >= 40:
        loss.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        loss.plot(steps, _smooth(values), color=BLUE, label="train, running mean")
    else:
        loss.plot(steps, values, color=BLUE, marker=".", label="train")
    loss.plot(*_series(dev, "loss"), color=ORANGE, marker="o", ms=3, label="dev")
    _limit_spikes(loss, [values, _series(dev, "loss")[1]])
    steps, values = _series(train, "learning_rate")
    rate.plot(steps, values, color=GREEN, marker="" if len(values) >= 40 else ".")
    for name, label, color in (("bleu", "BLEU", BLUE), ("chrf", "chrF", PURPLE)):
        steps, values = _series(dev, name)
        if len(values):
            quality.plot(steps, values, color=color, marker="o", ms=3, label=label)
    _finish(loss, "Loss, nats a target token")
    _finish(rate, "Learning rate")
    _finish(quality, "Translation of the dev set")
    last = max(entry["step"] for entry in (*train, *dev))
    for axes in (loss, rate, quality):
        axes.set_xlim(0, max(1, 1.03 * last))
    return _save(figure, output)


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """The training and the evaluation entries of a run's `log.jsonl`, by step."""
    if not path.is_file():
        raise ValueError(f"No log {path}: give the log.jsonl of a run.")
    lines = path.read_text(encoding="utf-8").split("\n")
    found: dict[str, dict[int, dict]] = {"train": {}, "evaluate": {}}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break  # A run that was killed may leave half a line at the end.
            raise ValueError(
                f"{path}, line {number} is not JSON: {line[:60]!r}. Delete the line."
            ) from None
        if entry.get("event") in found:
            found[entry["event"]][entry["step"]] = entry
    if not any(found.values()):
        raise ValueError(f"{path} has no training steps yet: there is nothing to draw.")
    train, dev = ([by[step] for step in sorted(by)] for by in found.values())
    return train, dev


class _Grid:
    """Where the panels of an attention figure stand, all in inches.

    A word gets the same room in every panel; it shrinks only when the figure would
    grow past what a viewer opens.
    """

    GAP, TOP, BAR = 0.14, 0.62, 0.75

    def __init__(
        self, layers: int, heads: int, rows: Sequence[str], columns: Sequence[str]
    ) -> None:
        self.layers = layers
        widest = max(heads * len(columns), layers * len(rows))
        self.cell = min(0.3, max(0.16, 14 / widest), 100 / widest)
        self.font = min(9.0, self.cell * 72 * 0.8)
        self.left = 0.25 + self.font / 72 * max(map(_text_width, rows))
        self.bottom = 0.25 + self.font / 72 * max(map(_text_width, columns))
        self.panel_width = max(0.8, self.cell * len(columns))
        self.panel_height = max(0.8, self.cell * len(rows))
        across = heads * (self.panel_width + self.GAP)
        self.width = max(4.0, self.left + across + self.BAR)
        down = layers * (self.panel_height + self.GAP)
        self.height = self.TOP + down + self.bottom

    def panel(self, layer: int, head: int) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of a panel, as shares of the figure."""
        left = self.left + head * (self.panel_width + self.GAP)
        top = self.TOP + layer * (self.panel_height + self.GAP)
        bottom = self.height - top - self.panel_height
        return self._shares(left, bottom, self.panel_width, self.panel_height)

    def color_bar(self) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of the colour bar, beside the first layer."""
        height = min(self.panel_height, 2.5)
        left = self.width - self.BAR + 0.22
        return self._shares(left, self.height - self.TOP - height, 0.1, height)

    def _shares(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        return (
            left / self.width,
            bottom / self.height,
            width / self.width,
            height / self.height,
        )


def _label_panel(
    axes: "Axes",
    grid: _Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    layer: int,
    head: int,
) -> None:
    """Words on the outer axes only, thin lines between the places everywhere."""
    below, beside = layer == grid.layers - 1, head == 0
    axes.set_xticks(
        range(len(columns)), labels=columns if below else [""] * len(columns)
    )
    axes.set_yticks(range(len(rows)), labels=rows if beside else [""] * len(rows))
    axes.tick_params(length=0, labelsize=grid.font, pad=2, labelfontfamily=_fonts())
    axes.tick_params(axis="x", labelrotation=90)
    for spine in axes.spines.values():
        spine.set_color("#c8ccd2")
        spine.set_linewidth(0.6)


def _text_width(text: str) -> float:
    """Roughly, in widths of the font size; East Asian letters are wide."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return 0.62 * (len(text) - wide) + 1.05 * wide


def _series(entries: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the entries that have a number under `name`."""
    pairs = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a twentieth of the run, narrower at both ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first = np.maximum(place - half, 0)
    last = np.minimum(place + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _limit_spikes(axes: "Axes", series: list[np.ndarray]) -> None:
    """Keep one early or wild value from flattening the rest of the curve."""
    values = np.concatenate([each[np.isfinite(each)] for each in series])
    if len(values) >= 40:
        low, high = values.min(), np.quantile(values, 0.98)
        margin = 0.06 * max(high - low, 1e-6)
        axes.set_ylim(low - margin, high + margin)


def _finish(axes: "Axes", title: str, *, x: str = "step") -> None:
    """Title, axis name, quiet grid, and a legend where curves are named."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x, color=GREY)
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY)
    axes.locator_params(axis="x", integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    elif not axes.lines:
        axes.text(0.5, 0.5, "not evaluated yet", transform=axes.transAxes, ha="center")


@functools.cache
def _fonts() -> list[str]:
    """DejaVu Sans, then what is installed for the scripts it lacks."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


def _figure(width: float, height: float, layout: Any = None) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def _save(figure: "Figure", output: Path) -> "Figure":
    output.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(output, format="png")
    if any("missing from font" in str(warning.message) for warning in caught):
        warnings.warn(
            f"{output}: no installed font has some of the letters, and they show as "
            "boxes. Install a font for the script, as Noto Sans CJK.",
            stacklevel=3,
        )
    return figure
