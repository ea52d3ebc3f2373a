"""What arrives is given once it is complete, and again when it was changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from dasheng_edge.runtime.jobs.inputs import Inputs
from dasheng_edge.runtime.jobs.watch import arrivals


def test_files_are_given_when_they_are_complete(tmp_path: Path) -> None:
    now = [10_000.0]

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (now[0], now[0]))

    write("there.wav", "old")
    write("half.wav.part", "x")
    write("~half.wav", "x")
    write("half.part.wav", "x")
    write("empty.wav", "")
    steps: Iterator[Callable[[], object]] = iter([
        lambda: write("slow.wav", "a"), lambda: write("slow.wav", "ab"), lambda: None, lambda: None,
        lambda: (tmp_path / "half.wav.part").rename(tmp_path / "half.wav"), lambda: None, lambda: None,
        lambda: write("there.wav", "changed"), lambda: None, lambda: None, lambda: None,
    ])  # fmt: skip

    def sleep(_: float) -> None:
        now[0] += 1.0
        next(steps)()

    # Only what was looked at counts here: the real times of change are those of this test's run.
    found = arrivals(Inputs([str(tmp_path)]), settled_s=1.5, sleep=sleep, now=lambda: now[0])
    given = [[Path(one.path).name for one in batch] for batch in islice(found, 4)]
    assert given == [["there.wav"], ["slow.wav"], ["half.wav"], ["there.wav"]]
