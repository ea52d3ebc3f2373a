"""The recommendation's facts: what the rule takes, and at which step it drops the others."""

from __future__ import annotations

import pytest

from dasheng_edge.quant.compare.recommend import (
    ENCODER_SNR_DB,
    KL_LIMIT,
    MIN_TURNS,
    Verdict,
    kl_limit,
    recommend,
    speeds_differ,
    worst_length,
)
from dasheng_edge.quant.compare.record import Candidate, Interval, TaskScore
from dasheng_edge.runtime.machine.load import BUSY
from tests.fixtures import fake_report


def made(name: str, megabytes: float, work: float, kl: float, task: dict[str, TaskScore] | None = None) -> Candidate:
    one = fake_report.candidate("int8+Q6_K")
    assert one.both is not None
    cost = one.cost.model_copy(
        update={
            "total_bytes": round(megabytes * 1e6),
            "real_time_factor": work,
            "real_time_factors": (work,) * MIN_TURNS,
        }
    )
    both = one.both.model_copy(update={"kl_mean": fake_report.interval(kl, 0.02)})
    return one.model_copy(update={"name": name, "cost": cost, "both": both, "task": task or {}})


def judged(*candidates: Candidate) -> Verdict:
    return recommend(fake_report.reference(), candidates, fake_report.noise_floor())


def test_each_other_candidate_drops_out_at_a_step() -> None:
    taken, equal = made("taken", 100, 0.1, 0.01), made("equal", 100, 0.1, 0.01)
    larger, slower, farther = made("b", 103, 0.01, 0.001), made("c", 101, 0.2, 0.001), made("d", 101, 0.1, 0.02)
    choice = judged(larger, slower, taken, farther, equal).choice
    assert choice is not None
    assert choice.taken is taken
    assert [choice.step(one) for one in (larger, slower, farther, equal)] == ["size", "speed", "kl", "order"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"real_time_factors": (0.2, 0.2, 0.2, 0.09)}, False),  # turns overlap
        ({"real_time_factors": (0.2,) * (MIN_TURNS - 1)}, False),
        ({"real_time_factors": ()}, False),  # of a version that did not say
        ({"others_share": BUSY}, True),
        ({"others_share": BUSY + 0.01}, False),
        ({"real_time_factor": 0.104, "real_time_factors": (0.104,) * MIN_TURNS}, False),
    ],
)
def test_speed_decides_only_where_it_can_be_told(change: dict[str, object], told: bool) -> None:
    fast, slow = made("fast", 100, 0.1, 0.02), made("slow", 100, 0.2, 0.01)
    slow = slow.model_copy(update={"cost": slow.cost.model_copy(update=change)})
    choice = judged(slow, fast).choice
    assert choice is not None
    assert speeds_differ(slow.cost, fast.cost) == speeds_differ(fast.cost, slow.cost) == told
    assert choice.taken is (fast if told else slow)  # by speed, or else by KL
    assert choice.step(slow if told else fast) == ("speed" if told else "kl")


def test_a_candidate_fails_each_point_of_the_rule_for_itself() -> None:
    score = TaskScore(
        value=fake_report.interval(0.9), change=Interval(value=-0.02, low=-0.03, high=-0.01), clips=120, better="higher"
    )
    noisy = made("noisy", 100, 0.1, 0.01).model_copy(update={"encoder": fake_report.encoder_scores(ENCODER_SNR_DB + 1)})
    verdict = judged(
        made("good", 100, 0.1, 0.01), made("worse", 100, 0.1, 0.01, {"event_f1": score}),
        made("far", 100, 0.1, KL_LIMIT), noisy, made("large", 2000, 0.1, 0.01),
    )  # fmt: skip
    faults = {one.candidate.name: (len(one.losses), one.far, one.noisy, one.large) for one in verdict.judged}
    assert faults == {
        "good": (0, False, False, False),
        "worse": (1, False, False, False),
        "far": (0, True, False, False),
        "noisy": (0, False, True, False),  # good over all clips, not at 60 s
        "large": (0, False, False, True),
    }
    assert verdict.good == 1


def test_the_nearest_of_those_that_fail_has_the_fewest_faults() -> None:
    verdict = judged(made("far and large", 2000, 0.1, 0.1), made("far", 100, 0.1, 0.3), made("nearer", 100, 0.1, 0.2))
    assert verdict.choice is None
    assert verdict.nearest is not None
    assert verdict.nearest.candidate.name == "nearer"
    assert judged().nearest is None


@pytest.mark.parametrize("floor", [0.001, 0.5])
def test_nobody_is_asked_to_be_nearer_than_the_reference_is_to_itself(floor: float) -> None:
    noise = fake_report.noise_floor().model_copy(update={"decoder": fake_report.decoder_scores(floor)})
    assert kl_limit(noise) == max(KL_LIMIT, noise.decoder.kl_mean.high)


def test_an_encoder_is_judged_at_its_worst_length() -> None:
    one = made("a", 100, 0.1, 0.01)
    worst = worst_length(one)
    assert one.encoder is not None
    assert worst is not None
    assert worst == (one.encoder.by_length[-1].snr_db, 60.0)
    assert worst_length(fake_report.reference()) is None
