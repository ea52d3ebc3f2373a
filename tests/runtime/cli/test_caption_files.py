"""`dasheng-edge caption` on files: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime import parts
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.engine.request import RunningRequest
from dasheng_edge.runtime.errors import DecoderError, DeviceError
from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.machine.placing import ALL
from dasheng_edge.runtime.names import printable
from dasheng_edge.runtime.text.sequences import Sequences
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def caption(*args: str | Path, stdin: bytes | None = None) -> Result:
    return run("caption", *args, "--threads", "1", "--max-new-tokens", "6", stdin=stdin)


def said(result: Result) -> str:
    """Stderr but that answers were cut, which those of a model with random weights always are."""
    lines = result.stderr.splitlines(keepends=True)
    return "".join(line for line in lines if "the answer was cut at" not in line)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1, 16_000), WAV)


@pytest.fixture
def text(captioner: Captioner, clip: Path) -> str:
    return captioner.caption(clip, max_new_tokens=6).text


@pytest.fixture
def shown(text: str) -> str:
    """The same as a terminal may show it: this model writes control characters."""
    return printable(text, keep="\n\t")


def test_one_file_prints_the_caption_alone(tiny_bundle: Path, clip: Path, shown: str) -> None:
    result = caption(tiny_bundle, clip)
    assert (result.exit_code, result.stdout, said(result)) == (0, shown + "\n", "")
    cut = f"warning: {clip}: the answer was cut at 6 tokens; allow more (--max-new-tokens) to get all of it\n"
    assert result.stderr == cut
    assert caption(tiny_bundle, clip, "--stream").stdout == shown + "\n"


def test_stdin(tiny_bundle: Path, clip: Path, shown: str) -> None:
    assert caption(tiny_bundle, "-", stdin=clip.read_bytes()).stdout == shown + "\n"
    empty = caption(tiny_bundle, "-", stdin=b"")
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert "is empty" in empty.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_good_files_are_captioned_beside_bad_ones(
    tiny_bundle: Path, clip: Path, tmp_path: Path, text: str, shown: str, *, stream: bool
) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello world\n" * 99)
    (tmp_path / "folder").mkdir()
    files = [tmp_path / "none.wav", clip, tmp_path / "empty.wav", tmp_path / "folder", tmp_path / "text.wav", clip]
    result = caption(tiny_bundle, *files, *(["--stream"] if stream else []))
    assert result.exit_code == 1
    line = f"{clip}: {shown if stream else printable(' '.join(text.split()))}\n"
    assert result.stdout == 2 * line
    errors = said(result).splitlines()
    assert len(errors) == 4
    for error, path in zip(errors, [files[0], files[2], files[3], files[4]], strict=True):
        assert error.startswith("error: ")
        assert str(path) in error


def test_json_lines(tiny_bundle: Path, clip: Path, tmp_path: Path, text: str) -> None:
    result = caption(tiny_bundle, clip, tmp_path / "none.wav", "--json")
    assert result.exit_code == 1
    good, bad = map(json.loads, result.stdout.splitlines())
    assert (good["audio"], good["text"], good["finish_reason"], good["audio_s"]) == (str(clip), text, "length", 1.0)
    assert good["timings"]["total_ms"] > 0
    assert bad == {
        "audio": str(tmp_path / "none.wav"),
        "error": f"{tmp_path / 'none.wav'} does not exist; expected an audio file",
        "error_type": "AudioNotFoundError",
    }


def test_options_reach_the_model(tiny_bundle: Path, clip: Path, captioner: Captioner) -> None:
    want = captioner.caption(clip, "Why?", system="Be brief.", max_new_tokens=6)
    result = caption(tiny_bundle, clip, "--prompt", "Why?", "--system", "Be brief.", "--json")
    assert tuple(json.loads(result.stdout)["tokens"]) == want.tokens
    hot = [json.loads(caption(tiny_bundle, clip, "--json", "--temperature", "2", "--seed", s).stdout) for s in "112"]
    assert hot[0]["tokens"] == hot[1]["tokens"] != hot[2]["tokens"]


def test_warnings_go_to_stderr(tiny_bundle: Path, clip: Path, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningRequest, "_warnings", lambda *_: ("it is long",))
    result = caption(tiny_bundle, clip)
    assert (result.exit_code, result.stdout) == (0, shown + "\n")
    assert result.stderr == f"warning: {clip}: it is long\n"


@pytest.mark.parametrize("error", [DecoderError("llama.cpp failed"), DeviceError("out of memory")])
def test_a_part_that_fails_costs_one_file(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def rows(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ClipAudio, "rows", rows)
    result = caption(tiny_bundle, clip, clip)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == 2 * f"error: {error}\n"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError("\x1bframes"), MemoryError(), RecursionError(), OSError(5, "I/O")])
def test_what_nobody_foresaw_costs_one_file(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, batch: int
) -> None:
    bad, rows = clip.with_name("bad\n\x1b[2J.wav"), ClipAudio.rows
    write_audio(bad, sine(440, 2, 16_000), WAV)

    def hostile(self: ClipAudio) -> Any:
        rows_of_clip = rows(self)
        if self.samples == 32_000:
            raise error
        return rows_of_clip

    monkeypatch.setattr(ClipAudio, "rows", hostile)
    result = caption(tiny_bundle, bad, clip, "--json", "--batch", str(batch))
    assert result.exit_code == 1
    failed, fine = map(json.loads, result.stdout.splitlines())
    kind = "MemoryShortError" if isinstance(error, MemoryError) else "ClipFailedError"
    assert (failed["audio"], failed["error_type"], fine["audio"]) == (str(bad), kind, str(clip))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert r"bad\n\x1b[2J.wav" in errors[0]
    assert "\x1b" not in result.output


def test_a_prompt_that_no_clip_can_be_asked_ends_the_command(tiny_bundle: Path, clip: Path) -> None:
    result = caption(tiny_bundle, clip, clip, "--prompt", "\udcff")
    assert (result.exit_code, result.stdout, result.stderr.count("error: ")) == (1, "", 1)


def test_an_interrupted_stream_ends_its_line(tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(self: Sequences, *_: object) -> object:
        yield from self._decoder.tokenize("a b")
        raise KeyboardInterrupt

    monkeypatch.setattr(Sequences, "tokens", tokens)
    result = caption(tiny_bundle, clip, "--stream")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "a b\n", "interrupted\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stream", "--json"], "--json whole captions; choose one"),
        (["--stream", "--format", "JSON"], "--format json whole captions; choose one"),
        (["--format", "text", "--json"], "--format text is given too; choose one"),
        (["--batch", "0"], "'--batch': got 0, expected greater than or equal to 1"),
        (["--top-p", "2"], "'--top-p': got 2"),
        (["--window", "x"], "'--window': got x, expected a valid number\n"),
        (["-", "-"], "only once"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--threads", "0"], "threads"),
        (["--device", "tpu"], "device"),
        (["--top-p", "2"], "top-p"),
        (["--temperature", "hot"], "temperature"),
        (["--surprise"], "surprise"),
    ],
)
def test_wrong_usage(tmp_path: Path, args: list[str], message: str) -> None:
    result = run("caption", tmp_path, "x.wav", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--top-p", "0"), ("--repetition-penalty", "0")])
def test_sampling_options_are_checked(tiny_bundle: Path, clip: Path, option: str, value: str) -> None:
    result = caption(tiny_bundle, clip, option, value)
    assert result.exit_code == 2
    assert f"'{option}': got 0.0, expected greater than 0\n" in result.stderr


def test_audio_at_an_address_costs_one_file(tiny_bundle: Path, clip: Path) -> None:
    result = caption(tiny_bundle, "https://a.test/x.wav", clip)
    assert (result.exit_code, result.stdout.count("\n"), said(result).count("\n")) == (1, 1, 1)
    assert "https://a.test/x.wav is an address" in result.stderr


def test_the_device_that_is_chosen_is_said(tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "choose_placement", lambda *_: (ON_CPU, "there is no GPU"))
    result = caption(tiny_bundle, clip, "--device", "auto")
    assert (result.exit_code, said(result)) == (0, "device: cpu (there is no GPU)\n")
    assert said(caption(tiny_bundle, clip, "--device", "cpu")) == ""


def test_a_device_that_auto_chose_and_that_fails_is_not_replaced(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "choose_placement", lambda *_: (ALL, "it was there a moment ago"))
    result = caption(tiny_bundle, clip, "--device", "auto")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: device 'cuda' needs ONNX Runtime's CUDAExecutionProvider" in result.stderr


def test_a_cut_file_is_captioned_with_a_warning_and_refused_if_that_is_asked_for(
    tiny_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.wav"
    cut.write_bytes(clip.read_bytes()[:-8000])
    for live in ((), ("--live",)):
        result = caption(tiny_bundle, cut, *live)
        assert result.exit_code == 0
        assert f"warning: {cut}: damaged: it breaks off at 0.75 s" in result.stderr
        result = caption(tiny_bundle, cut, clip, "--strict", "--json", *live)
        assert result.exit_code == 1
        failed, fine = map(json.loads, result.stdout.splitlines())
        assert (failed["error_type"], fine["audio"]) == ("AudioDecodeError", str(clip))


def test_a_track_that_is_not_there_costs_one_line(tiny_bundle: Path, clip: Path) -> None:
    assert caption(tiny_bundle, clip, "--track", "1").exit_code == 0
    for track in ("2", "deu"):
        result = caption(tiny_bundle, clip, "--track", track)
        assert result.exit_code == 1
        assert "has no audio track" in result.stderr
