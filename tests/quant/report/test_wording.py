"""What a report says about its figures holds for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dasheng_edge.quant.compare.bootstrap import COVERED, MIN_CLIPS
from dasheng_edge.quant.compare.cost import MEASURED_CLIPS
from dasheng_edge.quant.compare.pareto import Plane, planes
from dasheng_edge.quant.compare.record import Interval, Report, TaskScore
from dasheng_edge.quant.report.report import document, page
from dasheng_edge.quant.report.templates import environment
from dasheng_edge.quant.report.wording import FRONT, beside_others, limits, plot_caption, y_title
from tests.fixtures import fake_report


def texts(report: Report) -> Any:
    """What both documents say in the same words."""
    return environment().get_template("texts.jinja").make_module({"report": report})


def calibration(report: Report) -> str:
    return str(texts(report).calibration(report))


def front_note(drawn: Sequence[Plane]) -> str:
    return str(texts(fake_report.report()).front_note(drawn))


def beaten_by_the_reference() -> Report:
    """One candidate that is larger than the reference and worse: no other candidate beats it."""
    report = fake_report.report(fake_report.NAMES[:1], 1)
    one = report.candidates[0]
    size = report.reference.cost.total_bytes + 1
    return report.model_copy(
        update={"candidates": (one.model_copy(update={"cost": one.cost.model_copy(update={"total_bytes": size})}),)}
    )


def test_the_front_is_told_as_it_is_made() -> None:
    report = beaten_by_the_reference()
    drawn = planes(report)
    assert drawn[0].cost == "size"
    assert not drawn[0].front
    assert "nor the reference" in FRONT
    for text in (page(report), document(report)):
        assert FRONT in text.replace("\\", "")
        assert "none: the reference beats them all" in text.replace("\\", "")


def test_marks_are_explained_where_they_are_drawn() -> None:
    drawn = planes(fake_report.report())
    note = front_note(drawn)
    assert all(word in note for word in ("Dotted lines", "bars are 95 % intervals", "diamond", "band"))
    assert "triangle" not in note
    assert note in fake_report.full_page().replace("&#x27;", "'")


def test_marks_that_are_not_drawn_are_not_explained() -> None:
    nothing = Interval(value=0, low=0, high=0)

    def plain(plane: Plane) -> Plane:
        points = tuple(type(point)(point.number, point.name, point.x, nothing, False, False) for point in plane.points)
        return Plane(plane.cost, None, "lower", points, 1.0, 0.0, nothing)

    note = front_note([plain(planes(fake_report.report())[0])])
    assert "diamond" not in note
    assert "band" not in note
    assert "a triangle is a value below the axis" in note


def test_a_plot_says_which_way_is_better() -> None:
    captions = {y_title(plane): plot_caption(plane) for plane in planes(fake_report.report())}
    assert captions["mean KL in nats"].startswith("Lower is better.")
    assert captions["event F1"].startswith("Higher is better.")
    html, markdown = fake_report.full_page(), fake_report.full_document().replace("\\", "")
    assert "Higher is better. Front: " in html
    assert "event F1 against size (higher is better): " in markdown


def costing(clips: int | None) -> Report:
    report = fake_report.report(fake_report.NAMES[:1], 1)
    cost = report.reference.cost.model_copy(update={"clips": clips})
    return report.model_copy(update={"reference": report.reference.model_copy(update={"cost": cost})})


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (None, f"at most {MEASURED_CLIPS} clips."),
        (20, "on 20 clips, evenly spaced over those that were compared."),
        (120, "on 120 clips."),
    ],
)
def test_costs_say_over_how_many_clips(clips: int | None, words: str) -> None:
    report = costing(clips)
    assert words in page(report)
    assert words in document(report).replace("\\", "")


def scored(clips: int, all_clips: int = 120) -> Report:
    report = fake_report.report(fake_report.NAMES[:1], 1)
    one = report.candidates[0]
    task: dict[str, TaskScore] = {
        name: score.model_copy(update={"clips": clips if name == "word_error_rate" else 120})
        for name, score in one.task.items()
    }
    return report.model_copy(
        update={
            "candidates": (one.model_copy(update={"task": task}),),
            "settings": report.settings.model_copy(update={"clips": all_clips}),
        }
    )


def test_task_scores_of_few_clips_are_told_to_have_intervals_that_are_too_narrow() -> None:
    report = scored(MIN_CLIPS - 1)
    found = limits(report)
    assert found[:-1] == report.limits
    assert found[-1].startswith(f"Too few clips were scored for word error rate ({MIN_CLIPS - 1} clips): ")
    assert f"{COVERED[5]} % with 5, " in found[-1]
    for text in (page(report), document(report).replace("\\", "")):
        assert "intervals of few are too narrow" in text


def test_a_single_clip_is_named_as_one() -> None:
    assert "word error rate (1 clip): " in limits(scored(1))[-1]


def test_where_all_clips_are_few_the_record_says_so() -> None:
    """`report.limits` does, and a second sentence would only repeat it."""
    report = scored(1, MIN_CLIPS - 1)
    assert limits(report) == report.limits


def test_enough_clips_need_no_word() -> None:
    report = scored(MIN_CLIPS)
    assert limits(report) == report.limits
    assert "too narrow" not in page(report)


def test_overlapping_intervals_are_told_to_prove_nothing() -> None:
    for text in (fake_report.full_page(), fake_report.full_document().replace("\\", "")):
        assert "may differ for certain although their intervals overlap" in text


def test_a_matrix_that_was_brought_along_does_not_mean_that_no_clips_were_used() -> None:
    """A candidate that was calibrated elsewhere is not told to have been made without clips."""
    report = fake_report.report(fake_report.NAMES[:5], 1)
    none = report.settings.model_copy(update={"calibration_clips": None})
    assert calibration(report) == "64 clips"
    brought = report.model_copy(update={"settings": none})
    assert calibration(brought).endswith("1 of the candidates has an importance matrix that was made elsewhere")
    plain = brought.model_copy(update={"candidates": report.candidates[:2]})
    assert calibration(plain) == "no clips were given to this run"
    for text in (page(brought), document(brought)):
        assert calibration(brought) in text


def beside(share: float | None) -> Report:
    """A report whose last candidate was measured beside other programs."""
    made = fake_report.report()
    *others, last = made.candidates
    cost = last.cost.model_copy(update={"others_share": share})
    return made.model_copy(update={"candidates": (*others, last.model_copy(update={"cost": cost}))})


@pytest.mark.parametrize(("share", "said"), [(None, False), (0.1, False), (0.35, True)])
def test_other_programs_are_told_of_where_the_choice_is_and_speeds_are_not(share: float | None, said: bool) -> None:
    report = beside(share)
    assert beside_others(report).startswith("Other programs used up to 35% of the machine") == said
    shown, written = page(report), document(report)
    choice = shown[shown.index('class="choice"') : shown.index("The rule behind it")]
    assert ("Other programs used up to 35%" in choice) == said
    assert ("Other programs used up to 35%" in written[: written.index("The rule:")]) == said
    for speed in ("Decoding", "Work per s of audio"):
        assert (f"<dt>{speed}</dt>" in choice) != said
    assert ("work" in {plane.cost for plane in planes(report)}) != said
