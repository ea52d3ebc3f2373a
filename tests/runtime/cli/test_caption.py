"""`dasheng-edge caption` on long and live audio."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.audio.read import ReadAudio
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli.requests import questions
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import DecoderError
from dasheng_edge.runtime.languages.language import language_of

RATE = 16000


def caption(*args: str | Path | float, stdin: bytes | None = None) -> Result:
    arguments = ["caption", *(str(arg) for arg in args), "--max-new-tokens", "4", "--threads", "1"]
    return CliRunner().invoke(cli.build_app(), arguments, input=stdin, prog_name="dasheng-edge")


def said(result: Result) -> str:
    """Stderr but that answers were cut, which those of a model with random weights always are."""
    lines = result.stderr.splitlines(keepends=True)
    return "".join(line for line in lines if "the answer was cut at" not in line)


def wav(seconds: float) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * RATE))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype(np.int16).tobytes())
    return file.getvalue()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(5))
    return path


@pytest.fixture
def comfortable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers well about 2 s only."""
    opened = Captioner.open.__func__  # type: ignore[attr-defined]

    def short(kind: type[Captioner], /, *args: object, **options: object) -> Captioner:
        captioner: Captioner = opened(kind, *args, **options)
        changed = captioner.bundle.prompt_facts.model_copy(update={"comfortable_s": 2.0})
        monkeypatch.setattr(type(captioner.bundle), "prompt_facts", changed)
        return captioner

    monkeypatch.setattr(Captioner, "open", classmethod(short))


def test_several_questions_are_answered_beside_each_other(tiny_bundle: Path, clip: Path) -> None:
    done = caption(tiny_bundle, clip, "--ask", "caption=", "--ask", "Why?", "--speech", "en", "--json")
    shown = json.loads(done.stdout)
    assert [*shown["answers"]] == ["caption", "Why?", "speech"]
    alone = [json.loads(caption(tiny_bundle, clip, *words, "--json").stdout) for words in ((), ("--prompt", "Why?"))]
    assert [answer["tokens"] for answer in shown["answers"].values()][:2] == [one["tokens"] for one in alone]
    assert shown["text"] == shown["answers"]["caption"]["text"]
    for words in (("--ask", "a=b", "--ask", "a=c"), ("--ask", "a", "--prompt", "b"), ("--ask", "a", "--stream")):
        assert caption(tiny_bundle, clip, *words).exit_code == 2


@pytest.mark.parametrize("option", ["--speech", "--mux"])
def test_what_is_no_language_is_refused_with_the_nearest(tiny_bundle: Path, clip: Path, option: str) -> None:
    for wrong, near in (("klingon", "expected a tag"), ("Germn", "German"), ("en-", "en"), ("", "expected a tag")):
        done = caption(tiny_bundle, clip, option, wrong)
        assert (done.exit_code, repr(wrong) in done.stderr, near in done.stderr) == (2, True, True)


@pytest.mark.parametrize(
    ("typed", "asked", "tag"),
    [("German", "de", "de"), ("pt_br", "pt", "pt-BR"), ("ZHO-Hant", "zh", "zh-Hant"), ("yue", "yue", "yue")],
)
def test_a_language_of_speech_is_asked_for_by_its_code_and_stated_with_its_script(
    tiny_bundle: Path, clip: Path, typed: str, asked: str, tag: str
) -> None:
    assert questions.Asked(None, None, language_of(typed), None, None).named == {
        "caption": None, "speech": f"Transcribe the speech into text <|{asked}|>",
    }  # fmt: skip
    done = caption(tiny_bundle, clip, "--speech", typed, "--format", "ttml", "--out", "-")
    assert f'xml:lang="{tag}"' in done.stdout


def test_subtitles_on_stdout(tiny_bundle: Path, clip: Path) -> None:
    assert caption(tiny_bundle, clip, "--format", "vtt", "--out", "-").stdout.startswith("WEBVTT\n")
    for words in ((clip, "--format", "vtt"), ("--format", "vtt,srt")):
        assert caption(tiny_bundle, clip, *words, "--out", "-").exit_code == 2


def test_windows_have_their_times(tiny_bundle: Path, clip: Path) -> None:
    done = caption(tiny_bundle, clip, "--window", 2, "--hop", 1.5)
    assert done.exit_code == 0
    starts = [line.split("]")[0] + "]" for line in done.stdout.splitlines()]
    assert starts == ["[0:00-0:02]", "[0:01.5-0:03.5]", "[0:03-0:05]"]
    assert said(done) == ""


def test_a_window_alone_moves_on_by_half(tiny_bundle: Path, clip: Path) -> None:
    done = caption(tiny_bundle, clip, "--window", 4, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["start_s"], one["end_s"]) for one in found] == [(0, 4), (2, 5)]
    assert all(one["audio"] == str(clip) for one in found)
    assert {"text", "timings", "audio_s"} <= found[0].keys()


def test_each_file_is_named_before_its_windows(tiny_bundle: Path, clip: Path) -> None:
    done = caption(tiny_bundle, clip, clip, "--window", 5)
    assert [line.startswith(f"{clip}: ") for line in done.stdout.splitlines()] == [True, True]


