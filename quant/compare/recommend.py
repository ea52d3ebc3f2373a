"""Which candidate to take: a rule that can be stated, applied to what was measured.

A candidate is good enough if

1. no task score is worse than the reference's by more than a point (0.01; 1 % of a score above 1) where the paired
   interval excludes 0 and comes of at least `PROOF_CLIPS` clips, nor by more than five points where it does not;
2. the upper end of its mean KL's interval is at most `KL_LIMIT`, or what the noise floor's is if that is higher;
3. its encoder keeps `ENCODER_SNR_DB` at the length of clips where it is worst;
4. it is smaller than the reference.

Of these the smallest is recommended. Those within `SAME_SIZE` of it count as equally small, and of them the fastest is
taken; those within `SAME_SPEED` of that count as equally fast, and of them the one with the lowest mean KL is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dasheng_edge.quant.report.quantities import (
    between,
    clips,
    decibels,
    figure,
    fixed,
    megabytes,
    nats,
    percent,
    score_title,
    seconds,
    times,
)

from .record import Candidate, Interval, NoiseFloor, Recommendation, Rejected, TaskScore

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
SAME_SIZE, SAME_SPEED = 0.02, 0.05  # shares; the second is what timings scatter by


def recommend(reference: Candidate, candidates: Sequence[Candidate], noise_floor: NoiseFloor) -> Recommendation:
    """The candidate to take by the module's rule, why, and why not each of the others, in their order."""
    faults = [_faults(reference, candidate, noise_floor) for candidate in candidates]
    good = [candidate for candidate, found in zip(candidates, faults, strict=True) if not found]
    choice = _choose(good)
    rejected = tuple(
        Rejected(name=candidate.name, why=_sentence(found or (_why_not(candidate, choice),)))
        for candidate, found in zip(candidates, faults, strict=True)
        if choice is None or candidate is not choice.taken
    )
    if choice is not None:
        reason = _reason(reference, choice.taken, len(good), len(candidates))
        return Recommendation(choice=choice.taken.name, reason=reason, rejected=rejected)
    return Recommendation(choice=None, reason=_nothing(reference, candidates, faults), rejected=rejected)


def rule(noise_floor: NoiseFloor) -> tuple[str, ...]:
    """The module's rule in sentences, for the page."""
    return (
        (
            "No task score is worse than the reference's by more than a point (0.01; 1 % of a score above 1) if the "
            f"interval of the change excludes zero and {PROOF_CLIPS} clips or more were scored, nor by more than five "
            "points if the clips cannot tell."
        ),
        (
            f"Mean KL is at most {_kl_limit(noise_floor):.2g} nats at the upper end of its interval. For "
            "orientation: on text, Llama-3-8B loses 0.0014 by Q8_0, 0.0055 by Q6_K, 0.0108 by Q5_K_M and 0.0313 by "
            "Q4_K_M (llama.cpp's figures)."
        ),
        f"The encoder keeps an SNR of {ENCODER_SNR_DB:g} dB at the length of clips where it is worst.",
        "It is smaller than the reference.",
        (
            f"Of those that pass, the smallest is recommended; within {100 * SAME_SIZE:g} % of its size the fastest, "
            f"and within {100 * SAME_SPEED:g} % of that speed the one with the lowest mean KL."
        ),
    )


def _kl_limit(noise_floor: NoiseFloor) -> float:
    """Nobody is asked to be nearer to the reference than it is to itself."""
    return max(KL_LIMIT, noise_floor.decoder.kl_mean.high)


def _faults(reference: Candidate, candidate: Candidate, noise_floor: NoiseFloor) -> tuple[str, ...]:
    """What keeps a candidate from being good enough, worst kind first."""
    found = [
        _task_fault(reference, candidate),
        _kl_fault(candidate, _kl_limit(noise_floor)),
        _encoder_fault(candidate),
    ]
    if candidate.cost.total_bytes >= reference.cost.total_bytes:
        size, other = megabytes(candidate.cost.total_bytes), megabytes(reference.cost.total_bytes)
        found.append(f"saves no space: {size} MB, the reference has {other} MB")
    return tuple(fault for fault in found if fault)


def _loss(score: TaskScore) -> Interval | None:
    """By how much the score is worse than the reference's: positive is worse, whichever way it counts."""
    if score.change is None or score.better == "lower":
        return score.change
    change = score.change
    return Interval(value=-change.value, low=-change.high, high=-change.low)


