"""Manifests as NeMo and Lhotse write them, beside ours, which stay strict."""

from __future__ import annotations

import gzip
import json
import wave
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.clips.clips import MAX_MANIFEST_BYTES, Clip, find_clips
from dasheng_edge.runtime.errors import ClipsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(32_000))
    return tmp_path


def manifest(folder: Path, *rows: object, name: str = "clips.jsonl") -> Path:
    content = "\n".join(map(json.dumps, rows)).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    return folder / name


# Keys of NeMo's manifests by task: Canary, classification, diarization, speech language models, tarred data.
NEMO: list[dict[str, Any]] = [
    {"source_lang": "en", "target_lang": "de", "taskname": "ast", "pnc": "yes", "answer": "Hallo"},
    {"lang": "en", "pred_text": "beep", "wer": 0.0, "orig_sr": 44_100, "speaker": 7, "score": None},
    {"label": "dog", "command": "bark", "target": 3},
    {"num_speakers": 2, "rttm_filepath": "x.rttm", "uem_filepath": None, "ctm_filepath": None},
    {"context": "What is it?", "answer": "a dog", "question": "?", "conversations": [{"from": "user"}]},
    {"shard_id": 0, "itn": "no", "timestamp": "no", "diarize": "no", "decodercontext": "", "emotion": "<|emo|>"},
]


@pytest.mark.parametrize("more", NEMO)
@pytest.mark.parametrize("duration", [1.0, 1, -1, -1.0, 0, None])
def test_a_line_of_nemo_is_taken(folder: Path, more: dict[str, Any], duration: float | None) -> None:
    row = {"audio_filepath": "a.wav", "duration": duration, "text": "beep", "offset": 0.25, "id": 17, **more}
    known = 1.0 if duration == 1 else None
    assert find_clips(manifest(folder, row)).clips == (Clip("17", folder / "a.wav", 0.25, known, references=("beep",)),)


@pytest.mark.parametrize("text", ["-", "", " ", None])
def test_a_text_of_nemo_that_is_not_known_is_no_reference(folder: Path, text: str | None) -> None:
    (clip,) = find_clips(manifest(folder, {"audio_filepath": "a.wav", "text": text})).clips
    assert clip.references == ()


def cut(**changes: Any) -> dict[str, Any]:
    """As lhotse 1.31 writes a MonoCut."""
    recording = {
        "id": "rec", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "sampling_rate": 16_000,
        "num_samples": 16_000, "duration": 1.0, "channel_ids": [0],
    }  # fmt: skip
    supervision = {
        "id": "s1", "recording_id": "rec", "start": 0.0, "duration": 0.5, "channel": 0, "text": "one", "language": "en",
        "speaker": "x", "alignment": {"word": [["one", 0.0, 0.5, None]]},
    }  # fmt: skip
    spoken = [supervision, {**supervision, "text": "two"}]
    base = {"id": "c", "start": 0.25, "duration": 0.5, "channel": 0, "supervisions": spoken, "recording": recording}
    return {**base, "custom": {"any": 1}, "features": {"type": "fbank"}, "type": "MonoCut", **changes}


def recorded(**changes: Any) -> dict[str, Any]:
    return cut(recording={**cut()["recording"], **changes})


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz", "CUTS.JSONL.GZ"])
def test_cuts_of_lhotse_are_taken(folder: Path, name: str) -> None:
    rows = [cut(), cut(id="d", start=0, supervisions=[]), cut(id="e", supervisions=None, type="MonoCut")]
    assert find_clips(manifest(folder, *rows, name=name)).clips == (
        Clip("c", folder / "a.wav", 0.25, 0.5, references=("one two",)),
        Clip("d", folder / "a.wav", 0.0, 0.5),
        Clip("e", folder / "a.wav", 0.25, 0.5),
    )


def test_recordings_of_lhotse_are_taken_whole(folder: Path) -> None:
    assert find_clips(manifest(folder, cut()["recording"])).clips == (Clip("rec", folder / "a.wav"),)


