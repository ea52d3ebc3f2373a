"""How many threads to compute with beside other programs: no more than the cores that those leave.

Threads of llama.cpp wait for each other in loops, hundreds of times a step. Where one has no core because another
program is on it, the others burn theirs until the scheduler's next slice. Two cores, two threads, 40 clips of a second
with the micro model: 0.5 s alone, 1.1 s beside one busy loop, 7 s beside two; on one thread 0.5 and 0.8 s. ONNX
Runtime's threads sleep instead, as `onnx_session.spinning` says, and two of them beat one beside any number of loops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

from .meters import CpuUse, cpu_use

WINDOW_S = 0.1  # of a look: the system counts in ticks of 10 ms, and a step may take 0.1 s anyway
CALM_S = 0.3  # for so long cores must be free before they are taken back
# In cores: what others have to take above what they are left for a thread to go, and below for one to come. Both
# together are more than a core by the noise of a look.
DOWN, UP = 0.35, 0.8


class FreeCores:
    """The policy: how many of `cores` others leave, which goes down at once and up with hesitation.

    What others take looks less while they share cores with us, so it may go down in several steps, and beside more busy
    loops than half of the cores, end a thread above what they leave. Under a constant load it stays where it is.
    """

    def __init__(self, cores: int) -> None:
        self.cores = self.free = cores
        self._calm_s = self._most = 0.0  # for how long more cores were free, and what others took then at most

    def saw(self, others: float, seconds: float) -> int:
        """Others had so many cores in the mean, for so long; how many are free."""
        taken = self.cores - self.free
        if others > taken + DOWN:
            self.free = max(1, min(self.free - 1, round(self.cores - others)))
        if others >= taken - UP:
            self._calm_s = self._most = 0.0
            return self.free
        self._calm_s, self._most = self._calm_s + seconds, max(self._most, others)
        if self._calm_s >= CALM_S:
            self.free = min(self.cores, int(self.cores - self._most + 1 - UP))
            self._calm_s = self._most = 0.0
        return self.free


class Governor:
    """Looks now and then what others take, and says how many threads to compute with. For any number of threads."""

    def __init__(self, look: Callable[[], CpuUse] = cpu_use) -> None:
        self._lock, self._take_look, self._last = threading.Lock(), look, look()
        self._policy = FreeCores(self._last.cores)
        self._beside = 0

    def threads(self, *limits: int) -> tuple[int, ...]:
        """For each number of threads that are set, how many are worth it at present; it is looked if it is time."""
        with self._lock:
            if time.perf_counter() - self._last.clock_s >= WINDOW_S:
                self._look()
            free = self._policy.free - self._beside
        return tuple(max(1, min(limit, free)) for limit in limits)

    def _look(self) -> None:
        last, self._last = self._last, self._take_look()
        if self._last.cores != self._policy.cores:  # the process was moved to other cores
            self._policy = FreeCores(self._last.cores)
        elif (others := last.others(self._last)) is not None:  # the system tells
            self._policy.saw(others, self._last.clock_s - last.clock_s)

    @contextmanager
    def beside(self, threads: int) -> Generator[None]:
        """Meanwhile, so many threads of our own compute something else in this process."""
        with self._lock:
            self._beside += threads
        try:
            yield
        finally:
            with self._lock:
                self._beside -= threads


@cache
def governor() -> Governor:
    """One for the process, since what others take is the same for all; it looks from the first call on."""
    return Governor()
