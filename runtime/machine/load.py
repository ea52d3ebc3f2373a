"""How much of the machine other programs take while something is measured, and whether that spoils it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .meters import cpu_use

BUSY = 0.1  # share of the machine that others take, above which speeds say little about it
LOOK_S = 0.5  # in which programs that come and go are seen
WAIT_S = 30.0  # as long as a browser takes to start, or a compiler to link


class Load:
    """Other programs since it was made."""

    def __init__(self) -> None:
        self._before = cpu_use()

    def share(self) -> float | None:
        """Share of the machine that they took; None where the system does not tell. Own children must have ended."""
        return self._before.others_share(cpu_use())


def busy(*shares: float | None) -> bool:
    """Whether others took too much for what was measured meanwhile to count, as far as that is known."""
    return max((share or 0.0 for share in shares), default=0.0) > BUSY


def wait_for_calm(say: Callable[[str], None], wait_s: float = WAIT_S) -> float | None:
    """Wait until others leave the machine alone, or for so long; the share that they took last."""
    if cpu_use().idle_s is None:
        return None
    end_s, told = time.monotonic() + wait_s, False
    while True:
        load = Load()
        time.sleep(LOOK_S)
        share = load.share()
        if not busy(share) or time.monotonic() >= end_s:
            return share
        if not told:
            say(f"other programs use {share:.0%} of the machine: waiting up to {wait_s:.0f} s for them to end")
            told = True
