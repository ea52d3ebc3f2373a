"""The plots of a report: what stands in them can be read and told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import pytest

from dasheng_edge.quant.compare.pareto import Plane, Point, planes
from dasheng_edge.quant.compare.record import EncoderScores, LengthScores
from dasheng_edge.quant.report.plots import MAX_Y_TICKS, SERIES, TEXT, WIDTH, crossing_plot, length_plot, pareto_plot
from dasheng_edge.quant.report.tables import EncoderGroup, crossed
from tests.fixtures import fake_report


@dataclass(frozen=True)
class Text:
    """A text of a plot: where it is anchored, and what is written there."""

    anchor: str
    x: float
    y: float
    said: str


def texts(plot: str) -> list[Text]:
    found = re.findall(r'<text[^>]*text-anchor: (\w+)[^>]* x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]*)</text>', plot)
    return [Text(anchor, float(x), float(y), said) for anchor, x, y, said in found]


def plane(low: float, high: float, kl: float = 0.004) -> Plane:
    points = tuple(
        Point(
            index + 1, f"c{index}", low + (high - low) * index / 9, fake_report.interval(kl * 1.6**index), False, False
        )
        for index in range(10)
    )
    return Plane("work", None, "lower", points, low, 0.0, None)


def drawn(of: Plane) -> list[Text]:
    return texts(pareto_plot(of, "f"))


def groups(count: int) -> list[EncoderGroup]:
    return [
        EncoderGroup(f"enc{index}", (index + 1,), fake_report.encoder_scores(20 + 0.2 * index))
        for index in range(count)
    ]


@pytest.mark.parametrize("x", [29.345253, 0.31, 7.2, 0.00233, 4_810])
def test_points_that_cost_the_same_are_drawn(x: float) -> None:
    """Of sizes as these matplotlib warns that its axis has no length."""
    assert len(drawn(plane(x, x))) > 10


@pytest.mark.parametrize("share", [1.03, 1.1, 1.25, 1.4, 1.7, 2.5, 6, 40, 3000])
@pytest.mark.parametrize("low", [0.00233, 0.31, 7.2, 4_810])
def test_numbers_along_x_stand_apart_and_within_the_plot(low: float, share: float) -> None:
    along = sorted(
        (
            text
            for text in drawn(plane(low, low * share))
            if text.anchor == "middle" and re.match(r"[\d.,e−]+$", text.said)
        ),
        key=lambda text: text.x,
    )
    ticks = [text for text in along if text.y == max(text.y for text in along)]
    assert len(ticks) >= 2
    halves = [0.3 * TEXT * len(text.said) for text in ticks]
    for (one, half), (two, other) in pairwise(zip(ticks, halves, strict=True)):
        assert two.x - one.x >= half + other + 4
        assert one.said != two.said
    assert ticks[0].x >= halves[0]
    assert ticks[-1].x <= WIDTH - halves[-1]


@pytest.mark.parametrize("growth", [1.02, 1.05, 1.2, 1.6, 4, 10])
@pytest.mark.parametrize("kl", [2e-6, 0.0046, 0.8])
def test_a_logarithmic_axis_of_any_length_has_ticks(growth: float, kl: float) -> None:
    of = plane(1.0, 3.0)
    points = tuple(
        replace(point, y=fake_report.interval(kl * growth**index, 0.02)) for index, point in enumerate(of.points)
    )
    along = [text for text in drawn(replace(of, points=points)) if text.anchor == "end"]
    assert 2 <= len({text.said for text in along}) == len(along) <= MAX_Y_TICKS


def test_small_numbers_are_written_as_in_the_tables() -> None:
    said = {text.said for text in drawn(plane(1.0, 3.0, kl=2e-6))}
    assert "1e−5" in said
    assert not any(re.search(r"e-\d", text) for text in said)


def test_every_encoder_is_named_at_its_line() -> None:
    plot = length_plot(groups(9), "l")
    names = [text for text in texts(plot) if text.said.startswith("enc") and text.anchor == "start" and text.x > 200]
    assert sorted(text.said for text in names) == [f"enc{index}" for index in range(9)]
    assert all(two - one >= TEXT for one, two in pairwise(sorted(text.y for text in names)))
    assert all(text.x + 0.5 * TEXT * len(text.said) <= WIDTH for text in names)


def test_many_names_make_the_plot_higher() -> None:
    heights = [float(re.findall(r'viewBox="0 0 \d+ ([\d.]+)"', length_plot(groups(n), "l"))[0]) for n in (3, 30)]
    assert heights[0] == 260
    assert heights[1] >= 30 * TEXT


def test_lines_of_one_colour_differ_in_style() -> None:
    svg = length_plot(groups(2 * SERIES), "l")
    lines = re.findall(
        r'<path[^>]*style="(fill: none;[^"]*stroke: var\(--series-\d\)[^"]*stroke-width: 1.5[^"]*)"', svg
    )
    assert len(lines) == len(set(lines)) == 2 * SERIES


def test_encoders_of_one_name_are_told_apart_by_their_candidates() -> None:
    two = [
        EncoderGroup("mixed", (3, 4, 5), fake_report.encoder_scores(20)),
        EncoderGroup("mixed", (8,), fake_report.encoder_scores(25)),
    ]
    said = {text.said for text in texts(length_plot(two, "l"))}
    assert {"mixed (3–5)", "mixed (8)"} <= said


def test_a_long_or_hostile_name_keeps_to_its_place() -> None:
    scores = fake_report.encoder_scores(20)
    svg = length_plot([EncoderGroup("<script>\x1b" + "long" * 20, (1,), scores)], "l")
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "…</text>" in svg


def test_a_single_length_is_a_plot() -> None:
    one = LengthScores(seconds=10.0, snr_db=20.0, cosine_mean=0.99, cosine_worst=0.98)
    scores = EncoderScores(snr_db=20.0, cosine_mean=0.99, cosine_worst=0.98, by_length=(one,))
    said = {text.said for text in texts(length_plot([EncoderGroup("int8", (1,), scores)], "l"))}
    assert {"10", "int8"} <= said


def test_every_plot_says_which_way_is_better() -> None:
    report = fake_report.report()
    drawn = [pareto_plot(one, "f") for one in planes(report)]
    drawn += [crossing_plot(crossed(report), "c"), length_plot(groups(3), "l")]
    for svg in drawn:
        said = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
        assert re.search(r"\((lower|higher) is better\)", said)
    assert ["higher" in svg for svg in drawn] == [one.y_better == "higher" for one in planes(report)] + [False, True]
    assert all("(less is better)" in svg for svg in drawn[:-2])


@pytest.mark.parametrize("index", range(4))
def test_words_of_a_plot_stay_within_it_and_apart(index: int) -> None:
    """By the mean width of a letter."""
    boxes = []
    for text in texts(pareto_plot(planes(fake_report.report())[index], "f")):
        width = 0.55 * (TEXT - 1) * len(text.said)
        left = text.x - {"start": 0, "middle": 0.5, "end": 1}[text.anchor] * width
        boxes.append((left, text.y - 0.5 * TEXT, left + width, text.y))
    assert len(boxes) > 20
    assert min(box[0] for box in boxes) >= 0
    assert max(box[2] for box in boxes) <= WIDTH
    for one, two in combinations(boxes, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