def _task_fault(reference: Candidate, candidate: Candidate) -> str:
    """The largest loss that is too large, and how many others are."""
    losses: list[tuple[float, str]] = []
    for name, score in sorted(candidate.task.items()):
        loss = _loss(score)
        if loss is None:
            continue
        proven = loss.low > 0 and score.clips >= PROOF_CLIPS
        scale = max(1.0, abs(reference.task.get(name, score).value.value))
        if loss.value > scale * (TASK_LOSS if proven else UNPROVEN_TASK_LOSS):
            doubt = "" if proven else f", too much to pass although {clips(score.clips)} cannot rule out chance"
            verb = "loses" if score.better == "higher" else "adds"
            ends = between(fixed(100 * loss.low, 1), fixed(100 * loss.high, 1))
            text = f"{verb} {fixed(100 * loss.value, 1)} points of {score_title(name)} {ends}{doubt}"
            losses.append((loss.value, text))
    if not losses:
        return ""
    others = {1: "", 2: ", and another score is worse, too"}.get(
        len(losses), f", and {len(losses) - 1} others are worse, too"
    )
    return max(losses, key=lambda pair: pair[0])[1] + others


def _kl_fault(candidate: Candidate, limit: float) -> str:
    if candidate.both is None:
        return "its answers were not compared with the reference's"
    kl = candidate.both.kl_mean
    if kl.high <= limit:
        return ""
    over = "is over" if kl.value > limit else "reaches over"
    return f"mean KL {' '.join(nats(kl))} nats {over} the limit of {limit:.2g}"


def _worst_length(candidate: Candidate) -> tuple[float, str] | None:
    """Lowest SNR in dB and where; None: the encoder does not differ, or was not compared."""
    scores = candidate.encoder
    if scores is None:
        return None
    found = [
        (part.snr_db, f"in clips of {seconds(part.seconds)}") for part in scores.by_length if part.snr_db is not None
    ]
    if scores.snr_db is not None:
        found.append((scores.snr_db, "over all clips"))
    return min(found, default=None, key=lambda pair: pair[0])


def _encoder_fault(candidate: Candidate) -> str:
    worst = _worst_length(candidate)
    if worst is None or worst[0] >= ENCODER_SNR_DB:
        return ""
    return f"its encoder keeps {decibels(worst[0])} dB of SNR {worst[1]}, {ENCODER_SNR_DB:g} dB are asked for"


@dataclass(frozen=True)
class _Choice:
    """The candidate that is taken, and those whose size and speed the good ones were measured against."""

    taken: Candidate
    smallest: Candidate
    fastest: Candidate  # of those that count as equally small

    def size_limit(self) -> float:
        """Bytes up to which a candidate counts as equally small."""
        return self.smallest.cost.total_bytes * (1 + SAME_SIZE)

    def work_limit(self) -> float:
        """Seconds of work per second of audio up to which one of these counts as equally fast."""
        return self.fastest.cost.real_time_factor * (1 + SAME_SPEED)


def _choose(good: Sequence[Candidate]) -> _Choice | None:
    if not good:
        return None
    smallest = min(good, key=lambda candidate: candidate.cost.total_bytes)
    found = _Choice(smallest, smallest, smallest)
    small = [candidate for candidate in good if candidate.cost.total_bytes <= found.size_limit()]
    fastest = min(small, key=lambda candidate: candidate.cost.real_time_factor)
    found = _Choice(fastest, smallest, fastest)
    fast = [candidate for candidate in small if candidate.cost.real_time_factor <= found.work_limit()]
    return _Choice(min(fast, key=_kl), smallest, fastest)  # the first of equals


def _kl(candidate: Candidate) -> float:
    return float("inf") if candidate.both is None else candidate.both.kl_mean.value


def _why_not(candidate: Candidate, choice: _Choice | None) -> str:
    """Why a candidate that is good enough is not the choice: the step of the rule where it drops out."""
    assert choice is not None
    if candidate.cost.total_bytes > choice.size_limit():
        share = candidate.cost.total_bytes / choice.smallest.cost.total_bytes - 1
        larger = f"good enough, but {figure(100 * share, 2)} % larger than {choice.smallest.name}"
        return f"{larger}; {_nearness(candidate, choice)}"
    if candidate.cost.real_time_factor > choice.work_limit():
        fastest = choice.fastest
        return f"as small and good enough, but slower than {fastest.name}: {_work(candidate)}, not {_work(fastest)}"
    own, other, name = _kl(candidate), _kl(choice.taken), choice.taken.name
    if own > other:
        return f"as small and as fast as {name}, but its mean KL is {figure(own)}, not {figure(other)}"
    return f"as small, as fast and as near to the reference as {name}, which stands before it"


