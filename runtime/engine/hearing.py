"""Turns the audio of waiting requests into rows of their prompts, ahead of the decoder where that pays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from dasheng_edge.runtime.machine.memory import started_thread


class Heard(Protocol):
    """A request that can be heard."""

    def read(self) -> None:
        """Read its audio, in any thread, beside other work. Raises nothing."""


_Job = TypeVar("_Job", bound=Heard)
CLOSING_S = 1.0  # that closing waits for audio that is being read: a pipe may never end


class Hearing(Generic[_Job]):
    """Hears requests in the order in which they were added, `together` of them at most in one call of `hear`.

    `read` runs in threads, a few requests ahead. With `beside`, `hear` runs in a thread, too, up to `ahead` requests
    before they are taken: for a GPU, which does both at once. Without, it is called by `take`: where encoder and
    decoder each use all cores, they take turns.

    `add` and `discard` may be called by any thread, `take` and `close` by one at a time.

    Raises:
        MemoryShortError: there is not enough memory for the threads.
    """

    def __init__(
        self, hear: Callable[[Sequence[_Job]], None], *, readers: int, together: int, beside: bool, ahead: int
    ) -> None:
        self._hear, self._together, self._ahead = hear, together, ahead
        self._read_ahead = 2 * readers + together
        self._added: deque[_Job] = deque()  # to be read when those before them have been
        self._waiting: deque[_Reading[_Job]] = deque()
        self._chosen: list[_Reading[_Job]] = []  # what is heard at present, and those of them that are still wanted
        self._under_way: list[_Job] = []
        self._heard: deque[_Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._to_read: SimpleQueue[_Reading[_Job] | None] = SimpleQueue()
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

    def take(self, most: int, *, wait: bool) -> list[_Job]:
        """Up to `most` that have been heard, in order. With `wait`, at least one unless there is none to be heard."""
        if self._thread is None and not self._heard:
            self._hear_next(min(most, self._together))
        with self._changed:
            while wait and self._thread is not None and not self._heard and (self._waiting or self._under_way):
                self._changed.wait()
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
            for reading in (*self._waiting, *self._chosen):
                reading.done.set()
            for queue in (self._added, self._waiting, self._heard):
                queue.clear()
            self._changed.notify_all()
        for _ in self._readers:
            self._to_read.put(None)
        if self._thread is not None:
            self._thread.join()
        for reader in self._readers:
            reader.join(CLOSING_S)

    def _read_next(self) -> None:
        while self._added and len(self._waiting) < self._read_ahead and not self._closed:
            self._waiting.append(_Reading(self._added.popleft()))
            self._to_read.put(self._waiting[-1])

    def _read(self) -> None:
        while (reading := self._to_read.get()) is not None:
            if not reading.done.is_set():
                reading.job.read()
                reading.done.set()

    def _hear_next(self, most: int) -> None:
        """Hear some of those that wait, if there are any."""
        with self._changed:
            self._chosen = chosen = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._under_way = jobs = [reading.job for reading in chosen]
            self._read_next()
        if not chosen:
            return
        try:
            for reading in chosen:
                reading.done.wait()
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
            self._hear_next(self._together)


class _Reading(Generic[_Job]):
    """A request whose audio is read, or will be."""

    def __init__(self, job: _Job) -> None:
        self.job, self.done = job, threading.Event()
