"""Folder jobs: what is written, what is not asked again, what one bad file costs, and who may write."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.audio import read
from dasheng_edge.runtime.bundle import bundle
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.jobs import written
from dasheng_edge.runtime.jobs.job import LEDGER
from dasheng_edge.runtime.jobs.written import WrittenResults
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)
FILM = ("--format", "json", "--window", 2, "--hop", 1)  # in six windows


def caption(*args: str | Path | float) -> Result:
    words = ["caption", *(str(arg) for arg in args), "--max-new-tokens", "2", "--threads", "1"]
    return CliRunner().invoke(cli.build_app(), words, prog_name="dasheng-edge")


def outputs(folder: Path) -> dict[str, str]:
    """The files of a job, without what differs between runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            text = path.read_text("utf-8")
            if path.suffix == ".json":
                rows = json.loads(text)
                text = json.dumps(
                    [{key: row[key] for key in sorted(row.keys() - {"timings", "tokens_per_s"})} for row in rows]
                )
            found[path.relative_to(folder).as_posix()] = text
    return found


def test_folders_are_mirrored_and_nothing_is_asked_again(
    tiny_bundle: Path, clips: Path, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    words = (tiny_bundle, clips, "--out", out, "--format", "txt,json", "--window", 4)
    done = caption(*words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("error: ") == 1
    names = {"a.txt", "b.txt", "below/a.txt", "film.txt"}
    assert outputs(out).keys() == names | {name.replace("txt", "json") for name in names} | {"broken.json"}
    assert len(json.loads((out / "film.json").read_text())) == len((out / "film.txt").read_text().splitlines()) == 3
    assert json.loads((out / "broken.json").read_text())[0]["error_type"] == "AudioDecodeError"
    assert len(asked) == 3 + 3
    before = outputs(out)
    (out / "a.txt").unlink()
    again = caption(*words)
    assert again.exit_code == 1
    assert "4 done before; 1 failed (1 not readable as audio)" in again.stderr
    assert len(asked) == 3 + 3
    assert outputs(out) == before


def test_what_is_renamed_copied_or_wanted_in_another_format_is_not_asked_again(
    tiny_bundle: Path, clips: Path, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    (clips / "broken.wav").unlink()
    shutil.copy(clips / "a.wav", clips / "copy.wav")
    assert (first := caption(tiny_bundle, clips, "--out", out)).exit_code == 0
    assert sorted(asked) == ["a.wav", "a.wav", "b.wav", "film.wav"]
    assert "; 1 copy of another;" in first.stderr
    (clips / "b.wav").rename(clips / "below" / "c.wav")
    moved = clips.rename(tmp_path / "moved")
    assert caption(tiny_bundle, moved, "--out", out, "--format", "txt,csv").exit_code == 0
    assert len(asked) == 4
    assert (out / "below/c.txt").read_text() == (out / "b.txt").read_text()
    assert (out / "a.txt").read_text() == (out / "copy.txt").read_text()
    assert "moved" in (out / "a.csv").read_text()
    assert not (out / "b.csv").exists()


def test_a_file_is_hashed_and_decoded_once_for_all_its_parts(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"audio": "film.wav", "id": f"{at}", "offset": at, "duration": 1} for at in range(6)]
    (clips / "parts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hashed, opened = list[Path](), list[Path]()
    monkeypatch.setattr(written, "FRESH_NS", 0)

    def noted(path: Path) -> str:
        hashed.append(path)
        return bundle.sha256_of(path)

    def opening(path: Path) -> BinaryIO:
        opened.append(path)
        return path.open("rb")

    monkeypatch.setattr(written, "sha256_of", noted)
    monkeypatch.setattr(read, "open_path", opening)
    assert caption(tiny_bundle, clips / "parts.jsonl", "--out", tmp_path / "out").exit_code == 0
    assert len(outputs(tmp_path / "out")) == 6
    assert (len(hashed), len(opened)) == (1, 1)


def test_a_bad_row_of_a_manifest_costs_one_row_and_ids_stay(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav"}, {"audio": "gone.wav"}, {"audio": "a.wav", "offset": -1}, {"audio": "a.wav", "offset": 1e6},
        {"audio": "a.wav", "duration": float("nan")}, {"audio": "a\0.wav"}, {"audio": "x" * 5000, "id": "long"},
        {"id": "nothing"}, {"audio": "b.wav", "id": "nothing"}, {"audio": "b.wav"},
    ]  # fmt: skip
    manifest = clips / "rows.jsonl"
    manifest.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in rows), b"\xff", b'{"audio": "a.wav"}']))
    assert caption(tiny_bundle, manifest, "--out", tmp_path / "out.jsonl").exit_code == 1
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(found) == len(rows) + 2
    assert sorted(row["audio"] for row in found if "error" not in row) == ["a.wav", "a.wav (5)", "b.wav"]
    errors = {row["audio"]: row["error"] for row in found if "error" in row}
    wrong = {"gone.wav": 2, "a.wav (2)": 3, "a.wav (4)": 5, r"a\x00.wav": 6, "long": 7, "nothing": 8}
    wrong |= {"rows.jsonl, line 9": 9, "rows.jsonl, line 11": 11}
    for name, line in wrong.items():
        assert f"line {line}: " in errors.pop(name)
    (beyond,) = errors.items()
    assert beyond[0] == "a.wav (3)"
    assert "no sound from 1e+06 s on" in beyond[1]


