"""The plots of a report as SVG elements that take their colours from the page they stand in.

They are drawn at the width of a phone, so that text keeps its size there; text stays text. Colours are drawn as marks
that become CSS variables: `--ink`, `--muted`, `--grid`, `--accent`, `--band`, `--paper`, `--series-1` ...
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dasheng_edge.quant.compare.pareto import Plane, Point
from dasheng_edge.quant.compare.record import Candidate, Interval

from .plot_labels import Box, fitting, place, spread
from .quantities import seconds, spans, tick
from .tables import EncoderGroup
from .text_difference import visible

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
    "axes.unicode_minus": True, "text.parse_math": False, "path.simplify": False,
}  # fmt: skip
_SERIES_SHAPES = ("o", "s", "^", "D", "v", "P")
_SERIES_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # where colours come again
_LETTER, _DIGIT = 0.62, 0.64  # mean width of a letter and width of a digit, of the font's size; the widest in use
_TICK_GAP = 6.0  # between the numbers at an axis


@dataclass(frozen=True)
class Plot:
    """An SVG element, and what it shows in words."""

    svg: str
    label: str


def _figure(height: int) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=(WIDTH / _PT_PER_INCH, height / _PT_PER_INCH), dpi=_PT_PER_INCH, layout=None)
    drawing.patch.set_visible(False)
    axes = drawing.add_subplot()
    axes.patch.set_visible(False)
    axes.tick_params(length=4, width=1)
    axes.grid(visible=True, color=_MARKS["grid"], linewidth=1)
    axes.set_axisbelow(True)
    return drawing, axes


def _drawn(height: int, salt: str, label: str, draw: Callable[[Figure, Axes], Mapping[str, str]]) -> Plot:
    """Draws with the module's settings, whatever the user's own are; `draw` gives what to show over marked parts."""
    with mpl.rc_context(), warnings.catch_warnings():
        # Names may have letters that matplotlib's font lacks; text stays text, and the browser has others.
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)  # type: ignore[arg-type]  # its keys are a list of their own
        mpl.rcParams["svg.hashsalt"] = salt
        drawing, axes = _figure(height)
        titles = draw(drawing, axes)
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return Plot(_inline(text.getvalue(), salt, label, titles), label)


def _inline(document: str, salt: str, label: str, titles: Mapping[str, str]) -> str:
    """An SVG file as an element of a page: no header, no foreign names, its ids its own, colours of the page."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    head = f'<svg class="plot" role="img" aria-label="{html.escape(label)}" viewBox='
    text = re.sub(r'<svg [^>]*?viewBox=("[^"]*")[^>]*>', rf"{_template(head)}\1>", text, count=1)
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f"<g><title>{html.escape(title)}</title>")
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{salt}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{salt}-", text)
    for name, mark in _MARKS.items():
        text = text.replace(mark, f"var(--{name})")
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    text = re.sub(r"<[^>]*>", lambda tag: _rounded(tag[0]), text)  # coordinates, and not the numbers that are read
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", text)).strip()


def _rounded(tag: str) -> str:
    """A tag with its coordinates to a tenth of a pixel; a title in it is text."""
    return re.sub(r"(?<![\w.])-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", tag)


def _template(text: str) -> str:
    return text.replace("\\", r"\\")


# ---------------------------------------------------------------------------------------------- quality against cost


def pareto_plot(plane: Plane, salt: str, titles: Mapping[int, str], label: str) -> Plot:
    """Points with their intervals, the front, the reference and the noise floor.

    `titles` are shown over the points, by number; `salt` makes ids unique in the page.
    """

    def draw(drawing: Figure, axes: Axes) -> dict[str, str]:
        drawing.subplots_adjust(left=0.19, right=0.97, top=0.93, bottom=0.17)
        _scales(axes, plane)
        _background(axes, plane)
        for point in plane.points:
            _mark(axes, point, salt, _bottom(plane))
        _number(axes, plane)
        return {f"{salt}p{point.number}": titles[point.number] for point in plane.points}

    return _drawn(300, salt, label, draw)


def _bottom(plane: Plane) -> float:
    """The lowest value that is drawn: a logarithm needs one above 0."""
    if not plane.logarithmic:
        return -math.inf
    values = [point.y.value for point in plane.points if point.y.value > 0]
    values += [plane.band.value] if plane.band and plane.band.value > 0 else []
    return min(values, default=1e-3) / 2


