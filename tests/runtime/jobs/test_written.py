"""Files that a job writes: one for all inputs, or some beside each, and who may write them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.atomic_output import replacing
from dasheng_edge.runtime.audio.read import describe_audio
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.jobs import written
from tests.fixtures.audio_files import Format, sine, write_audio


def caption(*args: str | Path | float) -> Result:
    words = ["caption", *(str(arg) for arg in args), "--max-new-tokens", "2", "--threads", "1"]
    return CliRunner().invoke(cli.build_app(), words, prog_name="dasheng-edge")


def test_one_file_for_all_inputs_in_their_order(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    done = caption(tiny_bundle, clips, "--out", out)
    assert done.exit_code == 1
    lines = out.read_text().splitlines()
    names = [line.split(",")[0].removeprefix(f"{clips}/") for line in lines]
    assert names == ["audio", "a.wav", "b.wav", "broken.wav", "film.wav", "below/a.wav"]
    (clips / "broken.wav").unlink()
    again = caption(tiny_bundle, clips, "--out", out, "--overwrite")
    assert (again.exit_code, "4 done before" in again.stderr) == (0, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".all.csv.ledger.jsonl", "all.csv", "clips"]


def test_one_file_for_all_inputs_goes_on_while_it_is_ours(
    tiny_bundle: Path, clips: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "new" / "all.csv", (tiny_bundle, clips, "--batch", 1, "--window", 4, "--out")
    caption(*words, tmp_path / "whole.csv")
    whole, groups = (tmp_path / "whole.csv").read_bytes(), ClipAudio.groups
    (count,) = {len(asked)}

    def interrupted(self: ClipAudio) -> Any:
        if len(asked) == count + 3:
            raise KeyboardInterrupt
        return groups(self)

    with monkeypatch.context() as patched:
        patched.setattr(ClipAudio, "groups", interrupted)
        assert caption(*words, out).exit_code == 130
    assert not out.exists()
    for _ in range(3):  # as often as it is given
        done = caption(*words, out)
        assert (done.exit_code, out.read_bytes()) == (1, whole)
    assert len(asked) == 2 * count + 1
    refused = caption(tiny_bundle, clips / "a.wav", "--window", 4, "--out", out)
    assert (refused.exit_code, "3 are missing now" in refused.stderr, out.read_bytes()) == (1, True, whole)
    (clips / "broken.wav").unlink()
    assert caption(*words, out).exit_code == 0
    assert caption(tiny_bundle, clips / "a.wav", "--window", 4, "--out", out, "--overwrite").exit_code == 0
    assert (len(out.read_text().splitlines()), len(asked)) == (2, 2 * count + 2)
    out.write_text("mine")
    assert "already exists; pass --overwrite" in caption(*words, out).stderr
    assert out.read_text() == "mine"
    changed = caption(*words, out, "--prompt", "Why?", "--overwrite")  # nothing is left to go on with
    assert (changed.exit_code, out.read_text().count("\n") > 4) == (0, True)


@pytest.mark.parametrize("name", ["a/deep/out", "deep/all.csv"])
def test_nothing_is_left_where_there_was_nothing_to_write(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "gone.wav"):
        done = caption(tiny_bundle, source, "--out", tmp_path / name)
        assert done.exit_code == 1
        if "." not in name:
            assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_locks_go_with_their_job_and_nobody_else_writes_them(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, old = list[int](), os.umask(0o027)
    rows = ClipAudio.rows

    def looked(self: ClipAudio) -> Any:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.lock"))
        return rows(self)

    monkeypatch.setattr(ClipAudio, "rows", looked)
    try:
        for words in (("--out", tmp_path / "out"), ("--out", tmp_path / "all.json"), ("--format", "srt")):
            caption(tiny_bundle, clips / "a.wav", *words)
    finally:
        os.umask(old)
    assert set(modes) == {0o640}
    assert not [*tmp_path.rglob("*.lock")]


def test_subtitles_lie_beside_their_films(tiny_bundle: Path, clips: Path) -> None:
    done = caption(tiny_bundle, clips / "film.wav", clips / "broken.wav", "--format", "srt,vtt")
    assert done.exit_code == 1
    assert (clips / "film.srt").read_text().startswith("1\n00:00:00,000 --> ")
    assert (clips / "film.vtt").read_text().startswith("WEBVTT\n")
    assert not [path for path in clips.iterdir() if path.name.startswith(".")]
    again = caption(tiny_bundle, clips / "film.wav", "--format", "srt")
    assert (again.exit_code, "film.srt already exists" in again.stderr) == (1, True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_input_has_all_its_outputs_beside_it_or_none(
    tiny_bundle: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    words = (tiny_bundle, clips / "film.wav", "--format", "srt,vtt")

    def full(path: Path, **options: Any) -> Any:
        if path.suffix == ".vtt":
            raise error
        return replacing(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(written, "replacing", full)
        assert caption(*words).exit_code == (1 if isinstance(error, OSError) else 130)
    assert not (clips / "film.srt").exists()
    assert caption(*words).exit_code == 0
    assert (clips / "film.srt").exists()
    assert (clips / "film.vtt").exists()


@pytest.mark.parametrize("out", [True, False])
def test_a_folder_that_cannot_be_written_costs_what_belongs_there(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, out: bool
) -> None:
    def refused(real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *more: Any, **options: Any) -> Any:
            if path.parent.name == "below":
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path, *more, **options)

        return refuse

    for name in ("replacing", "lock"):
        monkeypatch.setattr(written, name, refused(getattr(written, name)))
    done = caption(tiny_bundle, clips, "--format", "txt,json", *(("--out", tmp_path / "out") if out else ()))
    assert done.exit_code == 1
    assert "3 captioned" in done.stderr
    assert "a.txt: Permission denied; make it writable" in done.stderr
    assert "1 whose output cannot be written" in done.stderr


def test_inputs_that_vanish_are_counted(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = written.WrittenResults.begin

    def vanishing(self: Any, item: Any) -> Any:
        (clips / "film.wav").unlink(missing_ok=True)
        return begin(self, item)

    monkeypatch.setattr(written.WrittenResults, "begin", vanishing)
    done = caption(tiny_bundle, clips, "--out", tmp_path / "out")
    assert "3 captioned" in done.stderr
    assert "1 gone since they were counted" in done.stderr


@pytest.mark.parametrize("turned", [False, True])
def test_films_of_one_name_beside_each_other_have_their_whole_names(
    tiny_bundle: Path, clips: Path, *, turned: bool
) -> None:
    write_audio(clips / "film.mkv", sine(300, 2, 16_000), Format("mkv", "matroska", "pcm_s16le", 16_000))
    films = [clips / name for name in ("film.mkv", "film.wav")]
    assert caption(tiny_bundle, *(films[::-1] if turned else films), "--format", "srt").exit_code == 0
    assert {path.name for path in clips.glob("*.srt")} == {"film.mkv.srt", "film.wav.srt"}


def test_what_lies_beside_a_film_may_be_anothers(tiny_bundle: Path, clips: Path) -> None:
    write_audio(clips / "a.mkv", sine(300, 2, 16_000), Format("mkv", "matroska", "pcm_s16le", 16_000))
    for film, made in (("a.wav", "a.srt"), ("a.mkv", "a.mkv.srt")):
        assert caption(tiny_bundle, clips / film, "--format", "srt").exit_code == 0
        assert (clips / made).exists()
    assert "a.mkv.srt already exists" in caption(tiny_bundle, clips / "a.mkv", "--format", "srt").stderr
    assert caption(tiny_bundle, clips / "a.mkv", clips / "a.mkv", "--format", "srt", "--overwrite").exit_code == 0


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_two_processes_never_write_beside_the_same_inputs(
    tiny_bundle: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    words: tuple[str | Path | int, ...] = (tiny_bundle, clips, "--format", "srt", "--batch", 1, *more)
    second = list[Result]()
    rows = ClipAudio.rows

    def given_again(self: ClipAudio) -> Any:
        if describe_audio(self.source).endswith("film.wav") and not second:  # not the first
            second.append(caption(*words))
        return rows(self)

    monkeypatch.setattr(ClipAudio, "rows", given_again)
    first = caption(*words)
    assert "4 captioned" in first.stderr
    assert (second[0].exit_code, second[0].stderr.count("error: ")) == (1, 1)
    assert "a.srt: another process is making it" in second[0].stderr
    assert not list(clips.rglob(".*"))


def test_copies_that_wait_hold_no_locks(tiny_bundle: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        shutil.copy(clips / "a.wav", clips / f"copy {number}.wav")
    held, rows = list[int](), ClipAudio.rows

    def looked(self: ClipAudio) -> Any:
        held.append(len(list(clips.glob(".*.lock"))))
        return rows(self)

    monkeypatch.setattr(ClipAudio, "rows", looked)
    done = caption(tiny_bundle, *sorted(clips.glob("[ac]*.wav")), "--format", "txt,json", "--batch", 2)
    assert (done.exit_code, max(held)) == (0, 2)
    assert "; 20 copies of others;" in done.stderr
    assert len(list(clips.glob("*.txt"))) == 21
