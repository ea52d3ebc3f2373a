"""Which candidate to take: a rule that can be stated, applied to what was measured.

A candidate is good enough if

1. no task score is worse than the reference's by more than a point (0.01; 1 % of a score above 1) where the paired
   interval excludes 0 and comes of at least `PROOF_CLIPS` clips, nor by more than five points where it does not;
2. the upper end of its mean KL's interval is at most `KL_LIMIT`, or what the noise floor's is if that is higher;
3. its encoder keeps `ENCODER_SNR_DB` at the length of clips where it is worst;
4. it is smaller than the reference.

Of these the smallest is recommended. Those within `SAME_SIZE` of it count as equally small. Of them those drop out that
are slower than the fastest as far as that can be told (`speeds_differ`), and the one with the lowest mean KL is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dasheng_edge.runtime.machine import load

from .record import Candidate, Cost, Interval, NoiseFloor, TaskScore

# What Q4_K_M, the type that most people take, does to Llama-3-8B on text is 0.0313 nats, or 0.0282 with an importance
# matrix; Q5_K_M does 0.0108, Q6_K 0.0055, Q8_0 0.0014 (llama.cpp, tools/perplexity/README.md).
KL_LIMIT = 0.03
# A point is what a reader of scores cares about; five are too many to be excused by having compared few clips.
TASK_LOSS, UNPROVEN_TASK_LOSS = 0.01, 0.05
# Where a percentile bootstrap says 95 %, it covers some 80 % with so many clips, less with fewer, and that of one clip
# has no width at all.
PROOF_CLIPS = 10
# 8-bit audio encoders, which are reported to be harmless, keep 32 dB (mean cosine 0.9997); the 4-bit ones that made
# their decoders repeat themselves 12.5 dB (0.9716, and far less in long clips): CrispASR, LEARNINGS.md.
ENCODER_SNR_DB = 15.0
SAME_SIZE, SAME_SPEED = 0.02, 0.05  # shares; the second is what timings scatter by on an idle machine
# By chance all of 4 turns are faster than all of 4 others of the same bundle 3 times in 100: 2 / C(8, 4).
MIN_TURNS = 4


@dataclass(frozen=True)
class TaskLoss:
    """A task score that is worse than the reference's by too much."""

    name: str
    score: TaskScore
    loss: Interval
    proven: bool  # no chance of the clips


@dataclass(frozen=True)
class Judged:
    """A candidate, and which points of the rule it fails."""

    candidate: Candidate
    losses: tuple[TaskLoss, ...]  # the largest first
    far: bool  # its mean KL is over the limit, or was not measured
    noisy: bool  # its encoder
    large: bool

    @property
    def faults(self) -> int:
        return sum((bool(self.losses), self.far, self.noisy, self.large))


@dataclass(frozen=True)
class Choice:
    """The candidate that is taken, and those whose size and speed the good ones were measured against."""

    taken: Candidate
    smallest: Candidate
    fastest: Candidate  # of those that count as equally small

    def step(self, candidate: Candidate) -> Literal["size", "speed", "kl", "order"]:
        """The step of the rule at which another candidate that is good enough drops out."""
        if not _equal(candidate.cost.total_bytes, self.smallest.cost.total_bytes, SAME_SIZE):
            return "size"
        if speeds_differ(candidate.cost, self.fastest.cost):
            return "speed"
        return "kl" if mean_kl(candidate) > mean_kl(self.taken) else "order"


@dataclass(frozen=True)
class Verdict:
    """What the rule says of each candidate, in their order."""

    reference: Candidate
    kl_limit: float
    judged: tuple[Judged, ...]
    choice: Choice | None  # None: none is good enough

    @property
    def good(self) -> int:
        return sum(not judged.faults for judged in self.judged)

    @property
    def nearest(self) -> Judged | None:
        """Fails the fewest points of the rule; of equals the one with the lowest mean KL."""
        return min(self.judged, default=None, key=lambda judged: (judged.faults, mean_kl(judged.candidate)))


