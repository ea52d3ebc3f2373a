"""Mutated audio beside a good file, given to the command: it ends with 0 or 1, and captions the good one."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from unittest import mock

from dasheng_edge.runtime.cli.app import main
from tests.fixtures.places import SMALLEST_BUNDLE

from .audio_cases import container, mutated_file
from .case import Case, WrongAnswerError
from .mutate import Rng


def commands(rng: Rng, folder: Path) -> Case:
    """`caption` or `embed` of a mutated file and a good one."""
    what, path = mutated_file(rng, folder)
    good = folder / "good.wav"
    good.write_bytes(container(0))
    if rng.random() < 0.3:
        rest = ["embed", str(SMALLEST_BUNDLE), str(path), str(good), "--out", str(folder / "out.npz")]
    else:
        options = [["--batch", "2"], ["--json"], ["--window", "2"], []][int(rng.integers(4))]
        rest = ["caption", str(SMALLEST_BUNDLE), str(path), str(good), "--max-new-tokens", "2", *options]
    return Case(f"{rest[0]} {what}", partial(_run, [*rest, "--threads", "1"]))


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
