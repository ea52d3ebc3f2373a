"""The tables of a report: figures that agree with each other, and what they rest on."""

from __future__ import annotations

from typing import Any

from dasheng_edge.quant.compare.record import Interval, Report
from dasheng_edge.quant.report.quantities import NONE
from dasheng_edge.quant.report.tables import Table, lengths
from dasheng_edge.quant.report.templates import environment
from tests.fixtures import fake_report


def column(head: tuple[str, ...], name: str) -> int:
    return next(index for index, title in enumerate(head) if title.startswith(name))


def table_of(report: Report, heading: str) -> Table:
    """The table of a section, as both documents have it."""
    texts: Any = environment().get_template("texts.jinja").make_module({"report": report})
    (made,) = (made for name, _, made in texts.sections if name == heading)
    assert isinstance(made, Table)
    return made


def with_perplexity(interval: Interval) -> Report:
    report = fake_report.report(fake_report.NAMES[:1], 1)
    one, floor = report.candidates[0], report.noise_floor
    assert one.both is not None
    both = one.both.model_copy(update={"perplexity": interval})
    own = floor.decoder.model_copy(update={"perplexity": Interval(value=1.0832, low=1.0755, high=1.0913)})
    return report.model_copy(
        update={
            "candidates": (one.model_copy(update={"both": both}),),
            "noise_floor": floor.model_copy(update={"decoder": own}),
        }
    )


def test_a_perplexity_has_the_digits_that_tell_it_from_the_references() -> None:
    table = table_of(
        with_perplexity(Interval(value=1.0846, low=1.0768, high=1.0925)), "How near each is to the reference"
    )
    place = column(table.head, "Perplexity")
    reference, candidate = (row.cells[place] for row in table.rows)
    assert (reference.text, reference.aside) == ("1.083", "[1.075, 1.091]")
    assert (candidate.text, candidate.aside) == ("1.085", "[1.077, 1.093]")


def test_the_reference_has_its_perplexity_and_no_distance_from_itself() -> None:
    table = table_of(fake_report.report(fake_report.NAMES[:2], 1), "How near each is to the reference")
    first = table.rows[0]
    assert first.role == "reference"
    assert {len(row.cells) for row in table.rows} == {len(table.head)}
    place = column(table.head, "Perplexity")
    assert all((cell.text == NONE) is (index != place) for index, cell in enumerate(first.cells) if index > 1)


def with_clips(counts: dict[str, int], other: dict[str, int]) -> Report:
    """Scores on so many clips; `other` are those of the last candidate."""
    report = fake_report.report(fake_report.NAMES[:2], 1)

    def scored(task: dict[str, object], found: dict[str, int]) -> dict[str, object]:
        return {name: task[name].model_copy(update={"clips": count}) for name, count in found.items()}  # type: ignore[attr-defined]

    first, last = report.candidates
    changed = [
        one.model_copy(update={"task": scored(dict(one.task), found)})
        for one, found in ((report.reference, counts), (first, counts), (last, other))
    ]
    return report.model_copy(update={"reference": changed[0], "candidates": tuple(changed[1:])})


def test_a_task_score_says_on_how_many_clips() -> None:
    counts = {"event_f1": 200, "word_error_rate": 1, "rouge_l": 240}
    table = table_of(with_clips(counts, {**counts, "rouge_l": 238}), "Task scores")
    assert table.head[2::2] == (
        "Event F1 (higher is better, 200 clips)",
        "Word error rate (lower is better, 1 clip)",
        "ROUGE-L (higher is better, 238–240 clips)",
    )


def test_many_candidates_of_one_encoder_are_ranges() -> None:
    table = lengths(fake_report.report())
    assert table is not None
    numbers = {row.cells[1].text: row.cells[0].text for row in table.rows}
    assert numbers["int8"] == "1, 6, 11–14, 17–20, 22"
    assert numbers["int8-block"] == "10"
    assert numbers["rounding alone"] == NONE
