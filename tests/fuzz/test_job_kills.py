"""Folder jobs that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.places import REPOSITORY

from .job_kills import outputs


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_few_kills_change_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz.job_kills", "--clips", "12", "--broken", "2", "--kills", "3"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads(ran.stdout)["faults"] == []


def test_half_an_output_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[{")
    with pytest.raises(ValueError, match="Expecting"):
        outputs(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(AssertionError, match="is empty"):
        outputs(tmp_path)
