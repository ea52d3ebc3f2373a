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
MAX_WINDOW_S, WORKED = 0.5, 0.3  # a longer one says nothing about now, unless we have had so many cores in the mean
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

    def __init__(self, look: Callable[[], CpuUse] = cpu_use, clock: Callable[[], float] = time.perf_counter) -> None:
        self._lock, self._take_look, self._clock, self._last = threading.Lock(), look, clock, look()
        self._policy = FreeCores(self._last.cores)
        self._beside = 0

    def threads(self, *limits: int) -> tuple[int, ...]:
        """For each number of threads that are set, how many are worth it at present; it is looked if it is time."""
        with self._lock:
            self._look()
            free = self._policy.free - self._beside
        return tuple(max(1, min(limit, free)) for limit in limits)

    def _look(self, *, opening: bool = False) -> None:
        """Judge what others took since the last look, unless that is long ago and we have not worked since."""
        if (passed_s := self._clock() - self._last.clock_s) < WINDOW_S:
            return
        last, self._last = self._last, self._take_look()
        if self._last.cores != self._policy.cores:  # the process was moved to other cores
            self._policy = FreeCores(self._last.cores)
            return
        others, worked_s = last.others(self._last), self._last.own_s - last.own_s
        if others is not None and (opening or passed_s <= MAX_WINDOW_S or worked_s >= WORKED * passed_s):
            self._policy.saw(others, passed_s)

    @contextmanager
    def opening(self) -> Generator[None]:
        """What others take meanwhile is what the first request starts with."""
        with self._lock:
            self._last = self._take_look()
        yield
        with self._lock:
            self._look(opening=True)

    @contextmanager
    def beside(self, threads: int) -> Generator[None]:
        """Meanwhile, so many threads of our own compute something else in this process."""
        with self._lock:
            self._look()  # as a request begins, so that what it takes by itself is what is judged
            self._beside += threads
        try:
            yield
        finally:
            with self._lock:
                self._beside -= threads


@cache
def governor() -> Governor:
    """One for the process, since what others take is the same for all."""
    return Governor()
