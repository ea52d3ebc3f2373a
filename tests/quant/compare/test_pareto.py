"""Which score stands for the task; the planes themselves are tested with the report."""

from __future__ import annotations

import pytest

from dasheng_edge.quant.compare.pareto import main_task
from dasheng_edge.quant.compare.record import Candidate, Interval, Report, TaskScore
from tests.fixtures.fake_report import report


def with_tasks(*names: str) -> Report:
    """A report whose models have these scores."""
    whole = report(("int8+Q4_K_M",), clip_count=1)
    value = Interval(value=0.5, low=0.4, high=0.6)
    task = {name: TaskScore(value=value, change=None, clips=3, better="higher") for name in names}

    def scored(one: Candidate) -> Candidate:
        return one.model_copy(update={"task": task})

    update = {"reference": scored(whole.reference), "candidates": tuple(map(scored, whole.candidates))}
    return whole.model_copy(update=update)


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (("character_error_rate", "exact_match"), "character_error_rate"),
        (("cider_d", "exact_match", "fense", "rouge_l"), "fense"),
        (("cider_d", "character_error_rate", "word_error_rate", "event_f1"), "event_f1"),
        (("spider_fl", "cider_d_ptb"), "cider_d_ptb"),
        ((), None),
    ],
)
def test_the_broadest_score_stands_for_the_task(names: tuple[str, ...], main: str | None) -> None:
    assert main_task(with_tasks(*names)) == main
