"""The recommendation in words: that its reasons hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from dasheng_edge.quant.compare.recommend import MIN_TURNS, PROOF_CLIPS, recommend
from dasheng_edge.quant.compare.record import Candidate, Interval, Recommendation, TaskScore
from dasheng_edge.quant.report.report import document, recommendation
from dasheng_edge.runtime.machine.load import BUSY
from tests.fixtures import fake_report


def made(
    name: str, megabytes: float, work: float, kl: Interval, task: Mapping[str, TaskScore] | None = None
) -> Candidate:
    one = fake_report.candidate("int8+Q6_K")
    assert one.both is not None
    cost = one.cost.model_copy(
        update={
            "total_bytes": round(megabytes * 1e6),
            "real_time_factor": work,
            "real_time_factors": (work,) * MIN_TURNS,
        }
    )
    both = one.both.model_copy(update={"kl_mean": kl})
    return one.model_copy(update={"name": name, "cost": cost, "both": both, "task": dict(task or {})})


def near(value: float) -> Interval:
    return fake_report.interval(value, 0.02)


def changed(low: float, value: float, high: float, clips: int = 120) -> dict[str, TaskScore]:
    return {
        "event_f1": TaskScore(
            value=near(0.9), change=Interval(value=value, low=low, high=high), clips=clips, better="higher"
        )
    }


def found(*candidates: Candidate) -> Recommendation:
    return recommendation(recommend(fake_report.reference(), candidates, fake_report.noise_floor()))


def why(*candidates: Candidate) -> dict[str, str]:
    return {one.name: one.why for one in found(*candidates).rejected}


def test_a_larger_candidate_is_measured_against_the_smallest_and_not_the_choice() -> None:
    """The second is within 2 % of the first, the third within 2 % of the second only."""
    three = made("a", 100, 0.3, near(0.02)), made("b", 101.9, 0.2, near(0.01)), made("c", 103.5, 0.06, near(0.001))
    assert found(*three).choice == "b"
    assert why(*three)["c"] == (
        "Good enough, but 3.5 % larger than a; nearer to the reference (mean KL 0.00100, 0.0100 for b)."
    )


def test_a_slower_candidate_is_measured_against_the_fastest_and_not_the_choice() -> None:
    three = made("a", 100, 0.100, near(0.02)), made("b", 100, 0.104, near(0.01)), made("c", 100, 0.108, near(0.001))
    reasons = why(*three)
    assert found(*three).choice == "b"
    assert reasons["c"].startswith("As small and good enough, but slower than a: 0.108 [0.108, 0.108] s")
    assert reasons["a"] == "As small as b and no slower as far as can be told, but its mean KL is 0.0200, not 0.0100."


def test_the_first_of_equals_is_taken_and_the_other_told_so() -> None:
    two = made("a", 100, 0.1, near(0.01)), made("b", 100, 0.1, near(0.01))
    assert found(*two).choice == "a"
    assert why(*two)["b"].startswith("As small and as near to the reference as a, which stands before it")


@pytest.mark.parametrize(
    ("turns", "others", "said"),
    [
        (
            (0.1,) * 4,
            None,
            r"works 3\.9 times as fast: 0\.100 \[0\.100, 0\.100\] s of work per second of audio, not 0\.\d+ \[",
        ),
        ((0.9,) * 4, None, r"is slower, .* times the time: 0\.\d+ \["),
        ((0.1, 0.1, 0.1, 0.9), None, r"speeds cannot be told apart here\."),
        ((0.1,) * 4, BUSY + 0.1, r"speeds cannot be told apart here, since other programs used the machine\."),
    ],
)
def test_a_speed_is_told_with_its_spread_or_not_at_all(
    turns: tuple[float, ...], others: float | None, said: str
) -> None:
    one = made("a", 100, turns[0], near(0.01))
    cost = one.cost.model_copy(update={"real_time_factors": turns, "others_share": others})
    assert re.search(said, found(one.model_copy(update={"cost": cost})).reason)


def test_intervals_that_overlap_are_no_proof_that_none_is_nearer() -> None:
    choice = made("a", 100, 0.1, Interval(value=0.0035, low=0.0024, high=0.0048))
    lower = made("b", 200, 0.1, Interval(value=0.0017, low=0.0011, high=0.0024))
    higher = made("c", 200, 0.1, Interval(value=0.0036, low=0.0023, high=0.0050))
    reasons = why(choice, lower, higher)
    assert reasons["b"].endswith("its mean KL is lower (0.00170, not 0.00350), but the two intervals overlap.")
    assert reasons["c"].endswith("its mean KL is no lower (0.00360, not 0.00350).")
    assert "measurabl" not in " ".join(reasons.values())


@pytest.mark.parametrize(
    ("own", "overlap"),
    [
        (changed(-0.004, 0.0, 0.004), True),
        (changed(0.006, 0.008, 0.010), False),  # better than the choice
        (changed(-0.009, -0.008, -0.0061), False),  # worse
        ({}, False),
    ],
)
def test_of_task_scores_it_says_what_the_intervals_of_changes_show(own: dict[str, TaskScore], overlap: bool) -> None:
    choice = made("a", 100, 0.1, near(0.01), changed(-0.006, -0.001, 0.004))
    reason = why(choice, made("b", 200, 0.1, near(0.001), own))["b"]
    assert reason.startswith("Good enough, but 100 % larger than a; nearer to the reference (mean KL 0.00100, not ")
    assert ("the intervals of their changes overlap" in reason) is overlap


@pytest.mark.parametrize(("clips", "good"), [(1, True), (PROOF_CLIPS - 1, True), (PROOF_CLIPS, False)])
def test_few_clips_prove_no_loss(clips: int, good: bool) -> None:
    """The interval of one clip has no width, and so never reaches zero."""
    one = made("a", 100, 0.1, near(0.01), changed(-0.03, -0.03, -0.03, clips))
    result = found(one)
    assert (result.choice == "a") is good
    if good:
        count = "1 clip" if clips == 1 else f"{clips} clips"
        assert f"which {count} cannot tell from none" in result.reason


def test_a_large_loss_on_few_clips_is_too_much_but_not_certain() -> None:
    one = made("a", 100, 0.1, near(0.01), changed(-0.2, -0.2, -0.2, clips=1))
    assert "too much to pass although 1 clip cannot rule out chance" in why(one)["a"]


def test_a_loss_on_enough_clips_is_told_as_certain() -> None:
    one = made("a", 100, 0.1, near(0.01), changed(-0.009, -0.008, -0.007))
    assert "changes by −0.8 points [−0.9, −0.7]." in found(one).reason


def test_the_rule_tells_how_many_clips_prove_a_loss() -> None:
    text = document(fake_report.report(fake_report.NAMES[:1], 1))
    assert re.search(rf"\n1\. No task score .* and {PROOF_CLIPS} clips or more were scored", text)


def test_what_is_refused_is_told_with_all_its_faults() -> None:
    far = made("a", 2000, 0.1, near(0.2), changed(-0.09, -0.08, -0.07))
    result = found(far)
    assert result.choice is None
    assert result.reason == (
        "No candidate is good enough: keep reference. a came nearest. Against it: loses 8.0 points of event F1 "
        "[7.0, 9.0]; mean KL 0.200 [0.20, 0.20] nats is over the limit of 0.03; saves no space with 2,000 MB, the "
        "reference has 1,547 MB."
    )
    assert result.rejected[0].why == f"L{result.reason.partition('Against it: l')[2]}"


def test_nothing_compared_is_nothing_to_choose_from() -> None:
    assert found().reason == "Nothing was compared with reference, so there is nothing to choose from."


def test_an_answer_that_was_not_compared_is_no_proof() -> None:
    one = made("a", 100, 0.1, near(0.01)).model_copy(update={"both": None})
    assert why(one)["a"] == "Its answers were not compared with the reference's."
