"""Threads that hear ahead of the decoder."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from dasheng_edge.runtime.engine import hearing
from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.machine.memory import started_thread


def test_what_hears_ends_its_threads_where_one_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = threading.active_count(), itertools.count()

    def second_fails(name: str, work: Callable[[], object]) -> threading.Thread:
        if next(asked):
            raise MemoryShortError("a thread")
        return started_thread(name, work)

    monkeypatch.setattr(hearing, "started_thread", second_fails)
    with pytest.raises(MemoryShortError):
        hearing.Hearing(print, readers=2, together=1, beside=False, ahead=1)
    assert threading.active_count() == before


class Clip:
    """A request that is read at once."""

    def read(self) -> None:
        pass


def test_where_parts_take_turns_several_are_heard_once_nothing_is_answered() -> None:
    heard: list[int] = []
    apart = hearing.Hearing[Clip](
        lambda jobs: heard.append(len(jobs)), readers=1, together=3, beside=False, apart=True, ahead=1
    )
    clips = [Clip() for _ in range(5)]
    for clip in clips:
        apart.add(clip)
    assert apart.take(1, wait=False) == []  # something is being answered
    taken = [apart.take(1, wait=True)]
    assert heard == [3]
    taken += [apart.take(1, wait=False), apart.take(5, wait=True)]
    assert heard == [3]
    assert apart.take(1, wait=False) == []
    taken += [apart.take(2, wait=True)]
    assert heard == [3, 2]
    assert [clip for some in taken for clip in some] == clips
    apart.close()
