"""Where decoded audio lies in time, as its container says: when it begins, and what is missing in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HOLE_S = 0.1  # less is rounding of timestamps, jitter of a recorder, or the priming of an encoder
MAX_HOLES_S = 3600.0  # in all: a damaged timestamp must not become days of silence


@dataclass
class Timeline:
    """Places decoded frames one after the other; all times are in seconds from the beginning of the container."""

    start_s: float = 0.0  # of the first sample
    end_s: float = 0.0  # of the last one so far
    _begun: bool = False
    _shift_s: float = 0.0  # from the stated times to those kept here, after a clock was set anew
    _stated_end_s: float = 0.0
    _holes: int = 0
    _holes_s: float = 0.0
    _first_hole_s: float = 0.0
    _jumps: int = 0
    _longest_jump_s: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first sample to the last, holes included."""
        return self.end_s - self.start_s

    def place(self, stated_s: float | None, seconds: float) -> float:
        """Seconds of silence to put before a frame that is stated to begin at `stated_s` and lasts `seconds`."""
        silence_s = 0.0
        if stated_s is not None:
            if not self._begun:
                self.start_s = self.end_s = stated_s if stated_s >= HOLE_S else 0.0
            else:
                silence_s = self._silence_before(stated_s, seconds)
            self._stated_end_s = stated_s + seconds
        self._begun = True
        self.end_s += silence_s + seconds
        return silence_s

    def _silence_before(self, stated_s: float, seconds: float) -> float:
        jump_s = stated_s - self._stated_end_s
        if jump_s <= -HOLE_S:  # files that were joined
            self._shift_s = self.end_s - stated_s
            return 0.0
        gap_s = stated_s + self._shift_s - self.end_s
        if gap_s < HOLE_S or jump_s < seconds / 2:  # a clock that runs a little fast makes no holes
            return 0.0
        if self._holes_s + gap_s > MAX_HOLES_S:
            self._shift_s -= gap_s
            self._jumps += 1
            self._longest_jump_s = max(self._longest_jump_s, gap_s)
            return 0.0
        if not self._holes:
            self._first_hole_s = self.end_s
        self._holes += 1
        self._holes_s += gap_s
        return gap_s

    def warnings(self) -> Iterator[str]:
        """What there is to say, once all frames were placed."""
        if self._holes:
            places = "in one place" if self._holes == 1 else f"in {self._holes} places"
            first = f"{'' if self._holes == 1 else 'the first '}at {self._first_hole_s:.2f} s"
            yield f"{self._holes_s:.2f} s are missing {places}, {first}; they are taken as silence"
        if self._jumps:
            yield (
                f"its timestamps jump ahead too far in {self._jumps} places, by up to {self._longest_jump_s:.0f} s; no "
                f"more than {MAX_HOLES_S:.0f} s of silence are put in, and times behind those are too early"
            )