def recommend(reference: Candidate, candidates: Sequence[Candidate], noise_floor: NoiseFloor) -> Verdict:
    """The module's rule, applied."""
    limit = kl_limit(noise_floor)
    judged = tuple(_judged(reference, candidate, limit) for candidate in candidates)
    return Verdict(reference, limit, judged, _choose([one.candidate for one in judged if not one.faults]))


def kl_limit(noise_floor: NoiseFloor) -> float:
    """Nobody is asked to be nearer to the reference than it is to itself."""
    return max(KL_LIMIT, noise_floor.decoder.kl_mean.high)


def loss_of(score: TaskScore) -> Interval | None:
    """By how much the score is worse than the reference's: positive is worse, whichever way it counts."""
    change = score.change
    if change is None or score.better == "lower":
        return change
    return Interval(value=-change.value, low=-change.high, high=-change.low)


def worst_length(candidate: Candidate) -> tuple[float, float | None] | None:
    """Lowest SNR in dB, and at what length in seconds (None: over all clips).

    None: the encoder does not differ, or was not compared.
    """
    if (scores := candidate.encoder) is None:
        return None
    measured = [(part.snr_db, part.seconds) for part in scores.by_length]
    pairs = [(snr, length) for snr, length in (*measured, (scores.snr_db, None)) if snr is not None]
    return min(pairs, default=None, key=lambda pair: pair[0])


def mean_kl(candidate: Candidate) -> float:
    return float("inf") if candidate.both is None else candidate.both.kl_mean.value


def changes_overlap(candidate: Candidate, other: Candidate) -> bool:
    """Whether no task score's change against the reference tells two candidates apart."""
    changes = [(candidate.task[name].change, other.task[name].change) for name in candidate.task.keys() & other.task]
    pairs = [(first, second) for first, second in changes if first and second]
    return bool(pairs) and all(first.low <= second.high and second.low <= first.high for first, second in pairs)


def speeds_differ(one: Cost, other: Cost) -> bool:
    """Whether one is faster beyond doubt: by more than `SAME_SPEED`, in each turn, on a machine that was idle."""
    turns, factors = (one.real_time_factors, other.real_time_factors), (one.real_time_factor, other.real_time_factor)
    if busy(one, other) or min(map(len, turns)) < MIN_TURNS or _equal(max(factors), min(factors), SAME_SPEED):
        return False
    return max(turns[0]) < min(turns[1]) or max(turns[1]) < min(turns[0])


def busy(*costs: Cost) -> bool:
    """Whether other programs used the machine meanwhile, as far as that is known."""
    return load.busy(*(cost.others_share for cost in costs))


def _judged(reference: Candidate, candidate: Candidate, limit: float) -> Judged:
    losses = [loss for name in sorted(candidate.task) if (loss := _task_loss(reference, candidate, name))]
    worst = worst_length(candidate)
    return Judged(
        candidate,
        losses=tuple(sorted(losses, key=lambda lost: -lost.loss.value)),
        far=candidate.both is None or candidate.both.kl_mean.high > limit,
        noisy=worst is not None and worst[0] < ENCODER_SNR_DB,
        large=candidate.cost.total_bytes >= reference.cost.total_bytes,
    )


def _task_loss(reference: Candidate, candidate: Candidate, name: str) -> TaskLoss | None:
    score = candidate.task[name]
    if (loss := loss_of(score)) is None:
        return None
    proven = loss.low > 0 and score.clips >= PROOF_CLIPS
    scale = max(1.0, abs(reference.task.get(name, score).value.value))
    allowed = scale * (TASK_LOSS if proven else UNPROVEN_TASK_LOSS)
    return TaskLoss(name, score, loss, proven) if loss.value > allowed else None


def _choose(good: Sequence[Candidate]) -> Choice | None:
    if not good:
        return None
    smallest = min(good, key=lambda one: one.cost.total_bytes)
    small = [one for one in good if _equal(one.cost.total_bytes, smallest.cost.total_bytes, SAME_SIZE)]
    fastest = min(small, key=lambda one: one.cost.real_time_factor)
    fast = [one for one in small if not speeds_differ(one.cost, fastest.cost)]
    return Choice(min(fast, key=mean_kl), smallest, fastest)  # the first of equals


def _equal(cost: float, least: float, share: float) -> bool:
    return cost <= least * (1 + share)
