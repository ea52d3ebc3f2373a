"""Laws of the scheduler, on a model of what hears and answers: nothing is lost, doubled, mixed up or starved."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.engine import hearing
from dasheng_edge.runtime.engine.hearing import Hearing
from dasheng_edge.runtime.engine.scheduler import FIRST_STEPS, Scheduler


@dataclass(eq=False)
class Asked:
    """A request that takes so many tokens and positions; `deaf` ones cannot be heard."""

    number: int
    tokens: int
    positions: int = 1
    deaf: bool = False
    slow_s: float = 0.0
    read_by: str = ""
    left: int = field(init=False)
    began_at: int = -1
    heard: bool = False

    def __post_init__(self) -> None:
        self.left = self.tokens

    @property
    def failed(self) -> bool:
        return self.deaf and self.heard

    @property
    def ended(self) -> bool:
        return self.failed or self.left == 0

    def read(self) -> None:
        assert not self.read_by
        self.read_by = threading.current_thread().name
        time.sleep(self.slow_s)


class Places:
    """So many places, and positions that all of them share."""

    def __init__(self, most: int, positions: int) -> None:
        self.most, self.positions, self.steps, self.widest = most, positions, 0, 0
        self.active: list[Asked] = []
        self.closed = False

    def __len__(self) -> int:
        return len(self.active)

    def begin(self, jobs: Sequence[Asked]) -> int:
        for count, job in enumerate(jobs):
            taken = sum(one.positions for one in self.active)
            if len(self.active) == self.most or (self.active and taken + job.positions > self.positions):
                return count
            assert job.heard
            assert job.began_at < 0
            job.began_at = self.steps
            self.active.append(job)
            self.widest = max(self.widest, len(self.active))
        return len(jobs)

    def step(self) -> None:
        self.steps += 1
        for job in self.active:
            job.left -= 1
        self.active = [job for job in self.active if job.left]

    def stop(self, job: Asked) -> None:
        self.active = [one for one in self.active if one is not job]

    def close(self) -> None:
        self.closed = True


def new(most: int, positions: int, *, beside: bool, together: int = 1) -> tuple[Scheduler[Asked], Places]:
    def hear(jobs: Sequence[Asked]) -> None:
        assert 0 < len(jobs) <= together
        for job in jobs:
            assert job.read_by
            job.heard = True

    places = Places(most, positions)
    hearing = Hearing(hear, readers=2, together=together, beside=beside, ahead=most)
    return Scheduler(hearing, places, most, beside=beside), places


lists = st.lists(
    st.tuples(st.integers(1, 70), st.integers(1, 12), st.sampled_from([False, False, False, True])), max_size=25
)


@settings(max_examples=60, deadline=None)
@given(
    requests=lists,
    most=st.integers(1, 6),
    beside=st.booleans(),
    together=st.integers(1, 3),
    arrivals=st.lists(st.integers(0, 5), max_size=25),
    cancelled=st.sets(st.integers(0, 24), max_size=4),
)
def test_every_request_is_answered_once_and_in_order_of_arrival(
    requests: list[tuple[int, int, bool]],
    most: int,
    beside: bool,
    together: int,
    arrivals: list[int],
    cancelled: set[int],
) -> None:
    scheduler, places = new(most, 20, beside=beside, together=together)
    jobs = [Asked(number, *one) for number, one in enumerate(requests)]
    waiting, done, gone = list(jobs), list[Asked](), set[int]()
    pace = iter(arrivals)
    try:
        while waiting or len(scheduler):
            for job in [waiting.pop(0) for _ in range(min(next(pace, 3), len(waiting)))]:
                scheduler.add(job)
                if job.number in cancelled:
                    scheduler.advance(done.append)
                    if job not in done:
                        gone.add(job.number)
                    scheduler.cancel(job)
            scheduler.advance(done.append)
            assert len(places) <= most
    finally:
        scheduler.close()
    assert sorted(job.number for job in done) == sorted({job.number for job in jobs} - gone)
    begun = [job.began_at for job in jobs if job.began_at >= 0]
    assert begun == sorted(begun)  # nobody is overtaken
    assert all(job.left == 0 for job in done if not job.deaf)
    assert places.closed


def test_the_first_answer_is_made_alone_and_then_all_together() -> None:
    scheduler, places = new(8, 100, beside=False)
    jobs = [Asked(number, 12) for number in range(20)]
    for job in jobs:
        scheduler.add(job)
    done: list[Asked] = []
    while not done:
        scheduler.advance(done.append)
    assert places.widest == 1
    while len(scheduler):
        scheduler.advance(done.append)
    assert places.widest == 8
    scheduler.close()


def test_a_long_first_answer_is_not_waited_for() -> None:
    scheduler, places = new(8, 100, beside=False)
    for number in range(20):
        scheduler.add(Asked(number, 1000))
    while places.steps < 4 * FIRST_STEPS:
        scheduler.advance(lambda _: None)
    assert places.widest == 8
    scheduler.close()


@pytest.mark.parametrize("beside", [True, False])
def test_cancelling_frees_the_place_at_once(beside: bool) -> None:
    scheduler, places = new(1, 100, beside=beside)
    first, second = Asked(0, 1000), Asked(1, 3)
    scheduler.add(first)
    scheduler.advance(lambda _: None)
    scheduler.add(second)
    assert len(places) == 1
    scheduler.cancel(first)
    assert len(places) == 0
    done: list[Asked] = []
    while len(scheduler):
        scheduler.advance(done.append)
    assert done == [second]
    scheduler.cancel(second)  # harmless
    scheduler.close()


@pytest.mark.parametrize("beside", [True, False])
def test_closing_does_not_wait_for_audio_that_never_ends(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "CLOSING_S", 0.01)
    scheduler, _ = new(2, 100, beside=beside)
    scheduler.add(Asked(0, 1, slow_s=200.0))
    time.sleep(0.05)
    start = time.monotonic()
    scheduler.close()
    scheduler.close()
    assert time.monotonic() - start < 100


def test_audio_is_read_by_other_threads_while_one_is_heard() -> None:
    scheduler, _ = new(2, 100, beside=False)
    jobs = [Asked(number, 4) for number in range(5)]
    for job in jobs:
        scheduler.add(job)
    while len(scheduler):
        scheduler.advance(lambda _: None)
    assert all("audio" in job.read_by for job in jobs)
    scheduler.close()