@pytest.mark.usefixtures("comfortable")
def test_long_audio_is_cut_and_said_so(tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasheng_edge.runtime.audio import windows

    monkeypatch.setattr(windows, "WINDOW_S", 3.0)
    monkeypatch.setattr(windows, "HOP_S", 1.5)
    for source, stdin in ((clip, None), ("-", wav(5))):
        done = caption(tiny_bundle, source, stdin=stdin)
        assert done.exit_code == 0
        assert f"note: {source} is longer than 2 s, beyond which this model's answers get worse" in done.stderr
        assert "it is captioned in windows of 3 s every 1.5 s (see --window)" in done.stderr
        assert done.stdout.splitlines()[0].startswith("[0:00-")


@pytest.mark.usefixtures("comfortable")
def test_short_audio_is_captioned_as_a_whole(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "short.wav").write_bytes(wav(2))
    done = caption(tiny_bundle, tmp_path / "short.wav", "--json")
    assert said(done) == ""
    (found,) = map(json.loads, done.stdout.splitlines())
    assert "start_s" not in found
    assert found["timings"]["audio_decode_ms"] > 0


def test_live_audio_through_a_pipe(tiny_bundle: Path, clip: Path) -> None:
    whole = caption(tiny_bundle, clip)
    live = caption(tiny_bundle, "-", "--live", stdin=clip.read_bytes())
    assert live.exit_code == 0
    assert live.stdout == whole.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", 3, "--hop", 4), "expected a hop of at least 0.5 s"),
        (("--window", 0.1), "expected a hop of at least 0.5 s"),
        (("--hop", 2), "give --window too"),
        (("--window", 30, "--hop", 40), "no longer than the window"),
        (("--window", "nan"), "expected a hop"),
        (("--live", "--window", 3), "--live works on one clip"),
        (("--batch", 2, "--live"), "--batch works on several clips at a time"),
        (("--batch", 2, "--stream"), "--batch works on several clips at a time"),
        (("--batch", 257), "less than or equal to 256"),
    ],
)
def test_wrong_usage(tiny_bundle: Path, clip: Path, options: tuple[object, ...], message: str) -> None:
    done = caption(tiny_bundle, clip, *options)  # type: ignore[arg-type]
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batches_say_the_same_in_the_same_order(tiny_bundle: Path, tmp_path: Path, batch: int) -> None:
    files = []
    for seconds in (1, 3, 2):
        files.append(tmp_path / f"{seconds}.wav")
        files[-1].write_bytes(wav(seconds))
    files[1:1] = [tmp_path / "none.wav"]
    alone, together = caption(tiny_bundle, *files, "--batch", 1), caption(tiny_bundle, *files, "--batch", batch)
    assert caption(tiny_bundle, *files).stdout == alone.stdout
    assert (together.stdout, together.stderr) == (alone.stdout, alone.stderr)
    assert alone.exit_code == together.exit_code == 1
    assert len(alone.stdout.splitlines()) == 3


def test_windows_in_batches(tiny_bundle: Path, clip: Path) -> None:
    windows = (clip, "--window", 2, "--hop", 1)
    alone = caption(tiny_bundle, *windows, "--batch", 1).stdout
    assert len(alone.splitlines()) == 4
    assert caption(tiny_bundle, *windows, "--batch", 3).stdout == alone
    assert caption(tiny_bundle, *windows).stdout == alone


@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_ends_with_its_first_window_that_fails(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    rows = ClipAudio.groups

    def fails(self: ClipAudio) -> Any:
        audio = self.source
        if isinstance(audio, ReadAudio) and len(audio.samples) == 2 * RATE:
            raise DecoderError("no")
        return rows(self)

    monkeypatch.setattr(ClipAudio, "groups", fails)
    short = clip.with_name("short.wav")
    short.write_bytes(wav(1))
    done = caption(tiny_bundle, clip, short, "--window", 2, "--hop", 1, "--batch", batch)
    assert done.exit_code == 1
    assert done.stderr.count("error: no\n") == 1
    assert [line.startswith(f"{short}: ") for line in done.stdout.splitlines()] == [True]


@pytest.mark.parametrize(
    ("files", "options", "mapped"),
    [
        (1, (), True),
        (10, (), True),
        (9, ("--batch", 1), True),
        (10, ("--batch", 1), False),
        (1, ("--batch", 1, "--window", 3), False),
        (10, ("--stream",), False),
        (1, ("--live",), True),
    ],
)
def test_weights_are_repacked_for_many_clips_one_by_one(
    tiny_bundle: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    options: tuple[str | float, ...],
    mapped: bool,
) -> None:
    told = []

    def refuse(*_: object, **given: object) -> None:
        told.append(given["options"])
        raise DecoderError("enough")

    monkeypatch.setattr(Captioner, "open", refuse)
    caption(tiny_bundle, *[clip] * files, *options)
    few = files < 10 and "--window" not in options
    assert told == [EngineOptions(weights="mapped" if mapped else None, warm_up=not few).changed(threads=1)]


def test_a_file_that_breaks_costs_its_windows_only(tiny_bundle: Path, clip: Path) -> None:
    done = caption(tiny_bundle, "nowhere.wav", clip, "--window", 5)
    assert done.exit_code == 1
    assert "error: " in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("--window", "2"), ("--stream",), ("--ask", "Why?"), ("--live",)])
def test_little_memory_gives_the_same_captions(words: tuple[str, ...], tiny_bundle: Path, clip: Path) -> None:
    clips = [clip] if "--live" in words else [clip, clip]
    ways = [caption(tiny_bundle, *clips, *words, *low) for low in ((), ("--low-memory",))]
    assert ways[0].stdout == ways[1].stdout
    assert [way.exit_code for way in ways] == [0, 0]


def test_little_memory_is_for_the_cpu(tiny_bundle: Path, clip: Path) -> None:
    refused = caption(tiny_bundle, clip, "--low-memory", "--device", "cuda")
    assert refused.exit_code == 1
    assert "is for the CPU" in refused.stderr
