from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli import listen
from dasheng_edge.runtime.live import devices
from dasheng_edge.runtime.live.listening import Listening
from dasheng_edge.runtime.subtitles.lint import lint
from tests.runtime.live.test_ear import RATE, Samples, sounds
from tests.runtime.live.test_log import cues_of
from tests.runtime.live.test_microphone import FakeSound, RecordingClock


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.build_app(), ["listen", *map(str, args)], prog_name="dasheng-edge")


def write_wav(path: Path, samples: Samples) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def two_sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sounds") / "two.wav", sounds(14, (2, 3), (6, 8)))


def test_a_file_is_heard_as_fast_as_it_can_be(tiny_bundle: Path, two_sounds: Path, tmp_path: Path) -> None:
    srt, jsonl = tmp_path / "a.srt", tmp_path / "a.jsonl"
    options = ("--max-new-tokens", "4", "--threads", "1")
    plain = run(tiny_bundle, "--from", two_sounds, *options, "--srt", srt, "--jsonl", jsonl)
    assert plain.exit_code == 0, plain.stderr
    assert [line[:8] for line in plain.stdout.splitlines()] == ["00:00:01", "00:00:05"]
    assert "2 captions" in plain.stderr.splitlines()[-1]
    assert "\x1b" not in plain.output
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [row["start_s"] for row in rows] == pytest.approx([1.6, 5.6], abs=0.21)
    assert all(row["end_s"] > row["start_s"] and len(row["tokens"]) <= 4 and "clock" not in row for row in rows)
    assert srt.read_text().startswith("1\n00:00:0")
    again = run(tiny_bundle, "--from", two_sounds, *options, "--json", "--quiet")
    assert [json.loads(line)["tokens"] for line in again.stdout.splitlines()] == [row["tokens"] for row in rows]
    assert not again.stderr
    refused = run(tiny_bundle, "--from", two_sounds, "--srt", srt)
    assert refused.exit_code == 1
    assert "pass --overwrite or choose another --srt" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--realtime"], "name a file"),
        (["--from", "a.wav", "--input", "mic"], "choose one"),
        (["--from", "a.wav", "--hop", "20"], "moves on by 20 s"),
        (["--from", "a.wav", "--window", "nan"], "moves on by"),
        (["--from", "a.wav", "--srt", "./a.wav", "--overwrite"], "--srt names the file that is heard"),
        (["--from", "a.wav", "--jsonl", "x/../a.wav", "--overwrite"], "--jsonl names the file that is heard"),
        (["--from", "a.wav", "--jsonl", "b", "--srt", "b"], "name one file"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(tiny_bundle: Path, options: list[str], message: str) -> None:
    result = run(tiny_bundle, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_what_was_listened_to_is_as_long_as_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    silence = write_wav(tmp_path / "silence.wav", np.zeros(RATE * 2 - 10, np.float32))
    assert "listened for 00:00:02, with sound 0%" in run(tiny_bundle, "--from", silence).stderr


def test_a_file_in_the_wrong_place_is_told_where_it_goes(
    tiny_bundle: Path, two_sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for words in ([two_sounds], [tiny_bundle, two_sounds]):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"to listen to it: --from {two_sounds}" in result.stderr.replace("to a file", "to it")
    assert "cannot open bundle" in run(tmp_path / "none").stderr
    assert "cannot open bundle" in run(tmp_path / "none", "--from", tmp_path / "none.wav").stderr
    assert "needs sounddevice" in run(tiny_bundle).stderr
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.wav", "-h.wav", "--quiet.wav"):
        Path(name).touch()
        result = CliRunner().invoke(cli.build_app(), ["caption", str(tiny_bundle), name])
        assert result.exit_code == 2
        assert f"is written ./{name})" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"no audio at all"])
def test_a_file_that_is_none_is_one_line(tiny_bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    result = run(
        tiny_bundle, "--from", tmp_path / "a.wav", "--srt", tmp_path / "a.srt", "--jsonl", tmp_path / "a.jsonl"
    )
    assert result.exit_code == 1
    assert re.fullmatch("error: .*a.wav.*\n", result.stderr)
    assert not list(tmp_path.glob("a.srt")) + list(tmp_path.glob("a.jsonl"))


def test_what_is_heard_is_not_written_over_by_a_link(tiny_bundle: Path, two_sounds: Path, tmp_path: Path) -> None:
    for link in (tmp_path / "soft.srt", tmp_path / "hard.srt"):
        link.symlink_to(two_sounds) if link.stem == "soft" else link.hardlink_to(two_sounds)
        before = two_sounds.read_bytes()
        assert run(tiny_bundle, "--from", two_sounds, "--srt", link, "--overwrite").exit_code == 2
        assert two_sounds.read_bytes() == before


def test_devices_are_listed_without_a_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CONFIG", "off")
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(RecordingClock()).module())
    monkeypatch.setattr(devices, "_monitors", list)
    result = run("--list-devices")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"0 .*USB Mic .*2 .*48000 .*default", result.stdout)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("--list-devices")
    assert result.exit_code == 1
    assert "needs sounddevice" in result.stderr


