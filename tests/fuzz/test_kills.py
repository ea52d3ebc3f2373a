"""The kill harness finds what it looks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.places import REPOSITORY, SMALLEST_BUNDLE

from . import kills

QUANTIZE = next(job for job in kills.JOBS if job.name == "quantize")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


def test_what_is_lost_half_or_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path(shutil.copytree(SMALLEST_BUNDLE, tmp_path / "made"))
    assert kills.problem(QUANTIZE, tmp_path) is None
    half = Path(shutil.copytree(SMALLEST_BUNDLE, tmp_path / ".made.partial-01234567"))
    assert kills.problem(QUANTIZE, tmp_path) is None
    (tmp_path / ".made.lock").touch()
    (made / ".x.kv.partial-01234567").touch()
    assert kills.left_over({"made"}, tmp_path) == [".made.lock", half.name, "made/.x.kv.partial-01234567"]
    with monkeypatch.context() as trusting:
        trusting.setattr(kills, "_opens", lambda _: True)
        assert kills.problem(QUANTIZE, tmp_path) == ("half", f"{half.name} opens")
    shutil.rmtree(made)
    lost = kills.problem(QUANTIZE, tmp_path)
    assert lost is not None
    assert lost[0] == "lost"


@pytest.mark.slow
def test_a_short_round_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.kills", "--count", "4", "--jobs", "embed", "caption"]
    ran = subprocess.run(
        [*command, "--keep", str(tmp_path)], capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    line = json.loads(ran.stdout)
    assert (line["cases"], line["bad"], sum(line["outcomes"].values())) == (4, 0, 4)
