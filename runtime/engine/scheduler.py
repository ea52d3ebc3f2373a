"""Continuous batching: which requests are heard, which have a place in the decoder, and whose turn it is.

Requests are answered in the order of their arrival: each is heard, gets a place as soon as its keys and values fit,
and from then on a token in every step. One that ends, fails or is cancelled leaves its place to the next at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from .hearing import Heard, Hearing

FIRST_STEPS = 32  # of the first answer alone; so many more with one beside it, then with three, and so on


class Job(Heard, Protocol):
    """A request, from its arrival to its answer."""

    @property
    def ended(self) -> bool:
        """Whether it has its answer; before it was begun, too, where it cannot be heard or there is nothing to hear."""
        ...


_Job = TypeVar("_Job", bound=Job)


_Begun_contra = TypeVar("_Begun_contra", bound=Job, contravariant=True)


class Places(Protocol[_Begun_contra]):
    """Where answers are made: as `text.sequences.Sequences`."""

    def begin(self, jobs: Sequence[_Begun_contra]) -> int: ...
    def step(self) -> None: ...
    def stop(self, job: _Begun_contra) -> None: ...
    def close(self) -> None: ...


class Scheduler(Generic[_Job]):
    """Decides what is done next. `add` may be called by any thread, all else by one at a time.

    Where hearing and decoding take turns, a wide start would keep the first answer back for the sake of the others. So
    the first is made alone, or with few others where it is long; once it has ended, there are `most` places.
    """

    def __init__(self, hearing: Hearing[_Job], places: Places[_Job], most: int, *, beside: bool) -> None:
        self._hearing, self._places, self._most, self._beside = hearing, places, most, beside
        self._active: list[_Job] = []
        self._steps = 0  # of the first answer since there was nothing to do
        self._answered = False  # whether it has ended
        self.closed = False

    def __len__(self) -> int:
        """How many requests are not done."""
        return len(self._hearing) + len(self._active)

    def add(self, job: _Job) -> None:
        """Answer this one, too."""
        self._hearing.add(job)

    def cancel(self, job: _Job) -> None:
        """Let go of a request; harmless if it is done."""
        self._hearing.discard(job)
        if job in self._active:
            self._active.remove(job)
            self._places.stop(job)

    def advance(self, done: Callable[[_Job], None]) -> None:
        """One turn of work: hear and begin what there is room for, then a step of all. `done` is told who has ended."""
        free = self._width() - len(self._active)
        jobs = self._hearing.take(free, wait=not self._active) if free > 0 else []
        ready, over = [job for job in jobs if not job.ended], [job for job in jobs if job.ended]
        begun = self._places.begin(ready) if ready else 0
        self._active += ready[:begun]
        if ready[begun:]:
            self._hearing.put_back(ready[begun:])
        for job in over:
            done(job)
        self._places.step()
        self._steps += 1
        for job in [job for job in self._active if job.ended]:
            self._active.remove(job)
            self._answered = True
            done(job)
        if not self:
            self._steps, self._answered = 0, False

    def close(self) -> None:
        """Let go of all requests; harmless when repeated."""
        self.closed = True
        self._hearing.close()
        self._places.close()
        self._active.clear()

    def _width(self) -> int:
        """How many answers may be made together at present."""
        if self._beside or self._answered:
            return self._most
        return min(self._most, 1 << min(self._steps // FIRST_STEPS, 10))