def test_a_microphone_that_is_not_there_is_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = FakeSound(RecordingClock(), names=[])
    monkeypatch.setitem(sys.modules, "sounddevice", sound.module())
    monkeypatch.setattr(devices, "_monitors", list)
    result = run(tiny_bundle)
    assert result.exit_code == 1
    assert "there is no microphone; plug one in" in result.stderr


def test_a_prompt_that_is_wrong_is_told_before_there_is_a_sound(tiny_bundle: Path, tmp_path: Path) -> None:
    silence = write_wav(tmp_path / "silence.wav", np.zeros(RATE, np.float32))
    result = run(tiny_bundle, "--from", silence, "--prompt", "\udcff")
    assert result.exit_code == 1
    assert "is not valid Unicode" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_whole_files(tiny_bundle: Path, tmp_path: Path, number: int) -> None:
    clip = write_wav(tmp_path / "long.wav", np.tile(sounds(2, (0.5, 1)), 60))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "dasheng_edge",
        "listen",
        tiny_bundle,
        "--from",
        clip,
        "--realtime",
    ]
    srt, jsonl = tmp_path / "a.srt", tmp_path / "a.jsonl"
    command += ["--srt", srt, "--jsonl", jsonl, "--max-new-tokens", "4", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 0, errors
        assert "caption" in errors.splitlines()[-1]
    assert all(json.loads(line) for line in jsonl.read_text().splitlines())
    assert jsonl.read_text().endswith("}\n")
    assert not lint(cues_of(srt.read_text()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What stands on its lines, after returns and blanks."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            lines.append(cells.rstrip())
        return lines


@pytest.mark.parametrize("columns", [20, 40, 60, 120])
def test_the_level_fits_the_terminal_and_makes_room(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    meter = listen._Meter(shown=True)

    def draw(level_db: float, captions: int) -> None:
        ear = SimpleNamespace(level_db=level_db, floor_db=-60.0, hears=level_db > -50)
        tally = SimpleNamespace(captions=captions, repeats=2, dropped=1)
        meter.draw(cast(Listening, SimpleNamespace(ear=ear, tally=tally, seconds=3725)))

    draw(-12.3, 12)
    draw(-80.0, 13)
    (line,) = terminal.screen()
    assert len(line) + len("^C") < columns
    assert line.startswith("01:02:05 [")
    if columns >= 60:
        assert line.endswith("-80 dB quiet  11 captions, 1 dropped")
        assert "#" not in line
    elif columns >= 40:
        assert line.endswith("-80 dB quiet")  # what there is no room for is left out, not cut
    meter.say("error: no")
    assert terminal.screen() == ["error: no", ""]
    assert "\x1b" not in terminal.getvalue()
    draw(-12.3, 14)
    monkeypatch.setenv("COLUMNS", str(columns // 2))  # the window is made narrower
    written = len(terminal.getvalue())
    meter.clear()
    assert len(terminal.getvalue()[written:].strip("\r")) < columns // 2


def test_there_is_no_level_where_there_is_no_terminal_or_captions_are_piped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = listen._Meter(shown=True)
    meter.draw(cast(Listening, None))
    meter.say("gone")
    assert capsys.readouterr().err == "gone\n"
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "w") as pipe:  # noqa: PTH123  # handles
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", Terminal())
        listen._Meter(shown=True).draw(cast(Listening, None))
