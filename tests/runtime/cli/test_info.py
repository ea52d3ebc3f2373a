"""`dasheng-edge info`, and text that Rich would take for markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.bundle.manifest import MANIFEST, Manifest, read_manifest
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli.info import info
from dasheng_edge.runtime.verify import Seam, VerifyReport


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def test_info(tiny_bundle: Path) -> None:
    result = run("info", tiny_bundle)
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("midashenglm", "decoder.gguf", "precision: F32", "Write an audio caption", "total"):
        assert text in result.stdout
    machine = json.loads(run("info", tiny_bundle, "--json").stdout)
    assert Manifest.model_validate(machine) == read_manifest(tiny_bundle)
    stated = json.loads((tiny_bundle / MANIFEST).read_text())
    assert machine.pop("front_end").items() >= stated.pop("front_end").items()  # an older one states less
    assert machine == {"program": None, **stated}


def test_brackets_are_not_markup(bundle_copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["name"] = "[/x]"
    manifest["prompt"]["prompt"] = "Say [red]it[/y]"
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    folder = bundle_copy.rename(tmp_path / "[z]")
    shown = run("info", folder)
    assert shown.exit_code == 0
    assert "[/x] (midashenglm)" in shown.stdout
    assert "Say [red]it[/y]" in shown.stdout
    report = VerifyReport("[/x]", (Seam("[/clip]", "patches", 0.0, 1.0, "relative"),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dasheng_edge.runtime.verify.verify_bundle", lambda *_, **__: report)
        verified = run("verify", folder)
    assert verified.exit_code == 0
    assert "verify [/x]" in verified.stdout
    assert "[/clip]" in verified.stdout


def test_info_has_a_line_for_each_note(bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["prompt"] |= {"notes": ["system turn: none, as told", "sampling: greedy"], "special_tokens": {}}
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    shown = [line.strip("\u2502 ") for line in run("info", bundle_copy).stdout.splitlines()]
    assert "note: system turn: none, as told" in shown
    assert "note: sampling: greedy" in shown
    assert not any(line.startswith("special_tokens") for line in shown)
    (projector,) = [line for line in shown if line.startswith("projector ")]
    assert projector.endswith(f"parameters: {manifest['projector_parameters']:,}")


def test_a_hash_is_not_broken_at_80_columns(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["provenance"]["checkpoint_sha256"] = digest = "5e" * 32
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    info(bundle_copy)
    shown = capsys.readouterr().out
    assert digest in shown
    assert {len(line) for line in shown.splitlines() if line.startswith("│")} == {80}