def test_a_file_that_was_changed_is_asked_again_in_its_place(
    tiny_bundle: Path, clips: Path, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    caption(tiny_bundle, clips / "a.wav", "--out", out)
    write_audio(clips / "a.wav", sine(333, 2, 16_000), WAV)
    assert caption(tiny_bundle, clips / "a.wav", "--out", out).exit_code == 0
    assert asked == ["a.wav", "a.wav"]
    assert outputs(out).keys() == {"a.txt"}


def test_people_are_told_where_outputs_are(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    one = caption(tiny_bundle, clips / "a.wav", "--format", "csv,json")
    assert f"; see {clips / 'a.csv'}, {clips / 'a.json'}\n" in one.stderr
    assert "; see beside the inputs\n" in caption(tiny_bundle, clips, "--format", "jsonl,txt").stderr
    for out in (clips / "a.wav", clips / "a.wav" / "deeper"):
        refused = caption(tiny_bundle, clips / "b.wav", "--out", out)
        assert refused.exit_code == 1
        assert "name a folder with --out" in refused.stderr
        assert "what is done is stored" not in refused.stderr


@pytest.mark.parametrize("windows", [1, 2])
def test_a_film_goes_on_at_its_window(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], windows: int
) -> None:
    film, words = clips / "film.wav", (*FILM, "--batch", 1)
    caption(tiny_bundle, film, "--out", tmp_path / "whole", *words)
    assert len(asked) == 6
    rows = ClipAudio.groups

    def interrupted(self: ClipAudio) -> Any:
        if len(asked) == 6 + windows + 1:
            raise KeyboardInterrupt
        return rows(self)

    with monkeypatch.context() as patched:
        patched.setattr(ClipAudio, "groups", interrupted)
        done = caption(tiny_bundle, film, "--out", tmp_path / "out", *words)
    assert done.exit_code == 130
    assert "give the same command again to go on" in done.stderr
    assert not outputs(tmp_path / "out")
    assert caption(tiny_bundle, film, "--out", tmp_path / "out", *words).exit_code == 0
    assert len(asked) == 6 + 1 + 6
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("lost", [{0}, {1, 3}, {5}, {4, 5}])
def test_windows_that_were_kept_before_others_are_not_asked_again(
    tiny_bundle: Path, clips: Path, tmp_path: Path, asked: list[str], lost: set[int]
) -> None:
    words = (tiny_bundle, clips / "film.wav", "--out", tmp_path / "out", *FILM, "--batch", 4)
    caption(*words)
    whole, ledger = outputs(tmp_path / "out"), tmp_path / "out" / LEDGER
    kept = [line for line in ledger.read_text().splitlines() if json.loads(line).get("window") not in lost]
    ledger.write_text("".join(f"{line}\n" for line in kept if '"kind": "written"' not in line))
    asked.clear()
    assert caption(*words).exit_code == 0
    assert len(asked) == len(lost)
    assert outputs(tmp_path / "out") == whole


def test_what_is_answered_is_kept_before_its_turn(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    words = (tiny_bundle, clips / "film.wav", "--out", tmp_path / "out", *FILM, "--batch", 4)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WrittenResults, "take", killed)
        assert caption(*words).exit_code == 130
        assert caption(tiny_bundle, clips / "a.wav", "--format", "txt,json").exit_code == 130
    assert (clips / "a.txt").exists()
    assert (clips / "a.json").exists()
    rows = (tmp_path / "out" / LEDGER).read_text().count('"kind": "row"')
    assert rows >= 1
    asked.clear()
    assert caption(*words).exit_code == 0
    assert len(asked) == 6 - rows


def test_nothing_is_overwritten_and_no_input(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("mine")
    (out / "b.txt").symlink_to("nowhere")
    done = caption(tiny_bundle, clips / "a.wav", clips / "b.wav", clips / "film.wav", "--out", out)
    assert done.exit_code == 1
    assert "already exists; pass --overwrite" in done.stderr
    assert "2 whose output is there already" in done.stderr
    assert outputs(out)["a.txt"] == "mine"
    assert (out / "film.txt").exists()
    assert caption(tiny_bundle, clips / "a.wav", "--out", out, "--overwrite").exit_code == 0
    assert outputs(out)["a.txt"] != "mine"
    audio = (clips / "a.wav").rename(clips / "a.txt").read_bytes()
    done = caption(tiny_bundle, clips / "a.txt", "--out", clips, "--format", "txt,json", "--overwrite")
    (clips / "a.txt.txt").unlink()
    assert (done.exit_code, (clips / "a.txt").read_bytes()) == (0, audio)


def test_a_place_that_cannot_be_written_costs_one_file_and_a_full_disk_all(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    out = tmp_path / "out"
    (out / "a.txt").mkdir(parents=True)
    words = (tiny_bundle, clips / "a.wav", clips / "b.wav", "--out", out, "--overwrite")
    done = caption(*words)
    assert (done.exit_code, "1 whose output cannot" in done.stderr, (out / "b.txt").exists()) == (
        1,
        True,
        True,
    )
    (out / "b.txt").unlink()
    (out / "a.txt").rmdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(written, "replacing", full)
        done = caption(*words)
        beside = caption(tiny_bundle, clips / "film.wav", "--format", "txt,srt").stderr
        assert "what is written stays: free some space, and name the inputs that are left" in beside
    assert done.exit_code == 1
    assert "No space left on device; what is done is stored: free some space, and give the same command" in done.stderr
    assert caption(*words).exit_code == 0
    assert asked[:2] == ["a.wav", "b.wav"]
    assert {*asked[2:]} == {"film.wav"}
    assert outputs(out).keys() == {"a.txt", "b.txt"}


def test_a_file_that_changes_while_it_is_read_is_asked_again(
    tiny_bundle: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    words = (tiny_bundle, clips / "film.wav", "--out", tmp_path / "out", "--window", 4)
    rows = ClipAudio.rows

    def grows(self: ClipAudio) -> Any:
        with (clips / "film.wav").open("ab") as file:
            file.write(b"more")
        return rows(self)

    with monkeypatch.context() as patched:
        patched.setattr(ClipAudio, "rows", grows)
        done = caption(*words)
    assert (done.exit_code, "was changed while it was read" in done.stderr) == (1, True)
    assert caption(*words).exit_code == 0
    assert len(asked) == 3 + 3


def test_another_bundle_or_other_settings_are_told(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    out, film = tmp_path / "out", clips / "film.wav"
    assert caption(tiny_bundle, film, "--out", out).exit_code == 0
    done = caption(tiny_bundle, film, "--out", out, "--prompt", "Why?", "--window", 3)
    assert done.exit_code == 1
    assert 'by default, now "Why?"' in done.stderr
    assert "windows (--window, --hop) by default, now of 3 s every 1.5 s" in done.stderr
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    (other / "manifest.json").write_text((other / "manifest.json").read_text().rstrip() + "\n\n")
    assert "made with another bundle" in caption(other, film, "--out", out).stderr
    anew = caption(tiny_bundle, film, "--out", out, "--prompt", "Why?", "--no-resume", "--overwrite")
    assert anew.exit_code == 0


def test_two_processes_never_mix(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    out = tmp_path / "out"
    caption(tiny_bundle, clips / "a.wav", "--out", out)
    with FileLock(out / f"{LEDGER}.lock"):
        done = caption(tiny_bundle, clips, "--out", out)
    assert done.exit_code == 1
    assert "another process captions into" in done.stderr
    assert "(process " in done.stderr
    assert outputs(out).keys() == {"a.txt"}


def test_copies_of_videos_have_their_subtitles(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    import av

    write_audio(clips / "film.mkv", sine(500, 7, 16_000), Format("mkv", "matroska", "pcm_s16le", 16_000))
    before = (clips / "film.mkv").read_bytes()
    words = (tiny_bundle, clips / "film.mkv", clips / "a.wav", "--mux", "en", "--format", "srt", "--out", tmp_path)
    done = caption(*words)
    assert (done.exit_code, "1 that take no subtitles" in done.stderr) == (1, True)
    with av.open(str(tmp_path / "film.subtitled.mkv")) as copy:
        assert [stream.type for stream in copy.streams] == ["audio", "subtitle"]
        assert copy.streams[1].metadata["language"] == copy.streams[1].language == "eng"
        assert copy.streams[1].metadata["title"] == "Sounds"
    assert (clips / "film.mkv").read_bytes() == before
    assert "1 done before" in caption(*words).stderr
    assert caption(tiny_bundle, clips / "film.mkv", "--mux", "en", "--speech", "en").exit_code == 0
    with av.open(str(clips / "film.subtitled.mkv")) as copy:
        assert copy.streams[1].metadata["title"] == "Sounds and speech"


def test_events_for_machines(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    done = caption(tiny_bundle, clips, "--out", tmp_path / "out", "--json", "--window", 4)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events].count("caption") == 3 + 2 + 1
    assert events[0] == {"event": "begin", "files": 5, "bytes": sum(p.stat().st_size for p in clips.rglob("*.wav"))}
    last = events[-1]
    assert (last["event"], last["done"], last["errors"]) == ("end", 4, {"AudioDecodeError": 1})
    assert last["audio_s"] == pytest.approx(3 + 7)
    files = [event for event in events if event["event"] == "file"]
    assert all(Path(output).exists() for event in files for output in event["outputs"])


def test_silence_of_progress(tiny_bundle: Path, clips: Path, tmp_path: Path) -> None:
    done = caption(tiny_bundle, clips, "--out", tmp_path / "out", "--quiet")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error"]


def test_a_format_is_no_option(tiny_bundle: Path, clips: Path) -> None:
    refused = caption(tiny_bundle, "--srt", clips)
    assert (refused.exit_code, "there is no option --srt; write --format srt" in refused.stderr) == (2, True)
    assert "did you mean srt?" in caption(tiny_bundle, clips, "--format", "srtt").stderr
