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
