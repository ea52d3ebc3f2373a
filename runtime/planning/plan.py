"""Which of several bundles to take to a machine."""

from __future__ import annotations

from collections.abc import Sequence

from .speed import Prediction


def choose(predictions: Sequence[Prediction]) -> tuple[Prediction | None, str]:
    """What to take of predictions for one machine, and why.

    The largest that fits and keeps up with the audio, since it loses least; if none keeps up, the fastest that fits.
    """
    fitting, how = [one for one in predictions if one.fits], ""
    if not fitting:
        fitting, how = [one.low for one in predictions if one.low and one.low.fits], " with --low-memory"
    if not fitting:
        least = min((one.low or one for one in predictions), key=lambda one: one.account.peak)
        return None, (
            f"nothing fits: {least.shape.name} takes {megabytes(least.account.peak)} at least, there are "
            f"{megabytes(least.memory_bytes)}; take a smaller recipe, or a board with more memory"
        )
    if in_time := [one for one in fitting if one.real_time_factor <= 1]:
        best = max(in_time, key=lambda one: one.shape.total_bytes)
        return best, f"{best.shape.name}{how} is the finest that fits and keeps up with the audio"
    best = min(fitting, key=lambda one: one.times.caption_s)
    factor = best.real_time_factor
    return best, f"{best.shape.name}{how} is the fastest that fits, and takes {factor:.1f} times as long as the audio"


def megabytes(count: float) -> str:
    """As people read it."""
    return f"{count / 1e6:,.0f} MB"