def _nearness(candidate: Candidate, choice: _Choice) -> str:
    """Whether a larger candidate is nearer to the reference than the choice, as far as separate intervals tell.

    Both come from the same clips, so that their difference may be certain where the intervals overlap.
    """
    taken = choice.taken
    assert candidate.both is not None
    assert taken.both is not None
    own, other = candidate.both.kl_mean, taken.both.kl_mean
    against = f"not {figure(other.value)}" if taken is choice.smallest else f"{figure(other.value)} for {taken.name}"
    means = f"{figure(own.value)}, {against}"
    if own.value >= other.value:
        return f"its mean KL is no lower ({means})"
    if own.high >= other.low:
        return f"its mean KL is lower ({means}), but the two intervals overlap"
    return f"nearer to the reference (mean KL {means}){_no_gain(candidate, taken)}"


def _no_gain(candidate: Candidate, choice: Candidate) -> str:
    """Says so where no task score's change against the reference tells the two apart."""
    shared = [
        (one, two)
        for name in candidate.task
        if name in choice.task and (one := candidate.task[name].change) and (two := choice.task[name].change)
    ]
    if not shared or any(one.low > two.high or two.low > one.high for one, two in shared):
        return ""
    return ", but in every task score the intervals of their changes overlap"


def _work(candidate: Candidate) -> str:
    return f"{figure(candidate.cost.real_time_factor)} s of work per second of audio"


@dataclass(frozen=True)
class _Ratio:
    """Of two costs; without zeros."""

    own: float
    other: float

    def faster(self) -> str:
        if self.own <= 0 or self.other <= 0:
            return ""
        factor = self.other / self.own
        if factor > 1 + SAME_SPEED:
            return f"It works {times(factor)} as fast."
        return f"It is slower: {times(1 / factor)} the time." if factor < 1 / (1 + SAME_SPEED) else "It is as fast."


def _reason(reference: Candidate, choice: Candidate, good: int, total: int) -> str:
    assert choice.both is not None
    size, base = choice.cost.total_bytes, reference.cost.total_bytes
    among = f"the smallest of the {good} that are good enough, of {total} compared" if good > 1 else (
        f"the only one of {total} that is good enough" if total > 1 else "good enough"
    )  # fmt: skip
    share = f", {figure(100 * size / base, 2)} % of it" if base else ""
    sentences = [
        f"It is {among}: {megabytes(size)} MB, the reference has {megabytes(base)} MB{share}.",
        (
            f"Mean KL is {' '.join(nats(choice.both.kl_mean))} nats, and both prefer the same token at "
            f"{' '.join(percent(choice.both.same_top1))} of all positions."
        ),
        *(_task_sentence(name, score) for name, score in sorted(choice.task.items())),
    ]
    if not any(score.change for score in choice.task.values()):
        sentences.append("No task score was measured, so this rests on KL and on the encoder alone.")
    if (worst := _worst_length(choice)) is not None:
        sentences.append(f"Its encoder keeps at least {decibels(worst[0])} dB of SNR.")
    sentences.append(_Ratio(choice.cost.real_time_factor, reference.cost.real_time_factor).faster())
    return " ".join(sentence for sentence in sentences if sentence)


def _task_sentence(name: str, score: TaskScore) -> str:
    loss = _loss(score)
    if loss is None or score.change is None:
        return ""
    change = score.change
    value = fixed(100 * change.value, 1, signed=True)
    ends = between(fixed(100 * change.low, 1, signed=True), fixed(100 * change.high, 1, signed=True))
    known = "" if loss.low > 0 or loss.high < 0 else ", which these clips cannot tell from none"
    if score.clips < PROOF_CLIPS:
        known = f", which {clips(score.clips)} cannot tell from none"
    title = score_title(name)
    return f"{title[0].upper()}{title[1:]} changes by {value} points {ends}{known}."


def _nothing(reference: Candidate, candidates: Sequence[Candidate], faults: Sequence[tuple[str, ...]]) -> str:
    if not candidates:
        return f"Nothing was compared with {reference.name}, so there is nothing to choose from."
    nearest = min(range(len(candidates)), key=lambda index: (len(faults[index]), _kl(candidates[index])))
    why = _sentence(faults[nearest])
    return (
        f"No candidate is good enough: keep {reference.name}. Nearest came {candidates[nearest].name}, "
        f"but it is refused: {why[0].lower()}{why[1:]}"
    )


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
