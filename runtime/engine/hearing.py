"""Turns the audio of waiting requests into rows of their prompts, ahead of the decoder where that pays."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeVar

from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.machine.memory import started_thread


class Heard(Protocol):
    """A request that can be heard."""

    def read(self) -> None:
        """Read its audio, in any thread, beside other work. Raises nothing."""


_Job = TypeVar("_Job", bound=Heard)
CLOSING_S = 1.0  # that closing waits for audio that is being read: a pipe may never end
# So long is a request waited for whose audio does not come; then those behind it are read, and heard, before it.
PATIENCE_S = 0.5
MOMENT_S = 0.1  # of it that a step of those before them is put off at most, so that steps are wide
MAX_READERS = 64  # of which all but the first few are there because others wait for such audio


class Hearing(Generic[_Job]):
    """Hears requests in the order in which they were added, `together` of them at most in one call of `hear`.

    `read` runs in threads, a few requests ahead; who has audio that does not come lets others go first, see
    `PATIENCE_S`. With `beside`, `hear` runs in a thread, too, up to `ahead` requests before they are taken: for a GPU,
    which does both at once. Without, it is called by `take`: where encoder and decoder each use all cores, they take
    turns. With `apart`, that is once nothing is being answered, and as many are heard then as may be `together`.

    `add` and `discard` may be called by any thread, `take` and `close` by one at a time.

    Raises:
        MemoryShortError: there is not enough memory for the threads.
    """

    def __init__(
        self,
        hear: Callable[[Sequence[_Job]], None],
        *,
        readers: int,
        together: int,
        beside: bool,
        ahead: int,
        apart: bool = False,
    ) -> None:
        self._hear, self._together, self._ahead, self._apart = hear, together, ahead, apart
        self._read_ahead = 2 * readers + together
        self._added: deque[_Job] = deque()  # to be read when those before them have been
        self._waiting: deque[_Reading[_Job]] = deque()
        self._being_read: list[_Reading[_Job]] = []  # those that are not wanted any more, too
        self._under_way: list[_Job] = []  # that are heard at present and still wanted
        self._heard: deque[_Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._readers: list[threading.Thread] = []
        self._thread: threading.Thread | None = None
        try:
            for _ in range(readers):
                self._readers.append(started_thread("audio", self._read))
            self._thread = started_thread("encoder", self._work) if beside else None
        except BaseException:
            self.close()  # those that run
            raise

    def __len__(self) -> int:
        """How many were added and are not taken."""
        with self._changed:
            return len(self._added) + len(self._waiting) + len(self._under_way) + len(self._heard)

    def add(self, job: _Job) -> None:
        """Hear this one, after those that were added before."""
        with self._changed:
            self._added.append(job)
            self._read_next()
            self._changed.notify_all()

    def discard(self, job: _Job) -> None:
        """Do not hear this one, or not hand it out; harmless if it was taken."""
        with self._changed:
            self._added = deque(one for one in self._added if one is not job)
            self._waiting = deque(one for one in self._waiting if one.job is not job)
            self._under_way = [one for one in self._under_way if one is not job]
            self._heard = deque(one for one in self._heard if one is not job)
            self._read_next()
            self._changed.notify_all()

    def take(self, most: int, *, wait: bool) -> list[_Job]:
        """Up to `most` that have been heard, in order; none if the next one's audio does not come in time.

        With `wait`, nothing else is to be done meanwhile.
        """
        if self._thread is None and not self._heard and (wait or not self._apart):
            self._hear_next(self._together if self._apart else min(most, self._together), wait=wait)
        with self._changed:
            if wait and self._thread is not None:
                self._changed.wait_for(lambda: self._heard or not (self._waiting or self._under_way), PATIENCE_S)
            taken = [self._heard.popleft() for _ in range(min(most, len(self._heard)))]
            self._changed.notify_all()
            return taken

    def put_back(self, jobs: Sequence[_Job]) -> None:
        """These were taken, and are the next to be taken."""
        with self._changed:
            self._heard.extendleft(reversed(jobs))

    def close(self) -> None:
        """Hear no more. What is under way is finished first; harmless when repeated."""
        with self._changed:
            self._closed = True
            for queue in (self._added, self._waiting, self._heard):
                queue.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        end_s = time.monotonic() + CLOSING_S
        for reader in self._readers:
            reader.join(max(0.0, end_s - time.monotonic()))

    def _read_next(self) -> None:
        """Have more read; by another thread if all wait for audio that does not come."""
        while self._added and sum(not one.stalls for one in self._waiting) < self._read_ahead and not self._closed:
            self._waiting.append(_Reading(self._added.popleft()))
        if self._stuck and len(self._readers) < MAX_READERS and any(one.began_s is None for one in self._waiting):
            with suppress(MemoryShortError):  # then they wait
                self._readers.append(started_thread("audio", self._read))

    @property
    def _stuck(self) -> bool:
        """Whether no thread is left to read."""
        return sum(one.stalls for one in self._being_read) == len(self._readers)

    def _read(self) -> None:
        while (reading := self._next_to_read()) is not None:
            reading.job.read()
            with self._changed:
                self._being_read.remove(reading)
                reading.done = True
                self._changed.notify_all()

    def _next_to_read(self) -> _Reading[_Job] | None:
        with self._changed:
            while not self._closed:
                if reading := next((one for one in self._waiting if one.began_s is None), None):
                    reading.began_s = time.monotonic()
                    self._being_read.append(reading)
                    return reading
                self._changed.wait()
        return None

    def _ripe(self, most: int) -> list[_Reading[_Job]]:
        """The first that were read, but for those that let others go first."""
        waited_for = takewhile(lambda one: one.done or one.stalls, self._waiting)
        return list(islice((one for one in waited_for if one.done), most))

    def _enough(self, most: int) -> bool:
        """Whether so many were read that it is time to hear them."""
        needed = min(most, len(self._waiting)) if self._apart else 1
        return len(self._ripe(needed)) == needed

    def _hear_next(self, most: int, *, wait: bool) -> None:
        """Hear some of those that were read, if there are any; with `wait`, nothing else is to be done meanwhile."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._waiting or self._enough(most) or (self._stuck and not wait),
                PATIENCE_S if wait else MOMENT_S,
            )
            chosen = self._ripe(most)
            self._waiting = deque(one for one in self._waiting if one not in chosen)
            self._under_way = jobs = [reading.job for reading in chosen]
            self._read_next()
            self._changed.notify_all()
        if not chosen:
            return
        try:
            if not self._closed:
                self._hear(jobs)
        finally:
            with self._changed:
                self._heard.extend(self._under_way)
                self._under_way = []
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._waiting and len(self._heard) < self._ahead):
                    self._changed.wait()
                if self._closed:
                    return
            self._hear_next(self._together, wait=True)


class _Reading(Generic[_Job]):
    """A request whose audio is read, or will be."""

    def __init__(self, job: _Job) -> None:
        self.job, self.done = job, False
        self.began_s: float | None = None

    @property
    def stalls(self) -> bool:
        """Whether it is read for so long that others need not wait for it."""
        return not self.done and self.began_s is not None and time.monotonic() - self.began_s >= PATIENCE_S
