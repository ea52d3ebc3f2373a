"""Quantities as text: as many digits as they are worth, with units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from dasheng_edge.quant.compare.record import Cost, Interval, Quantiles, SeamScores

NONE = "–"  # what was not measured, or does not exist
_MINUS = "−"


def figure(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, whole from there on: 0.0313, 4.85, 1,234; below 1e-4: 2.1e-5."""
    sign, size = _MINUS if value < 0 else "", abs(value)
    if size == 0:
        return "0"
    if size < 1e-4:
        mantissa, exponent = f"{size:.{min(digits, 2) - 1}e}".split("e")
        return f"{sign}{mantissa}e{_MINUS}{abs(int(exponent))}"
    # The exponent after rounding, so that 0.9996 gets as many digits as 1.00.
    exponent10 = int(f"{size:.{digits - 1}e}".split("e")[1])
    return f"{sign}{size:,.{max(0, digits - 1 - exponent10)}f}"


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with so many decimals."""
    text = f"{abs(value):,.{decimals}f}"
    if not text.strip("0.,"):
        return text
    return f"{_MINUS if value < 0 else '+' if signed else ''}{text}"


bits, cosine = partial(fixed, decimals=2), partial(fixed, decimals=6)  # a weight's, and one that is very near to 1


def between(low: str, high: str) -> str:
    """The ends of an interval."""
    return f"[{low}, {high}]"


def tick(value: float) -> str:
    """A round number at an axis, written as the tables write theirs but without digits that say nothing."""
    size = abs(value)
    if 0 < size < 1e-4:
        return figure(value).replace(".0e", "e")
    text = f"{size:,.0f}" if size >= 1000 else f"{size:.6g}"
    return f"{_MINUS if value < 0 and size else ''}{text}"


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers, three or more in a row as a range: 18, 21–23."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def clips(count: int) -> str:
    """So many clips."""
    return f"{count:,} clip{'' if count == 1 else 's'}"


def nats(interval: Interval) -> tuple[str, str]:
    """A divergence and its interval, of two digits unless the value stood outside then: not 0.0316 [0.032, 0.033]."""
    low, value, high = interval.low, interval.value, interval.high
    coarse = _rounded(low, 2) <= _rounded(value, 3) <= _rounded(high, 2)
    digits = 2 if coarse else 3
    return figure(value), between(figure(low, digits), figure(high, digits))


def _rounded(value: float, digits: int) -> float:
    """What `figure` shows, as a number."""
    return float(f"{value:.{(min(digits, 2) if abs(value) < 1e-4 else digits) - 1}e}")


def decimals(interval: Interval, *, scale: float = 1, places: int = 3, signed: bool = False) -> tuple[str, str]:
    """A figure and its interval; of scores and perplexities near 1, three decimals are what tells models apart."""
    value, low, high = (
        fixed(scale * part, places, signed=signed) for part in (interval.value, interval.low, interval.high)
    )
    return value, between(low, high)


def percent(share: Interval) -> tuple[str, str]:
    """A share and its interval, in percent."""
    value, ends = decimals(share, scale=100, places=1)
    return f"{value} %", ends


def points(change: Interval, *, signed: bool = True) -> tuple[str, str]:
    """The change of a score and its interval, in points: hundredths."""
    return decimals(change, scale=100, places=1, signed=signed)


def median(times: Quantiles) -> tuple[str, str]:
    """The median of times and their 90th percentile."""
    return figure(times.p50), f"p90 {figure(times.p90)}"


def work(cost: Cost) -> tuple[str, str]:
    """Seconds of work per second of audio, with the least and the most of a turn if they are known."""
    turns = [figure(turn) for turn in sorted(cost.real_time_factors)]
    return figure(cost.real_time_factor), between(turns[0], turns[-1]) if turns else ""


def megabytes(size: int) -> str:
    """Bytes in units of 10^6, without the unit."""
    return figure(size / 1e6)


def decibels(snr_db: float | None) -> str:
    """An SNR, without the unit; None is no difference at all."""
    return "exact" if snr_db is None else fixed(snr_db, 1)


def snr(scores: SeamScores) -> str:
    """The SNR of embeddings."""
    return decibels(scores.snr_db)


def seconds(value: float) -> str:
    """A duration of audio: 10.08 s, 30 s."""
    return f"{round(value, 2):,g} s"


def times(factor: float) -> str:
    """How many times as much, for sentences; infinity is no news."""
    return f"{figure(factor, 2)} times" if math.isfinite(factor) else "many times"
