"""What is named becomes inputs: files, folders, patterns, lists and manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.errors import AudioEmptyError, ClipsError
from dasheng_edge.runtime.jobs.inputs import Input, Inputs, read_list
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("rec/b.wav", "rec/a.MP3", "rec/day 1/a.wav", "rec/day 1/c.flac", "rec/notes.txt", "rec/.hidden.wav",
                 "rec/.cache/x.wav", "other/a.wav", "odd[1].wav", "x.dat"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(inputs: Inputs) -> list[tuple[str, str]]:
    return [(Path(one.audio).as_posix(), one.output) for one in inputs]


def test_folders_in_their_order(here: Path) -> None:
    found = [("rec/a.MP3", "a"), ("rec/b.wav", "b"), ("rec/day 1/a.wav", "day 1/a"), ("rec/day 1/c.flac", "day 1/c")]
    inputs = Inputs(["rec"])
    assert named(inputs) == named(inputs) == found
    assert inputs.measured() == (4, 20)
    assert named(Inputs(["rec"], include=["*.WAV"])) == [found[1], found[2]]
    assert named(Inputs(["rec"], include=["day*/*"], exclude=["*.flac"])) == [found[2]]
    assert named(Inputs(["rec"], include=["*.txt"])) == [("rec/notes.txt", "notes.txt")]
    (empty,) = Inputs(["rec"], exclude=["*"])
    assert isinstance(empty.error, ClipsError)


def test_outputs_are_no_inputs_unless_that_is_said(here: Path) -> None:
    for name in ("film.mkv", "film.subtitled.mkv", "film.srt", "a.JSON"):
        (here / "other" / name).write_bytes(b"12345")
    inputs = [("other/a.wav", "a"), ("other/film.mkv", "film")]
    for given in (Inputs(["other"]), Inputs(["other"], include=["*"]), Inputs(["other/*"])):
        assert named(given) == inputs
    assert named(Inputs(["other"], include=["*.mkv"])) == inputs[1:]
    copies = [("other/film.subtitled.mkv", "film.subtitled")]
    assert named(Inputs(["other"], include=["*.subtitled.mkv"])) == named(Inputs(["other/*.subtitled.*"])) == copies
    assert named(Inputs(["other/film.subtitled.mkv"])) == [("other/film.subtitled.mkv", "film.subtitled")]


def test_folders_that_cannot_be_read_are_errors(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("day 1"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    *found, refused = Inputs(["rec"])
    assert [one.audio for one in found] == ["rec/a.MP3", "rec/b.wav"]
    assert "cannot read the folder rec/day 1: Permission denied" in str(refused.error)
    (refused,) = Inputs(["rec/day 1"])
    assert "Permission denied" in str(refused.error)


@pytest.mark.parametrize("content", [b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01", bytes(range(256))])
def test_audio_is_no_list(here: Path, content: bytes) -> None:
    (here / "x.dat").write_bytes(content)
    with pytest.raises(ClipsError, match="is no list"):
        read_list("x.dat")


def test_files_and_patterns(here: Path) -> None:
    assert named(Inputs(["rec/b.wav", "x.dat", "odd[1].wav"])) == [
        ("rec/b.wav", "b"), ("x.dat", "x.dat"), ("odd[1].wav", "odd[1]"),
    ]  # fmt: skip
    assert named(Inputs(["rec/**/*.wav"])) == [("rec/b.wav", "b"), ("rec/day 1/a.wav", "day 1/a")]
    assert named(Inputs([str(here / "*/a.wav")])) == [(str(here / "other/a.wav"), "other/a")]
    (nothing,) = Inputs(["rec/*.ogg"])
    with pytest.raises(ClipsError, match="no file matches"):
        nothing.read(16_000, strict=False, track=None)


def test_names_that_no_file_has_are_inputs_that_fail_alone(here: Path) -> None:
    for name in ("none.wav", "a" * 9999, "nul\0.wav", "https://a.test/x.wav"):
        (one,) = Inputs([name])
        assert (one.audio, one.size_bytes) == (name, 0)
        assert one.output


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\0"])
def test_lists_mirror_their_folders(here: Path, ends: bytes) -> None:
    Path("list").write_bytes(
        ends.join([b"./rec/day 1/a.wav", os.fsencode(here / "x.dat"), b"../rec/b.wav", b"other", b""])
    )
    assert named(Inputs([], listed=read_list("list"))) == [
        ("rec/day 1/a.wav", "rec/day 1/a"), (str(here / "x.dat"), "x.dat"), ("../rec/b.wav", "b"), ("other/a.wav", "a"),
    ]  # fmt: skip
    for wrong in ("none", "empty"):
        Path("empty").write_bytes(b"\n\n")
        with pytest.raises(ClipsError, match=wrong):
            read_list(wrong)


def test_outputs_stay_in_their_folder(here: Path) -> None:
    lines = [
        {"audio": "x.dat", "id": name} for name in ("../../up", "/root", "a//b/./c.wav", "...", ".dasheng-edge", "é")
    ]
    Path("clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outputs = [one.output for one in Inputs(["clips.jsonl"])]
    assert outputs == ["up", "root", "a/b/c", "_...", "_.dasheng-edge", "é"]


def test_parts_of_files_by_manifests(here: Path) -> None:
    write_audio(here / "long.wav", sine(440, 3, 16_000), WAV)
    Path("nemo.json").write_text(
        '{"audio_filepath": "long.wav", "offset": 0.5, "duration": 1.0}\n'
        '{"audio_filepath": "long.wav", "offset": 2.5}\n{"audio_filepath": "long.wav"}\n'
        '{"audio_filepath": "long.wav", "offset": 9, "prompt": "Why?"}'
    )
    first, rest, whole, beyond = Inputs(["nemo.json"])
    assert len({one.source for one in (first, rest, whole, beyond)}) == len(
        {first.part, rest.part, whole.part, beyond.part}
    )
    samples = np.concatenate(list(whole.read(16_000, strict=False, track=None)))
    for one, cut in ((first, samples[8000:24_000]), (rest, samples[40_000:])):
        stream = one.read(16_000, strict=False, track=None)
        np.testing.assert_array_equal(np.concatenate(list(stream)), cut)
        assert stream.start_s == one.offset_s
    with pytest.raises(AudioEmptyError, match="no sound from 9 s on"):
        next(beyond.read(16_000, strict=False, track=None))
    Path("nemo.json").write_text("{}")
    (wrong,) = Inputs(["nemo.json"])
    assert isinstance(wrong.error, ClipsError)
    assert Input("a", "a", "a").source == "a"
