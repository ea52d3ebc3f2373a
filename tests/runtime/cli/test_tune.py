"""`dasheng-edge tune`: what it prints, and what becomes of what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.tuned import tuned_for
from tests.fixtures.fake_machine import FakeMachine, Others, machine

__all__ = ["machine"]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["tune", *map(str, args)], prog_name="dasheng-edge")


def test_the_command(tiny_bundle: Path, machine: FakeMachine) -> None:
    result = run(tiny_bundle)
    assert result.exit_code == 0
    for text in ("encoder", "prefill", "decode", "keys and values", "default", "+50.0%", "yes", "stored in"):
        assert text in result.stdout
    assert "encoder, 4 threads\n" in result.stderr
    machine_readable = json.loads(run(tiny_bundle, "--json").stdout)
    (tuned,) = machine_readable["tuned"]
    assert tuned["choice"]["encoder_threads"] == 8
    assert machine_readable["rows"][0]["default"] is True


def test_forget(tiny_bundle: Path, machine: FakeMachine) -> None:
    run(tiny_bundle)
    assert tuned_for(Bundle.open(tiny_bundle)) is not None
    looks = len(machine.looks)
    assert run(tiny_bundle, "--forget").stdout == f"{tiny_bundle}: forgotten\n"
    assert tuned_for(Bundle.open(tiny_bundle)) is None
    assert run(tiny_bundle, "--forget").stdout == f"{tiny_bundle}: nothing was stored\n"
    assert json.loads(run(tiny_bundle, "--forget", "--json").stdout) == {"forgotten": {str(tiny_bundle): False}}
    assert len(machine.looks) == looks


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    for options in ([], ["--forget"]):
        result = run(tmp_path / "none", *options)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: cannot open bundle")


def test_what_is_not_stored_is_a_failure(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Others(monkeypatch, 0.45)
    result = run(tiny_bundle)
    assert result.exit_code == 1
    assert "NOT STORED" in result.stdout
    assert "45% of the machine" in result.stdout
    assert "stored in" not in result.stdout
