"""The picture of `growth.py`, from its numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_jax.analysis.plots import BLUE, DPI, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, TORCH = "ours", "torch_sdpa"
COLUMNS = {
    "tokens": "tokens in a batch",
    "length": "length of a row, tokens",
    "depth": "layers in each stack",
    "width": "width, d_model",
    "vocabulary": "vocabulary, symbols",
}
LINES = {
    (OURS, "milliseconds"): ("ours", BLUE, "-"),
    (TORCH, "milliseconds"): ("PyTorch", ORANGE, "-"),
    (OURS, "mebibytes"): ("ours", BLUE, "-"),
    (TORCH, "mebibytes"): ("PyTorch", ORANGE, "-"),
    (OURS, "planned_mebibytes"): ("ours, as XLA plans it", BLUE, ":"),
}
ROWS = {
    "time of a step, milliseconds": ("milliseconds",),
    "memory of a step, MiB": ("mebibytes", "planned_mebibytes"),
}


def draw(result: dict[str, Any], output: Path) -> "Figure":
    """Two rows, time and memory; a column for each thing that was changed.

    All axes are logarithmic, so that a straight line is a power; the grey line grows in
    proportion. A row has one scale. Returns the figure.
    """
    from matplotlib.figure import Figure

    growth = result["growth"]
    columns = [name for name in COLUMNS if name in growth]
    if not columns:
        raise ValueError(
            f"There are no numbers of {', '.join(COLUMNS)}, but of {list(growth)}: "
            "nothing to draw. Measure first, without --redraw."
        )
    figure = Figure(figsize=(3 * len(columns) + 1, 6.4), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(columns), sharey="row", sharex="col", squeeze=False)
    for panels, (title, kinds) in zip(grid, ROWS.items(), strict=True):
        for axes, name in zip(panels, columns, strict=True):
            plot_lines(axes, growth[name], kinds)
            finish(axes, sorted(map(int, growth[name])))
        panels[0].set_ylabel(title)
    for axes, name in zip(grid[1], columns, strict=True):
        axes.set_xlabel(COLUMNS[name])
    lines, labels = grid[1][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
    middle = " · ".join(f"{name} {value:,}" for name, value in result["middle"].items())
    figure.suptitle(f"What is not changed: {middle}", fontsize=10, color=GREY)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png")
    return figure


def plot_lines(
    axes: "Axes", points: dict[str, dict[str, Any]], kinds: tuple[str, ...]
) -> None:
    """The lines of these kinds of numbers, and the grey one."""
    values = sorted(map(int, points))
    for (who, kind), (label, color, style) in LINES.items():
        if kind in kinds:
            numbers = [points[str(value)][who][kind] for value in values]
            axes.plot(values, numbers, style, color=color, label=label, marker=".")
    first = points[str(values[0])][OURS][kinds[0]] / values[0]
    slope = [first * value for value in values]
    # It may leave the panel, whose scale is that of the numbers.
    axes.plot(
        values, slope, color=GREY, linewidth=0.7, scaley=False, label="in proportion"
    )


def finish(axes: "Axes", values: list[int]) -> None:
    """Logarithmic axes with plain numbers on them."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, labels=[f"{value:,}" for value in values])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
