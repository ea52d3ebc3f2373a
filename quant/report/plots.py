"""The plots of a report as SVG elements that take their colours from the page they stand in.

They are drawn at the width of a phone, so that text keeps its size there; text stays text. Colours are drawn as marks
that become CSS variables: `--ink`, `--muted`, `--grid`, `--accent`, `--band`, `--paper`, `--series-1` ...
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from dasheng_edge.quant.compare.pareto import Plane, Point
from dasheng_edge.quant.compare.recommend import ENCODER_SNR_DB
from dasheng_edge.quant.compare.record import Candidate

from .plot_labels import Box, place, spread
from .quantities import seconds, spans, tick
from .tables import EncoderGroup
from .wording import plot_label, point_label, visible, x_title, y_title

MAX_Y_TICKS = 7
WIDTH, TEXT = 340, 13  # CSS pixels; a phone is 360 of them wide
_PT_PER_INCH = 72  # matplotlib's SVG has 72 units to the inch
SERIES = 6
_VARIABLES = ("ink", "muted", "grid", "accent", "band", "paper", *(f"series-{i}" for i in range(1, SERIES + 1)))
_MARKS = {name: f"#0a0b{index:02x}" for index, name in enumerate(_VARIABLES)}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "font.size": TEXT, "font.family": "DejaVu Sans", "axes.linewidth": 1,
    "axes.edgecolor": _MARKS["muted"], "axes.labelcolor": _MARKS["ink"], "text.color": _MARKS["ink"],
    "xtick.color": _MARKS["muted"], "ytick.color": _MARKS["muted"], "xtick.labelcolor": _MARKS["ink"],
    "ytick.labelcolor": _MARKS["ink"], "axes.spines.top": False, "axes.spines.right": False,
    "axes.unicode_minus": True, "text.parse_math": False, "path.simplify": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": _MARKS["grid"], "grid.linewidth": 1, "axes.titlelocation": "left",
    "axes.titlesize": TEXT, "figure.facecolor": "none", "axes.facecolor": "none", "figure.dpi": _PT_PER_INCH,
}  # fmt: skip
_SHAPES = ("o", "s", "^", "D", "v", "P")
_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # where colours come again
_DOTTED, _DASHED = (0, (1, 2)), (0, (4, 3))
_LETTER, _DIGIT = 0.62, 0.64  # mean width of a letter and width of a digit, of the font's size; the widest in use
_TICK_GAP = 6.0  # between the numbers at an axis

Titles = Mapping[str, str]  # what is shown over parts, by their id


def _drawn(height: int, salt: str, label: str, draw: Callable[[Axes], Titles]) -> Markup:
    """Draws with the module's settings, whatever the user's own are; `salt` makes ids unique in the page."""
    with mpl.rc_context(), warnings.catch_warnings():
        # Names may have letters that matplotlib's font lacks; text stays text, and the browser has others.
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)  # type: ignore[arg-type]  # its keys are a list of their own
        mpl.rcParams["svg.hashsalt"] = salt
        drawing = Figure(figsize=(WIDTH / _PT_PER_INCH, height / _PT_PER_INCH))
        titles = draw(drawing.add_subplot())
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return Markup(_inline(text.getvalue(), salt, label, titles))  # noqa: S704  # texts in it are escaped


def _inline(document: str, salt: str, label: str, titles: Titles) -> str:
    """An SVG file as an element of a page: no header, no foreign names, its ids its own, colours of the page."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    head = f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox='
    text = re.sub(r'<svg [^>]*?viewBox=("[^"]*")[^>]*>', lambda tag: f"{head}{tag[1]}>", text, count=1)
    text = text.replace("xlink:href", "href")
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda mark: f' id="{salt}-{mark[1]}"' if mark[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{salt}-", text)
    for name, mark in _MARKS.items():
        text = text.replace(mark, f"var(--{name})")
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    # Coordinates to a tenth of a pixel, but not the numbers that are read.
    tenths = re.compile(r"(?<![\w.])-?\d+\.\d{2,}")
    text = re.sub(r"<[^>]*>", lambda tag: tenths.sub(lambda found: f"{float(found[0]):.1f}", tag[0]), text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", text)).strip()


def _frame(axes: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """Room for words around the axes, in pixels."""
    height = axes.bbox.height / axes.get_position().height
    axes.set_position((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height))


def _ticks(axes: Axes, choices: Iterable[Sequence[float]], written: Callable[[float], str]) -> None:
    """Numbers along x: the first choice that has room; the limits must be set."""
    low, high = axes.get_xlim()
    axes.xaxis.set_minor_locator(NullLocator())
    for choice in choices:
        ticks, end = [], -math.inf
        for value in choice:
            half = _DIGIT * TEXT * len(written(value)) / 2
            x = float(axes.transData.transform((value, axes.get_ylim()[0]))[0])
            if low <= value <= high and half <= x <= WIDTH - half:
                ticks.append(value)
                if x - half < end + _TICK_GAP:
                    break
                end = x + half
        else:
            axes.set_xticks(ticks, [written(value) for value in ticks])
            return


def _steps(low: float, high: float) -> Iterator[list[float]]:
    """Round values for a logarithmic axis, the densest first; linear ones if it is too narrow for three of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) if low > 0 else range(0)
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        steps = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
        steps = [step for step in steps if low <= step <= high]
        if len(steps) >= 3:
            yield steps
            yield from (steps[::every] for every in range(2, len(steps)) if mantissas == (1,))
    for count in (5, 4, 3, 2, 1):
        yield [float(step) for step in MaxNLocator(count).tick_values(low, high)]


# ---------------------------------------------------------------------------------------------- quality against cost


def pareto_plot(plane: Plane, salt: str) -> Markup:
    """Points with their intervals, the front, the reference and the noise floor."""

    def draw(axes: Axes) -> Titles:
        _frame(axes, 65, 10, 21, 51)
        # The scales come first: margins are shares of what they show.
        axes.margins(0.08, 0.06)
        places = [plane.reference_x, *(point.x for point in plane.points)]
        low, high = min(places), max(places)
        if low > 0:
            axes.set_xscale("log")
            margin = max((high / low) ** 0.08, 1.05)  # matplotlib's own is nothing where all points cost the same
            axes.set_xlim(low / margin, high * margin)
        if plane.task is None:
            axes.set_yscale("log")
        bottom = _bottom(plane)
        _background(axes, plane, bottom)
        for point in plane.points:
            _mark(axes, point, salt, bottom)
        _axes(axes, plane)
        _number(axes, plane, bottom)
        return {f"{salt}p{point.number}": visible(point_label(plane, point)) for point in plane.points}

    return _drawn(300, salt, visible(plot_label(plane)), draw)


def _bottom(plane: Plane) -> float:
    """The lowest value that is drawn: a logarithm needs one above 0."""
    if plane.task is not None:
        return -math.inf
    values = [point.y.value for point in plane.points if point.y.value > 0]
    values += [plane.band.value] if plane.band and plane.band.value > 0 else []
    return min(values, default=1e-3) / 2


def _axes(axes: Axes, plane: Plane) -> None:
    _ticks(axes, _steps(*axes.get_xlim()), tick)
    axes.set_xlabel(f"{x_title(plane)} (less is better)")
    axes.set_title(f"{y_title(plane)} ({plane.y_better} is better)", x=-60 / (WIDTH - 75))
    if plane.task is None:  # matplotlib's own ticks are whole powers of ten: one or none on a short axis
        low, high = axes.get_ylim()
        steps = next(steps for steps in _steps(low, high) if len(steps) <= MAX_Y_TICKS)
        axes.set_yticks([step for step in steps if low <= step <= high])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _background(axes: Axes, plane: Plane, bottom: float) -> None:
    if plane.band is not None and plane.band.high > 0:
        low = max(plane.band.low, bottom)
        axes.axhspan(low, max(plane.band.high, low * 1.08), color=_MARKS["band"], linewidth=0, zorder=0.5)
    axes.axvline(plane.reference_x, color=_MARKS["muted"], linewidth=1, linestyle=_DOTTED, zorder=1)
    if plane.task is not None:
        axes.axhline(plane.reference_y, color=_MARKS["muted"], linewidth=1, linestyle=_DOTTED, zorder=1)
    front = [(point.x, max(point.y.value, bottom)) for point in plane.front]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=_MARKS["accent"], linewidth=1.5, drawstyle="steps-post", zorder=2)


def _mark(axes: Axes, point: Point, salt: str, bottom: float) -> None:
    color = _MARKS["accent" if point.front else "muted"]
    value, low, high = (max(part, bottom) for part in (point.y.value, point.y.low, point.y.high))
    axes.plot([point.x, point.x], [low, high], color=color, linewidth=1, zorder=2.5, alpha=0.7 if point.front else 0.4)
    # Below the axis: at its end, with the tip down.
    shape = "v" if point.y.value < bottom else "D" if point.chosen else "o"
    axes.plot(
        [point.x], [value], shape, markersize=9 if point.chosen else 7, markeredgewidth=1.5,
        markerfacecolor=_MARKS["accent" if point.front or point.chosen else "paper"],
        markeredgecolor=_MARKS["ink"] if point.chosen else color,
        zorder=4 if point.front else 3, gid=f"{salt}p{point.number}", clip_on=False,
    )  # fmt: skip


def _number(axes: Axes, plane: Plane, bottom: float) -> None:
    """Numbers beside the points where nothing is in their way: first the choice, then the front, then the others."""
    order = sorted(plane.points, key=lambda point: (not point.chosen, not point.front, point.number))
    points = {point.number: point for point in order}
    pixels = axes.transData.transform([(point.x, max(point.y.value, bottom)) for point in order]).tolist()
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, WIDTH - 2.0, frame.y1 + 3)
    for spot in place([(number, (x, y)) for number, (x, y) in zip(points, pixels, strict=True)], inside, TEXT - 1):
        front, dark = points[spot.number].front, points[spot.number].front or points[spot.number].chosen
        arrow = {"arrowstyle": "-", "color": _MARKS["muted"], "linewidth": 0.8, "shrinkA": 5, "shrinkB": 4}
        axes.annotate(
            str(spot.number), xy=spot.point, xytext=spot.box.centre, xycoords="figure pixels",
            textcoords="figure pixels", ha="center", va="center_baseline", fontsize=TEXT - 1,
            fontweight="bold" if front else "normal", color=_MARKS["ink" if dark else "muted"], zorder=5,
            arrowprops=arrow if spot.far else None,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- what loses how much, where


def crossing_plot(candidates: Sequence[tuple[int, Candidate]], salt: str) -> Markup:
    """Mean KL of each candidate's encoder alone, decoder alone, and of both: a row for each."""
    rows = [
        [scores.kl_mean.value for scores in (candidate.encoder_only, candidate.decoder_only, candidate.both) if scores]
        for _, candidate in candidates
    ]
    every = [kl for row in rows for kl in row if kl > 0]

    def draw(axes: Axes) -> Titles:
        _frame(axes, 37, 14, 34, 48)
        for y, row in enumerate(rows):
            values = [max(kl, 1e-7) for kl in row]
            axes.plot([min(values), max(values)], [y, y], color=_MARKS["grid"], linewidth=4, zorder=1)
            for index, value in enumerate(values):
                axes.plot([value], [y], _SHAPES[index], color=_color(index), markersize=7, clip_on=False, zorder=3)
        for index, name in enumerate(("encoder alone", "decoder alone", "both")):
            axes.plot([], [], _SHAPES[index], color=_color(index), markersize=7, label=name)
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.03, 1.0), ncols=3, frameon=False, handletextpad=0.0,
            columnspacing=0.7, fontsize=TEXT - 0.5, borderaxespad=0,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(min(every, default=1e-3) / 1.6, max(every, default=1e-2) * 1.6)
        _ticks(axes, _steps(*axes.get_xlim()), tick)
        axes.set_xlabel("mean KL in nats (lower is better)")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [str(number) for number, _ in candidates])
        axes.grid(visible=False, axis="y")
        return {}

    label = "Mean KL by the encoder alone, the decoder alone, and both. Lower is better."
    return _drawn(90 + 22 * len(rows), salt, label, draw)


_LINE_HEIGHT = TEXT + 2  # of names that stand one above the other
_NAME_GAP = 8.0  # between the plot and the names
_NAME_LENGTH = 14  # characters, which leave two thirds of the width to the plot


def length_plot(groups: Sequence[EncoderGroup], salt: str) -> Markup:
    """SNR of each encoder over the length of clips, its name at the end, with the limit that the rule sets."""
    lines = [
        sorted((part.seconds, part.snr_db) for part in group.scores.by_length if part.snr_db is not None)
        for group in groups
    ]
    names = [name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…" for name in _names(groups)]
    every = sorted({length for line in lines for length, _ in line})

    def draw(axes: Axes) -> Titles:
        _frame(axes, 44, _NAME_GAP + _LETTER * TEXT * max(map(len, names), default=0), 22, 44)
        for index, line in enumerate(lines):
            axes.plot(
                *zip(*line, strict=True), _SHAPES[index % SERIES], color=_color(index), markersize=6,
                linestyle=_STYLES[index // SERIES % len(_STYLES)], gid=f"{salt}e{index}",
            )  # fmt: skip
        axes.axhline(ENCODER_SNR_DB, color=_MARKS["ink"], linewidth=1, linestyle=_DASHED)
        axes.set_xscale("log")
        axes.set_xlim(min(every) / 1.25, max(every) * 1.25)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, ENCODER_SNR_DB - 2), max(high, ENCODER_SNR_DB + 2))
        _ticks(
            axes,
            (every[::step] for step in range(1, len(every) + 1)),
            lambda length: seconds(length).removesuffix(" s"),
        )
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("length of the clip in seconds")
        axes.set_title("encoder SNR in dB (higher is better)", x=-0.15)
        _name_lines(axes, [line[-1] for line in lines], names)
        return {f"{salt}e{index}": visible(group.name) for index, group in enumerate(groups)}

    label = "Encoder SNR over the length of clips, as in the table above. Higher is better."
    return _drawn(max(260, 88 + _LINE_HEIGHT * len(names)), salt, label, draw)


def _color(index: int) -> str:
    return _MARKS[f"series-{index % SERIES + 1}"]


def _names(groups: Sequence[EncoderGroup]) -> list[str]:
    """Names of encoders; with the numbers of their candidates where two have the same."""
    many = Counter(group.name for group in groups)
    return [
        visible(group.name if many[group.name] == 1 else f"{group.name} ({spans(group.numbers)})") for group in groups
    ]


def _name_lines(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names beside the ends of lines, moved apart where they would touch, with lines that lead to them."""
    frame, points = axes.get_window_extent(), axes.transData.transform(ends).tolist()
    heights = spread([y for _, y in points], _LINE_HEIGHT, frame.y0 + TEXT / 2, frame.y1)
    for index, (point, height, name) in enumerate(zip(points, heights, names, strict=True)):
        axes.annotate(
            name, xy=point, xytext=(frame.x1 + _NAME_GAP, height), xycoords="figure pixels",
            textcoords="figure pixels", va="center_baseline", color=_color(index), annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": _color(index), "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip
