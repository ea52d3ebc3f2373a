"""What others named never steers the terminal of who looks at it: bundles, files, options, answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.text.decoder import Decoder
from tests.fixtures.audio_files import Format, sine, write_audio

EVIL = "\x1b]0;x\x07\x9b2J\u202e\u2028evil"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], prog_name="dasheng-edge")
    assert not STEERING.search(result.output)
    assert "evil" in result.output
    return result


@pytest.fixture
def evil_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / f"{EVIL}-bundle"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["name"] = EVIL
    manifest["prompt"]["notes"] = [f"{EVIL}\nfiles  decoder.gguf: 0 MB"]
    manifest["provenance"]["checkpoint"] = EVIL
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_bundle(evil_bundle: Path, more: tuple[str, ...]) -> None:
    assert run("info", evil_bundle, *more).exit_code == 0
    assert run("verify", evil_bundle, *more).exit_code == 0
    assert run("info", f"{evil_bundle}-gone", *more).exit_code == 1


@pytest.mark.parametrize("more", [(), ("--json",), ("--stream",), ("--batch", "2"), ("--window", "1")])
def test_files_and_what_is_written_about_them(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    clip = write_audio(tmp_path / f"{EVIL}\n.wav", sine(440, 1.5, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))
    monkeypatch.setattr(Decoder, "piece", lambda *_: EVIL.encode())
    result = run("caption", tiny_bundle, clip, f"{clip}-gone", "--max-new-tokens", "3", *more)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1
    if not more:
        assert len(result.stdout.splitlines()) == 1
    out = tmp_path / f"{EVIL}.npz"
    embedded = run("embed", tiny_bundle, clip, f"{clip}-gone", "--out", out, *({"--json"} & {*more}))
    assert embedded.exit_code == 1
    assert out.is_file()


@pytest.mark.parametrize("args", [("info", "x", f"--{EVIL}"), ("caption", "x", "y", "--top-p", EVIL), (EVIL,)])
def test_wrong_usage(args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2
