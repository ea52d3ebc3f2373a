"""Two programs side by side, of which one is a stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.records.record import BenchmarkError
from benchmarks.records.turns import take_turns
from benchmarks.speed import native
from benchmarks.synthetic.noise import noise, write_wav
from tests.fixtures.places import SMALLEST_BUNDLE

# Says of each file its name's length, and of low memory something else about the last.
PROGRAM = """
import json, sys
files = [word for word in sys.argv[2:] if word.endswith(".wav")]
kept = bytearray(int(sys.argv[1]) << 20)
for file in files:
    other = "--low-memory" in sys.argv and file == files[-1]
    print(json.dumps({"text": f"{len(file.split('/')[-1])} {other}"}))
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)

    def of(*_: object) -> dict[str, list[str]]:
        each = {native.NATIVE: ("20",), native.LOW: ("1", "--low-memory"), native.PYTHON: ("40",)}
        return {name: [sys.executable, str(tmp_path / "program.py"), *words] for name, words in each.items()}

    monkeypatch.setattr(native, "commands", of)
    monkeypatch.setattr(native, "take_turns", lambda turns, _: take_turns(turns, 1, warm_up=0))


@pytest.mark.usefixtures("stand_ins")
def test_texts_are_counted_and_processes_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records" / "native.json"
    assert native.main([str(SMALLEST_BUNDLE), sys.executable, "--out", str(out), "--model", "x", "--threads", "1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["equal"], last["clips"]) == (12, 12)
    record = json.loads(out.read_text("utf-8"))
    assert record["equal"] == {native.NATIVE: 12, native.LOW: 11}
    peaks = {
        name: record["processes"][name]["peak_rss_bytes"]["p50"] for name in (native.NATIVE, native.LOW, native.PYTHON)
    }
    # Whatever this process has: 20 and 40 MiB beside 1.
    assert 15 << 20 < peaks[native.NATIVE] - peaks[native.LOW] < 25 << 20
    assert 15 << 20 < peaks[native.PYTHON] - peaks[native.NATIVE] < 25 << 20
    assert "| `dasheng-caption --low-memory` | 11 of 12 |" in native.section(record).text


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(BenchmarkError, match="sh ended with status 3: no"):
        native.done(["/bin/sh", "-c", "echo no >&2; exit 3"])


def test_what_is_no_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert native.main([str(SMALLEST_BUNDLE), str(tmp_path / "nothing"), "--threads", "1"]) == 1
    assert "make example-cpp" in capsys.readouterr().err


def test_clips_are_wav_files_of_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    clip = write_wav(tmp_path / "clip.wav", noise(0.1))
    assert native.as_wav(clip, tmp_path / "out").read_bytes() == clip.read_bytes()
    assert np.abs(noise(0.1)).max() > 0.2
