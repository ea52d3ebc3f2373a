"""Quantities as text: as many digits as they are worth, with units."""

from __future__ import annotations

import math

from .record import Interval

NONE = "–"  # what was not measured, or does not exist
_MINUS = "−"
_TITLES = {
    "fense": "FENSE", "cider_d_ptb": "CIDEr-D (PTB)", "spider_fl": "SPIDEr-FL",
    "event_f1": "event F1", "word_error_rate": "word error rate", "character_error_rate": "character error rate",
    "exact_match": "exact match", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D",
}  # fmt: skip


def figure(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with so many significant digits, whole from there on: 0.0313, 4.85, 1,234; below 1e-4: 2.1e-5."""
    sign = _MINUS if value < 0 else "+" if signed and value > 0 else ""
    size = abs(value)
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


def between(low: str, high: str) -> str:
    """The ends of an interval."""
    return f"[{low}, {high}]"


def nats(interval: Interval) -> tuple[str, str]:
    """A divergence and its interval."""
    return figure(interval.value), between(figure(interval.low, 2), figure(interval.high, 2))


def percent(interval: Interval) -> tuple[str, str]:
    """A share and its interval, in percent."""
    value, low, high = (fixed(100 * share, 1) for share in (interval.value, interval.low, interval.high))
    return f"{value} %", between(low, high)


def points(interval: Interval) -> tuple[str, str]:
    """The change of a score and its interval, in points: hundredths."""
    value, low, high = (fixed(100 * part, 1, signed=True) for part in (interval.value, interval.low, interval.high))
    return value, between(low, high)


def megabytes(size: int) -> str:
    """Bytes in units of 10^6, without the unit."""
    return figure(size / 1e6)


def decibels(snr_db: float | None) -> str:
    """An SNR, without the unit; None is no difference at all."""
    return "exact" if snr_db is None else fixed(snr_db, 1)


def seconds(value: float) -> str:
    """A duration of audio: 10.08 s, 30 s."""
    return f"{round(value, 2):,g} s"


def times(factor: float) -> str:
    """How many times as much, for sentences; infinity is no news."""
    return f"{figure(factor, 2)} times" if math.isfinite(factor) else "many times"


def score_title(name: str) -> str:
    """A task score's name as it is spoken of."""
    return _TITLES.get(name, name.replace("_", " "))