def test_resampling_is_done_here_too(folder: Path) -> None:
    assert find_clips(manifest(folder, recorded(transforms=[{"name": "Resample", "kwargs": {}}]))).clips


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (cut(type="MultiCut", channel=[0, 1]), "MultiCut, which takes several channels"),
        (cut(channel=[0, 1]), "takes several channels"),
        ({"type": "MixedCut", "id": "m", "tracks": [{"cut": cut()}]}, "MixedCut without a recording"),
        ({"type": "PaddingCut", "id": "p", "duration": 1.0}, "PaddingCut without a recording"),
        ({**{key: value for key, value in cut().items() if key != "recording"}}, "MonoCut without a recording"),
        (cut()["supervisions"][0], "a supervision without a recording"),
        (recorded(sources=[]), "has not one source"),
        (recorded(sources=None), "has not one source"),
        (recorded(sources=cut()["recording"]["sources"] * 2), "has not one source"),
        (recorded(sources=[{"type": "url", "source": "https://a.test/x.wav"}]), "of type 'url', expected 'file'"),
        (recorded(sources=[{"type": "command", "source": "rm -r x"}]), "of type 'command', expected 'file'"),
        (recorded(sources=[{"type": "file", "channels": [0, 1], "source": "a.wav"}]), "has 2 channels"),
        (recorded(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), r"Lhotse changes .* \(Speed\)"),
        (cut(start=-1), "offset: .*greater than or equal to 0"),
        (cut(start="x"), "offset: .*valid number"),
        (recorded(sources=[{"type": "file", "source": None}]), "audio: .*valid string"),
        ({"audio_filepath": ["a.wav", "b.wav"]}, "lists 2 files, one for each channel"),
        (cut(supervisions=5), "of another type than NeMo or Lhotse write"),
        (cut(supervisions=[{"text": 5}]), "of another type"),
        (recorded(sources=[{"type": "file", "channels": 5, "source": "a.wav"}]), "of another type"),
        (recorded(transforms=5), "of another type"),
        (cut(start=1e300), "offset: .*less than or equal to"),
        ({"audio_filepath": 5}, "audio: .*valid string"),
        ({"audio_filepath": "a.wav", "duration": "x"}, "duration: .*valid number"),
        # Ours stay strict.
        ({"audio": "a.wav", "taskname": "asr"}, "taskname: Extra inputs"),
        ({"audio": "a.wav", "audio_filepath": "a.wav"}, "audio_filepath: Extra inputs"),
        ({"audio": "a.wav", "recording": {}}, "recording: Extra inputs"),
        ({"file": "a.wav", "recording_id": "x"}, "recording_id: Extra inputs"),
    ],
)
def test_what_cannot_be_taken_is_said_in_one_line(folder: Path, row: object, said: str) -> None:
    good, wrong = find_clips(manifest(folder, {"audio": "a.wav"}, row)).clips
    assert good.error is None
    with pytest.raises(ClipsError, match=rf"line 2: .*{said}") as caught:
        wrong.read(16_000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"audio_filepath": ' * 3_000, '{"recording": {"sources": [1]}}', "1"])
def test_strange_lines_are_named(folder: Path, line: str) -> None:
    (folder / "x.jsonl").write_text(line)
    with pytest.raises(ClipsError, match="line 1: "):
        find_clips(folder / "x.jsonl")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 99_999, mtime=0)[:40], b""])
def test_packed_manifests_that_are_damaged(folder: Path, content: bytes) -> None:
    (folder / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(ClipsError):
        find_clips(folder / "x.jsonl.gz")


def test_a_manifest_that_unpacks_to_more_than_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasheng_edge.runtime.clips.clips.MAX_MANIFEST_BYTES", 1 << 20)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(bytes((1 << 20) + 1)))
    with pytest.raises(ClipsError, match="holds more than 1 MiB; split it"):
        find_clips(folder / "x.jsonl.gz")
    assert MAX_MANIFEST_BYTES > 1 << 20
