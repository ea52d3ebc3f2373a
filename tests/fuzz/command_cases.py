"""Mutated audio, or rows of a manifest, beside good ones, given to the command.

It ends with 0 or 1, and captions the good ones.
"""

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from pathlib import Path
from unittest import mock

from dasheng_edge.runtime.cli.app import main
from tests.fixtures.places import SMALLEST_BUNDLE

from .audio_cases import container, mutated_file
from .case import Case, WrongAnswerError
from .mutate import Rng, mutated, mutated_json


def commands(rng: Rng, folder: Path) -> Case:
    """`caption` or `embed` of a mutated file and a good one."""
    what, path = mutated_file(rng, folder)
    good = folder / "good.wav"
    good.write_bytes(container(0))
    if rng.random() < 0.3:
        what, clips = _manifest(rng, folder, path.name)
        rest = ["caption", str(SMALLEST_BUNDLE), str(clips), "--max-new-tokens", "2"]
    elif rng.random() < 0.3:
        rest = ["embed", str(SMALLEST_BUNDLE), str(path), str(good), "--out", str(folder / "out.npz")]
    else:
        options = [["--batch", "2"], ["--json"], ["--window", "2"], []][int(rng.integers(4))]
        rest = ["caption", str(SMALLEST_BUNDLE), str(path), str(good), "--max-new-tokens", "2", *options]
    return Case(f"{rest[0]} {what}", partial(_run, [*rest, "--threads", "1"]))


def _manifest(rng: Rng, folder: Path, other: str) -> tuple[str, Path]:
    """Rows of good.wav, with one between them that is mutated, names no file or a place that is not in it."""
    row: dict[str, object] = {"audio": other, "id": "x", "offset": 0.1, "duration": 0.2, "prompt": "What?"}
    if rng.random() < 0.5:
        source = {"type": "file", "channels": [0], "source": other}
        recording = {"id": "r", "sources": [source], "sampling_rate": 16_000, "num_samples": 9, "duration": 1.0}
        row = {"type": "MonoCut", "id": "x", "start": 0, "duration": 0.2, "channel": 0, "recording": recording}
        row["supervisions"] = [{"id": "s", "recording_id": "r", "start": 0.0, "text": "beep"}]
    line = mutated_json(json.dumps(row), rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        line = mutated(line, rng)
    good = [json.dumps({"audio": "good.wav", "id": name}).encode() for name in ("good.wav", "last.wav")]
    clips = folder / "clips.jsonl"
    clips.write_bytes(b"\n".join([good[0], line, good[1]]))
    return f"clips.jsonl {line[:60]!r}", clips


def _run(arguments: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with mock.patch("sys.argv", ["dasheng-edge", *arguments]):
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            status = end.code or 0
    if status not in (0, 1) or "Traceback" in err.getvalue():
        raise WrongAnswerError(f"status {status}: {err.getvalue()[-300:]}")
    if "good.wav" not in out.getvalue() and arguments[0] == "caption":
        raise WrongAnswerError(f"no caption of the good file: {out.getvalue()!r} {err.getvalue()[-300:]}")
    return f"status {status}"
