"""Plots of the speed records: bars for medians, and a dot for each value that was measured."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:  # imported where a plot is drawn: most of what shows records does other work
    from matplotlib.figure import Figure

Better: TypeAlias = Literal["lower", "higher"]
OURS, OTHERS, DOTS, MUTED = "#2166ac", "#b8b8b8", "#222222", "#777777"
# Dark and light by turns, so that stages that touch can be told apart without colour.
STAGE_COLOURS = ("#2166ac", "#92c5de", "#4d9221", "#b8e186", "#b2182b", "#f4a582", "#777777")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "dasheng-edge", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": "black", "ytick.labelcolor": "black",
}  # fmt: skip
WIDTH_IN, ROW_IN, FRAME_IN = 7.5, 0.34, 1.1  # inches: a figure, a bar with its gap, what is above and below the bars


@contextmanager
def _settings() -> Generator[None]:
    """matplotlib with these settings, whatever the user's are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)  # type: ignore[arg-type]  # its keys are a list of their own
        yield


@dataclass(frozen=True)
class Bar:
    """One variant."""

    label: str
    values: Sequence[float]  # each that was measured
    median: float
    ours: bool


@dataclass(frozen=True)
class Panel:
    """Bars on one axis, the first on top."""

    rows: Sequence[Bar]
    unit: str
    better: Better = "lower"


def bars_of(timed: Mapping[str, Mapping[str, Any]], scale: float, ours: tuple[str, ...]) -> list[Bar]:
    """A bar for each variant of a record; `ours` are beginnings of names."""
    return [
        Bar(name, [scale * value for value in one["values"]], scale * one["p50"], name.startswith(ours))
        for name, one in timed.items()
    ]


def bars(panels: Sequence[Panel], title: str) -> Figure:
    """Panels below each other."""
    with _settings():
        figure, all_axes = _figure([len(panel.rows) for panel in panels], title)
        for axes, panel in zip(all_axes, panels, strict=True):
            place = list(range(len(panel.rows)))
            colours = [OURS if row.ours else OTHERS for row in panel.rows]
            axes.barh(place, [row.median for row in panel.rows], color=colours, height=0.7, zorder=2)
            end = max(max(row.values) for row in panel.rows)
            for y, row in zip(place, panel.rows, strict=True):
                axes.plot(row.values, [y] * len(row.values), "|", color=DOTS, markersize=7, zorder=3)
                axes.text(max(row.values) + 0.012 * end, y, number(row.median), va="center", ha="left")
            axes.set_xlim(0, 1.1 * end)
            _label(axes, [row.label for row in panel.rows], f"{panel.unit}; {panel.better} is better")
        return figure


def stacks(rows: Mapping[str, Mapping[str, float]], unit: str, title: str) -> Figure:
    """A bar for each row, made of its parts in their order; the legend stands below. Lower is better."""
    with _settings():
        figure, (axes,) = _figure([len(rows) + 2], title)
        parts = list(dict.fromkeys(part for row in rows.values() for part in row))
        left = [0.0] * len(rows)
        for part, colour in zip(parts, STAGE_COLOURS, strict=False):
            widths = [row.get(part, 0.0) for row in rows.values()]
            axes.barh(range(len(rows)), widths, left=left, color=colour, height=0.7, label=part, zorder=2)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for y, total in enumerate(left):
            axes.text(total + 0.012 * max(left), y, number(total), va="center", ha="left")
        axes.set_xlim(0, 1.1 * max(left))
        _label(axes, list(rows), f"{unit}; lower is better")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return figure


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def as_svg(figure: Figure) -> str:
    """The same bytes for the same figure."""
    with _settings():
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _figure(rows: Sequence[int], title: str) -> tuple[Figure, Sequence[Any]]:
    """Axes below each other, for so many rows each."""
    from matplotlib.figure import Figure

    height = sum(FRAME_IN + ROW_IN * count for count in rows)
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained", facecolor="white")
    grid: Any = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[FRAME_IN + ROW_IN * n for n in rows])
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for axes in grid[:, 0]:
        axes.grid(visible=True, axis="x", color="#e4e4e4", zorder=0)
    return figure, grid[:, 0]


def _label(axes: Any, labels: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