def _scales(axes: Axes, plane: Plane) -> None:
    xs = [plane.reference_x, *(point.x for point in plane.points)]
    if min(xs) > 0 and max(xs) / min(xs) > 1.02:
        axes.set_xscale("log")
        axes.set_xlim(min(xs) / (margin := (max(xs) / min(xs)) ** 0.09), max(xs) * margin)
        _ticks(axes, _steps(*axes.get_xlim()), tick)
    else:
        axes.set_xlim(min(xs) * 0.9 - 1e-3, max(xs) * 1.1 + 1e-3)
        _ticks(axes, MaxNLocator(4).tick_values(*axes.get_xlim()), tick)
    axes.set_xlabel(plane.x_title)
    axes.set_title(plane.y_title, loc="left", fontsize=TEXT)
    if plane.logarithmic:
        axes.set_yscale("log")
        top = max([point.y.high for point in plane.points if point.y.high > 0], default=1.0)
        axes.set_ylim(_bottom(plane) / 1.5, max(top, _bottom(plane) * 10) * 1.5)
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        values = [plane.reference_y, *(end for point in plane.points for end in (point.y.low, point.y.high))]
        margin = 0.06 * (max(values) - min(values)) or 0.05
        axes.set_ylim(min(values) - margin, max(values) + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _ticks(axes: Axes, values: Iterable[float], written: Callable[[float], str]) -> None:
    """Numbers along x, as many as have room; the limits must be set."""
    low, high = axes.get_xlim()
    steps = [value for value in values if low <= value <= high]
    labels = [written(value) for value in steps]
    places = [
        (float(axes.transData.transform((value, axes.get_ylim()[0]))[0]), _DIGIT * TEXT * len(label))
        for value, label in zip(steps, labels, strict=True)
    ]
    kept = fitting(places, 0, WIDTH, _TICK_GAP)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([steps[index] for index in kept], [labels[index] for index in kept])


def _steps(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis, three to six of them where there is room for any."""
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [mantissa * 10.0**exponent for exponent in exponents for mantissa in mantissas]
        steps = [step for step in steps if low <= step <= high]
        if len(steps) >= 3:
            return steps[:: math.ceil(len(steps) / 6)]
    return [float(step) for step in MaxNLocator(4).tick_values(low, high)]  # as good as linear


def _background(axes: Axes, plane: Plane) -> None:
    if plane.band is not None and plane.band.high > 0:
        low = max(plane.band.low, axes.get_ylim()[0])
        axes.axhspan(low, max(plane.band.high, low * 1.08), color=_MARKS["band"], linewidth=0, zorder=0.5)
    axes.axvline(plane.reference_x, color=_MARKS["muted"], linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    if not plane.logarithmic:
        axes.axhline(plane.reference_y, color=_MARKS["muted"], linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    front = [(point.x, max(point.y.value, _bottom(plane))) for point in plane.front]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=_MARKS["accent"], linewidth=1.5, drawstyle="steps-post", zorder=2)


def _mark(axes: Axes, point: Point, salt: str, bottom: float) -> None:
    color = _MARKS["accent" if point.front else "muted"]
    value = max(point.y.value, bottom)
    low, high = max(point.y.low, bottom), max(point.y.high, bottom)
    axes.plot([point.x, point.x], [low, high], color=color, linewidth=1, zorder=2.5, alpha=0.7)
    # Below the axis: at its end, with the tip down.
    shape = "v" if point.y.value < bottom else "D" if point.chosen else "o"
    size = 9 if point.chosen else 7
    fill = _MARKS["accent"] if point.front or point.chosen else _MARKS["paper"]
    edge = _MARKS["ink"] if point.chosen else color
    axes.plot(
        [point.x], [value], shape, markersize=size, markerfacecolor=fill, markeredgecolor=edge, markeredgewidth=1.5,
        zorder=4 if point.front else 3, gid=f"{salt}p{point.number}", clip_on=False,
    )  # fmt: skip


def _number(axes: Axes, plane: Plane) -> None:
    """Numbers beside the points where nothing is in their way: first the choice, then the front, then the others."""
    bottom = _bottom(plane)
    anchors = {
        point.number: tuple(axes.transData.transform((point.x, max(point.y.value, bottom)))) for point in plane.points
    }
    frame = axes.get_window_extent()
    order = sorted(plane.points, key=lambda point: (not point.chosen, not point.front, point.number))
    inside = Box(frame.x0, frame.y0, WIDTH - 2.0, frame.y1 + 8)
    for spot in place([(point.number, anchors[point.number]) for point in order], inside, TEXT - 1):
        point = next(point for point in order if point.number == spot.number)
        x, y = anchors[spot.number]
        centre = spot.box.centre
        arrow = {"arrowstyle": "-", "color": _MARKS["muted"], "linewidth": 0.8, "shrinkA": 5, "shrinkB": 4}
        axes.annotate(
            str(spot.number), xy=(x, y), xytext=centre, xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center_baseline", fontsize=TEXT - 1, fontweight="bold" if point.front else "normal",
            color=_MARKS["ink" if point.front or point.chosen else "muted"], zorder=5,
            arrowprops=arrow if spot.far else None,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- what loses how much, where


def crossing_plot(candidates: Sequence[tuple[int, Candidate]], salt: str, label: str) -> Plot:
    """Mean KL of each candidate's encoder alone, decoder alone, and of both: a row for each."""

    def draw(drawing: Figure, axes: Axes) -> dict[str, str]:
        height = _crossing_height(len(candidates))
        drawing.subplots_adjust(left=0.11, right=0.96, top=1 - 34 / height, bottom=48 / height)
        every: list[float] = []
        for row, (_, one) in enumerate(candidates):
            assert one.encoder_only
            assert one.decoder_only
            assert one.both
            parts: Sequence[Interval] = (one.encoder_only.kl_mean, one.decoder_only.kl_mean, one.both.kl_mean)
            every += [part.value for part in parts if part.value > 0]
            values = [max(part.value, 1e-7) for part in parts]
            axes.plot([min(values), max(values)], [row, row], color=_MARKS["grid"], linewidth=4, zorder=1)
            for index, value in enumerate(values):
                axes.plot([value], [row], _SERIES_SHAPES[index], **_dot(index))
        axes.set_xscale("log")
        axes.set_xlim(min(every, default=1e-3) / 1.6, max(every, default=1e-2) * 1.6)
        _ticks(axes, _steps(*axes.get_xlim()), tick)
        axes.set_xlabel("mean KL in nats")
        axes.set_ylim(len(candidates) - 0.5, -0.5)
        axes.set_yticks(range(len(candidates)), [str(number) for number, _ in candidates])
        axes.grid(visible=False, axis="y")
        _legend(axes, ("encoder alone", "decoder alone", "both"))
        return {}

    return _drawn(_crossing_height(len(candidates)), salt, label, draw)


def _crossing_height(rows: int) -> int:
    return 90 + 22 * rows


def _dot(index: int) -> dict[str, Any]:
    color = _MARKS[f"series-{index + 1}"]
    return {"color": color, "markersize": 7, "markeredgecolor": color, "clip_on": False, "zorder": 3 + index}


def _legend(axes: Axes, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        axes.plot([], [], _SERIES_SHAPES[index], label=name, color=_MARKS[f"series-{index + 1}"], markersize=7)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.03, 1.0), ncols=len(names), frameon=False, handletextpad=0.0,
        columnspacing=0.7, fontsize=TEXT - 0.5, borderaxespad=0,
    )  # fmt: skip


_LINE_HEIGHT = TEXT + 2  # of names that stand one above the other
_LENGTH_MARGIN = 44  # below the plot, for numbers and title
_NAME_GAP = 8.0  # between the plot and the names
_NAME_LENGTH = 14  # characters, which leave two thirds of the width to the plot


def length_plot(groups: Sequence[EncoderGroup], limit_db: float, salt: str, label: str) -> Plot:
    """SNR of each encoder over the length of clips, its name at the end, with the limit that the rule sets."""
    lines = [_line(group) for group in groups]
    names = [_shortened(name) for name in _names(groups)]
    height = max(260, 2 * _LENGTH_MARGIN + _LINE_HEIGHT * len(names))

    def draw(drawing: Figure, axes: Axes) -> dict[str, str]:
        right = WIDTH - _NAME_GAP - _LETTER * TEXT * max(map(len, names), default=0)
        drawing.subplots_adjust(
            left=0.13, right=right / WIDTH, top=1 - 18 / height, bottom=_LENGTH_MARGIN / height
        )  # fmt: skip
        every = sorted({length for xs, _ in lines for length in xs})
        titles = {}
        for index, (group, (xs, ys)) in enumerate(zip(groups, lines, strict=True)):
            gid = f"{salt}e{index}"
            axes.plot(xs, ys, _shape(index), linestyle=_style(index), color=_color(index), markersize=6, gid=gid)
            titles[gid] = visible(group.name)
        axes.axhline(limit_db, color=_MARKS["ink"], linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xlim(min(every) / 1.25, max(every) * 1.25)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, limit_db - 2), max(high, limit_db + 2))
        _ticks(axes, every, lambda value: seconds(value).removesuffix(" s"))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("length of the clip in seconds")
        axes.set_title("encoder SNR in dB", loc="left", fontsize=TEXT)
        _name_lines(axes, [(xs[-1], ys[-1]) for xs, ys in lines], names)
        return titles

    return _drawn(height, salt, label, draw)


def _line(group: EncoderGroup) -> tuple[list[float], list[float]]:
    found = sorted((part.seconds, part.snr_db) for part in group.scores.by_length if part.snr_db is not None)
    return [length for length, _ in found], [snr for _, snr in found]


def _color(index: int) -> str:
    return _MARKS[f"series-{index % SERIES + 1}"]


def _shape(index: int) -> str:
    return _SERIES_SHAPES[index % SERIES]


def _style(index: int) -> Any:  # matplotlib takes a word or a pair
    return _SERIES_STYLES[index // SERIES % len(_SERIES_STYLES)]


def _names(groups: Sequence[EncoderGroup]) -> list[str]:
    """Names of encoders; with the numbers of their candidates where two have the same."""
    many = Counter(group.name for group in groups)
    return [
        visible(group.name if many[group.name] == 1 else f"{group.name} ({spans(group.numbers)})") for group in groups
    ]


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _name_lines(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names beside the ends of lines, moved apart where they would touch, with lines that lead to them."""
    frame = axes.get_window_extent()
    points = [(float(x), float(y)) for x, y in (axes.transData.transform(end) for end in ends)]
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
