"""How far an array is from its reference: the one place where this is computed.

`got` is judged, `want` is the reference; both have any shape and any real type, and are compared in float64.

    relative RMS = sqrt(sum (got - want)^2 / sum want^2)      no unit; 0.01 is a difference of one percent
    SNR          = 10 log10(sum want^2 / sum (got - want)^2)  dB; 40 dB is the same one percent
    noise share  = sum (got - want)^2 / sum want^2            no unit; the square of the relative RMS

The same holds everywhere: NaN on either side gives NaN, which no tolerance accepts if it is written
`error <= tolerance`. Arrays of unequal shapes are infinitely far apart. No difference is 0 (as SNR: None), whatever the
reference. A reference of zeros counts as the smallest positive float64, so that any difference from it is huge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TINY = float(np.finfo(np.float64).tiny)


@dataclass
class Deviation:
    """Sums of squares over one array or several, as if they were one."""

    signal: float = 0.0  # of the reference
    noise: float = 0.0  # of the difference

    @classmethod
    def of(cls, pairs: Iterable[tuple[Array, Array]]) -> Deviation:
        """Over pairs of (got, want)."""
        total = cls()
        for got, want in pairs:
            total.add(got, want)
        return total

    @classmethod
    def total(cls, parts: Iterable[Deviation]) -> Deviation:
        """Over everything that the parts were taken over."""
        listed = list(parts)
        return cls(sum(part.signal for part in listed), sum(part.noise for part in listed))

    def add(self, got: Array, want: Array) -> None:
        """Take in one more array."""
        reference = want.astype(np.float64)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(_difference(got, reference)).sum())

    @property
    def noise_share(self) -> float:
        """Share of the power that differs."""
        return self.noise / max(self.signal, _TINY) if self.noise else 0.0

    @property
    def relative_rms(self) -> float:
        """RMS of the difference over RMS of the reference."""
        return float(self.noise_share**0.5)

    @property
    def snr_db(self) -> float | None:
        """Signal to noise in dB; None where nothing differs."""
        if not self.noise:
            return None
        ratio = max(self.signal, _TINY) / self.noise
        return float(10 * np.log10(ratio)) if ratio else -np.inf


def relative_rms(got: Array, want: Array) -> float:
    """RMS(got - want) / RMS(want) of two arrays."""
    return Deviation.of([(got, want)]).relative_rms


def max_difference(got: Array, want: Array) -> float:
    """max |got - want|, in the unit of the two; 0 of empty arrays."""
    return float(np.abs(_difference(got, want.astype(np.float64))).max(initial=0.0))


def logits_relative_rms(got: Array, want: Array) -> float:
    """Relative RMS of two rows of logits [vocab], each without its mean.

    A constant added to all logits changes nothing that is computed from them.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return relative_rms(got - got.mean(), want - want.mean())


def noise_share_of(snr_db: float) -> float:
    """The noise share that an SNR means."""
    return float(10 ** (-snr_db / 10))


def relative_rms_of(snr_db: float) -> float:
    """The relative RMS that an SNR means."""
    return float(10 ** (-snr_db / 20))


def _difference(got: Array, want: Array) -> Array:
    if got.shape != want.shape:
        return np.full(1, np.inf)
    with np.errstate(invalid="ignore"):  # infinity - infinity is NaN
        return np.asarray(got.astype(np.float64) - want)
