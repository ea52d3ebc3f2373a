"""The rules that every file of subtitles keeps: lines, length, reading speed, times (Netflix's, BBC's and DCMP's)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .cue import Cue
from .wrapping import MAX_LINES, columns, limits, reading_ms, shown

MIN_MS, MAX_MS = 830, 7000  # 5/6 s (20 frames of 24), 7 s
GAP_MS = 83  # two frames of 24 a second


def lint(cues: Sequence[Cue]) -> list[str]:
    """What is wrong with cues, a sentence each; empty if nothing is.

    At most 2 lines, of 42 columns (less for Chinese, Japanese, Korean: see `Limits`), 17 a second, 0.83 s to 7 s each,
    in order, 83 ms apart.
    """
    faults = [f"cue {number}: {fault}" for number, cue in enumerate(cues, 1) for fault in _faults(cue)]
    for number, (before, cue) in enumerate(pairwise(cues), 2):
        gap = _ms(cue.start_s) - _ms(before.end_s) if _finite(before, cue) else GAP_MS
        if gap < GAP_MS:
            faults.append(f"cue {number}: begins {gap} ms after the one before has ended; expected at least {GAP_MS}")
    return faults


def _faults(cue: Cue) -> Iterator[str]:
    if not 1 <= len(cue.lines) <= MAX_LINES:
        yield f"{len(cue.lines)} lines; expected 1 or {MAX_LINES}"
    for line in cue.lines:
        if not line or line != shown(line):
            yield f"the line {line!r} is empty, or holds what cannot be shown"
        if (width := columns(line)) > (most := limits(line).columns):
            yield f"a line of {width} characters; expected at most {most}"
    if not _finite(cue) or cue.start_s < 0:
        yield f"it is shown from {cue.start_s} s to {cue.end_s} s; expected times from 0 on"
        return
    length, need = _ms(cue.end_s) - _ms(cue.start_s), reading_ms(cue.lines)
    if not MIN_MS <= length <= MAX_MS:
        yield f"it is shown for {length} ms; expected {MIN_MS} to {MAX_MS}"
    if length < need:
        yield f"it is shown for {length} ms, and takes {need} ms to read"


def _finite(*cues: Cue) -> bool:
    return all(math.isfinite(time) for cue in cues for time in (cue.start_s, cue.end_s))


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
