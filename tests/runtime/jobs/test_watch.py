"""What arrives is given once it is complete, and again when it was changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.jobs import watch
from dasheng_edge.runtime.jobs.inputs import Input, Inputs
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


def caption(*args: str | Path | float) -> Result:
    words = ["caption", *(str(arg) for arg in args), "--max-new-tokens", "2", "--threads", "1"]
    return CliRunner().invoke(cli.build_app(), words, prog_name="dasheng-edge")


@pytest.mark.parametrize(("more", "beside"), [([], 0), (["--format", "srt"], 4)])
def test_a_watched_folder_says_so_and_passes_over_what_is_captioned(
    tiny_bundle: Path,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    more: list[str],
    beside: int,
) -> None:
    def all_at_once(inputs: Inputs) -> Iterator[list[Input]]:
        yield [item for item in inputs if "broken" not in item.path]
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "arrivals", all_at_once)
    first, again = (caption(tiny_bundle, "--watch", clips, *more) for _ in range(2))
    assert first.exit_code == again.exit_code == 130
    assert first.stderr.startswith(f"watching {clips}, 5 files known; Ctrl-C ends\n")
    assert "error: " not in first.stderr + again.stderr
    assert len(list(clips.rglob("*.srt"))) == beside
    assert len(asked) == (6 if beside else 8)
    assert first.stdout.count(f"{clips}/") == (0 if beside else 4)
