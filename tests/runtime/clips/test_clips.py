"""Clips of a manifest, a folder or a file: what is read of them, and what is said about wrong ones."""

from __future__ import annotations

import json
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.clips.clips import Clip, ClipSet, find_clips, read_clips
from dasheng_edge.runtime.errors import AudioEmptyError, AudioNotFoundError, ClipsError

RATE_HZ = 16_000


def write_wave(path: Path, seconds: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """16-bit noise, which comes back exactly; its samples."""
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, round(seconds * RATE_HZ)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.tobytes())
    return samples.astype(np.float32) / np.float32(32768)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sounds, a.wav and b/c.WAV, and a text."""
    (tmp_path / "b").mkdir()
    write_wave(tmp_path / "a.wav", seed=1)
    write_wave(tmp_path / "b" / "c.WAV", seed=2)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def write_manifest(folder: Path, *rows: object, start: str = "", between: str = "\n") -> Path:
    """Rows as JSON; those that are text already stay."""
    path = folder / "clips.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(start + between.join(lines), encoding="utf-8")
    return path


def test_what_a_row_says(folder: Path) -> None:
    facts = {"prompt": "What?", "references": ["two"], "text": "one", "events": ["dog", "dog"], "transcript": "4 0"}
    path = write_manifest(folder, {"audio": "a.wav", "id": "x", "offset": 0.25, "duration": 0.5, **facts})
    assert find_clips(path) == ClipSet(
        "clips.jsonl",
        (Clip("x", folder / "a.wav", 0.25, 0.5, "What?", ("one", "two"), frozenset({"dog"}), "4 0"),),
    )


@pytest.mark.parametrize("key", ["audio", "audio_filepath", "file"])
def test_what_is_not_said_is_not_known(folder: Path, key: str) -> None:
    assert read_clips(write_manifest(folder, {key: "a.wav"})).clips == (Clip("a.wav", folder / "a.wav"),)


def test_a_row_may_know_that_there_is_no_event(folder: Path) -> None:
    (clip,) = read_clips(write_manifest(folder, {"audio": "a.wav", "events": []})).clips
    assert clip.events == frozenset()


def test_byte_order_mark_and_empty_lines_are_passed_over(folder: Path) -> None:
    rows = ("", {"audio": "a.wav"}, "   ", {"audio": "b/c.WAV"}, "")
    clips = read_clips(write_manifest(folder, *rows, start="\ufeff", between="\r\n")).clips
    assert [clip.id for clip in clips] == ["a.wav", "b/c.WAV"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_a_line(folder: Path, separator: str) -> None:
    # json.dumps(..., ensure_ascii=False) leaves these as they are inside of texts.
    text = f"one{separator}two"
    (clip,) = read_clips(write_manifest(folder, {"audio": "a.wav", "text": text})).clips
    assert clip.references == (text,)


def test_clips_without_an_id_are_numbered_where_a_file_is_named_again(folder: Path) -> None:
    clips = read_clips(write_manifest(folder, *[{"audio": "a.wav", "offset": i / 4} for i in range(3)])).clips
    assert [clip.id for clip in clips] == ["a.wav", "a.wav (2)", "a.wav (3)"]
    assert [clip.offset_s for clip in clips] == [0, 0.25, 0.5]


def test_paths_outside_of_the_manifests_folder(folder: Path) -> None:
    path = write_manifest(folder / "b", {"audio": "../a.wav"}, {"audio": str(folder / "a.wav"), "id": "absolute"})
    assert all(clip.path.resolve() == (folder / "a.wav").resolve() for clip in read_clips(path).clips)


def test_a_folder_gives_all_audio_in_it(folder: Path) -> None:
    found = find_clips(folder)
    assert found.name == folder.name
    assert found.clips == (Clip("a.wav", folder / "a.wav"), Clip(str(Path("b/c.WAV")), folder / "b" / "c.WAV"))


def test_a_folder_named_by_a_dot_has_its_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_clips(Path()).name == folder.name


def test_a_single_file(folder: Path) -> None:
    assert find_clips(folder / "a.wav") == ClipSet("a.wav", (Clip("a.wav", folder / "a.wav"),))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", r"line 2: the line: .*expected an object with audio and any of audio, id, offset"),
        ("[1]", "line 2: the line: "),
        ({}, "line 2: audio: Field required"),
        ({"audio": ""}, "line 2: audio: .*at least 1 character"),
        ({"audio": "a.wav", "caption": "?"}, "line 2: caption: Extra inputs are not permitted"),
        ({"audio": "a.wav", "file": "a.wav"}, "line 2: file: Extra inputs are not permitted"),
        ({"audio": "a.wav", "offset": -1}, "line 2: offset: .*greater than or equal to 0"),
        ({"audio": "a.wav", "duration": 0}, "line 2: duration: .*greater than 0"),
        ('{"audio": "a.wav", "offset": NaN}', "line 2: offset: .*finite"),
        ({"audio": "a.wav", "references": [1]}, r"line 2: references\.0: .*valid string"),
        ({"audio": "gone.wav"}, r"line 2: there is no file .*gone\.wav; paths are relative to the manifest"),
        ({"audio": "b"}, "line 2: there is no file"),
        ({"audio": "a\0.wav"}, "line 2: there is no file"),
        ({"audio": "b/c.WAV", "id": "first"}, "line 2: the id 'first' is there twice; give each clip its own, or none"),
    ],
)
def test_a_wrong_row_costs_itself_alone(folder: Path, row: object, said: str) -> None:
    first = {"audio": "a.wav", "id": "first"}
    good, wrong, after = find_clips(write_manifest(folder, first, row, {"audio": "b/c.WAV"})).clips
    assert (good, after) == (Clip("first", folder / "a.wav"), Clip("b/c.WAV", folder / "b" / "c.WAV"))
    with pytest.raises(ClipsError, match=said):
        wrong.read(RATE_HZ)


def test_ids_are_the_same_whatever_is_wrong_with_a_row(folder: Path) -> None:
    rows: list[dict[str, object]] = [{"audio": "a.wav"}, {"audio": "a.wav", "id": "x"}, {"audio": "a.wav"}]
    ids = [clip.id for clip in read_clips(write_manifest(folder, *rows)).clips]
    assert ids == ["a.wav", "x", "a.wav (2)"]
    for place, row in enumerate(rows):
        for wrong in ({"offset": -1}, {"duration": "x"}, {"prompt": 5}, {"colour": "red"}, {"references": None}):
            changed = [*rows[:place], {**row, **wrong}, *rows[place + 1 :]]
            clips = read_clips(write_manifest(folder, *changed)).clips
            assert [clip.id for clip in clips] == ids
            assert [clip.error is not None for clip in clips] == [number == place for number in range(3)]
    strange = '{"id": "\\ud800"}'
    clips = read_clips(write_manifest(folder, {"audio": "gone.wav"}, "{", {"audio": "a.wav"}, strange)).clips
    assert [clip.id for clip in clips] == ["gone.wav", "clips.jsonl, line 2", "a.wav", "\\ud800"]


def test_a_manifest_without_a_row_that_can_be_used_is_refused(folder: Path) -> None:
    with pytest.raises(ClipsError, match="line 1: there is no file"):
        read_clips(write_manifest(folder, {"audio": "gone.wav"}, {"audio": "a.wav", "offset": -1}))
    (folder / "mixed.jsonl").write_bytes(b'{"audio": "a.wav"}\r\n{"audio": "\xe9.wav"}\r')
    good, latin = read_clips(folder / "mixed.jsonl").clips
    assert good.error is None
    assert "mixed.jsonl, line 2: 'utf-8' codec" in str(latin.error)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_row_holds_is_its_own_error(folder: Path, data: st.DataObject) -> None:
    keys = ["audio", "id", "offset", "duration", "prompt", "references", "events", "file", "audio_filepath", "type"]
    keys += ["recording", "sources", "sampling_rate", "supervisions", "start", "channel", "transforms", "tracks"]
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a.wav", "file", "\0"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*keys, "source"]), inner),
        max_leaves=5,
    )
    row = data.draw(st.dictionaries(st.sampled_from(keys), values) | values)
    _, other, last = read_clips(write_manifest(folder, {"audio": "a.wav"}, json.dumps(row), {"audio": "a.wav"})).clips
    assert last == Clip("a.wav (2)", folder / "a.wav") or other.id.startswith("a.wav")
    if other.error is not None:
        assert "line 2" in str(other.error)


def test_places_without_clips(folder: Path) -> None:
    with pytest.raises(ClipsError, match=r"cannot read the clips of .*gone\.jsonl: .*; expected JSON Lines"):
        find_clips(folder / "gone.jsonl")
    (folder / "latin.json").write_bytes(b'{"audio": "\xe9.wav"}')
    with pytest.raises(ClipsError, match=r"cannot read the clips of .*latin\.json"):
        find_clips(folder / "latin.json")
    with pytest.raises(ClipsError, match=r"clips\.jsonl lists no clip; expected a JSON object with the key 'audio'"):
        find_clips(write_manifest(folder, "", " "))
    with pytest.raises(ClipsError, match=r"there is nothing at .*gone; expected a manifest"):
        find_clips(folder / "gone")
    (folder / "empty").mkdir()
    with pytest.raises(ClipsError, match=r"there is no audio file in .*empty"):
        find_clips(folder / "empty")


@settings(max_examples=30, deadline=None)
@given(offset=st.integers(0, 15_999), length=st.none() | st.integers(1, 20_000))
def test_a_part_is_a_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.wav"
    if not path.exists():
        write_wave(path)
    whole = Clip("whole", path).read(RATE_HZ)
    part = Clip("part", path, offset / RATE_HZ, None if length is None else length / RATE_HZ).read(RATE_HZ)
    np.testing.assert_array_equal(part, whole[offset:][:length])


def test_the_whole_is_what_the_file_holds(tmp_path: Path) -> None:
    samples = write_wave(tmp_path / "x.wav", seconds=70.0)  # several blocks of the reader
    np.testing.assert_array_equal(Clip("x", tmp_path / "x.wav").read(RATE_HZ), samples)
    part = Clip("x", tmp_path / "x.wav", 20.5, 45.0).read(RATE_HZ)
    np.testing.assert_array_equal(part, samples[round(20.5 * RATE_HZ) : round(65.5 * RATE_HZ)])


@pytest.mark.parametrize("offset", [1.0, 5.0, 1e300])
def test_an_offset_behind_the_end(folder: Path, offset: float) -> None:
    with pytest.raises(AudioEmptyError, match=r"a\.wav has no sound from .* s on; correct the clip's offset"):
        Clip("x", folder / "a.wav", offset).read(RATE_HZ)


def test_the_hash_is_of_rows_and_audio(folder: Path) -> None:
    rows = ({"audio": "a.wav"}, {"audio": "b/c.WAV"}, {"audio": "a.wav", "offset": 0.5})
    whole = read_clips(write_manifest(folder, *rows)).sha256()
    assert read_clips(write_manifest(folder, *rows)).sha256() == whole
    changes: list[dict[str, object]] = [
        {"id": "x"}, {"offset": 0.25}, {"duration": 0.25}, {"prompt": "?"}, {"text": "x"}, {"events": []},
        {"transcript": "x"}, {"audio": "b/c.WAV"},
    ]  # fmt: skip
    changed = [read_clips(write_manifest(folder, *rows[:2], {**rows[2], **change})).sha256() for change in changes]
    assert len({whole, *changed}) == len(changes) + 1
    write_wave(folder / "b" / "c.WAV", seed=3)
    assert read_clips(write_manifest(folder, *rows)).sha256() != whole


def test_an_id_that_is_given_goes_before_one_that_is_made(folder: Path) -> None:
    rows = ({"audio": "a.wav"}, {"audio": "a.wav"}, {"audio": "b/c.WAV", "id": "a.wav"})
    assert [clip.id for clip in read_clips(write_manifest(folder, *rows)).clips] == ["a.wav (2)", "a.wav (3)", "a.wav"]


def test_an_id_that_is_made_holds_no_path_of_this_machine(folder: Path) -> None:
    (clip,) = read_clips(write_manifest(folder, {"audio": str(folder / "b" / "c.WAV")})).clips
    assert clip.id == "c.WAV"


def test_nothing_known_may_be_said_as_null(folder: Path) -> None:
    keys = ("id", "offset", "duration", "prompt", "text", "events", "transcript")
    (clip,) = read_clips(write_manifest(folder, {"audio": "a.wav", **dict.fromkeys(keys)})).clips
    assert clip == Clip("a.wav", folder / "a.wav")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"audio": "x" * 5000}, "there is no file"),
        ({"audio": "a.wav", "offset": "1"}, "offset: .*valid number"),
        ({"audio": "a.wav", "offset": True}, "offset: .*valid number"),
        ({"audio": "a.wav", "events": "dog"}, "events: .*valid array"),
        ({"audio": "a.wav", "id": ""}, "id: .*at least 1 character"),
        ({"audio": "a.wav", "id": 7}, "id: .*valid string"),
    ],
)
def test_types_are_taken_at_their_word(folder: Path, row: object, said: str) -> None:
    with pytest.raises(ClipsError, match=f"line 1: {said}"):
        read_clips(write_manifest(folder, row))


def test_hidden_files_are_no_clips(folder: Path) -> None:
    (folder / "._a.wav").write_bytes(b"Mac OS X")
    (folder / ".trash").mkdir()
    write_wave(folder / ".trash" / "d.wav")
    assert [clip.id for clip in find_clips(folder).clips] == ["a.wav", "b/c.WAV"]


def test_a_file_that_went_away_counts_in_the_hash_and_is_told_where_it_is_read(folder: Path) -> None:
    before, clips = find_clips(folder).sha256(), find_clips(folder)
    (folder / "a.wav").unlink()
    assert clips.sha256() != before
    assert clips.shared_with(clips) == 1
    with pytest.raises(AudioNotFoundError):
        clips.clips[0].read(RATE_HZ)


def test_a_part_shorter_than_a_sample(folder: Path) -> None:
    with pytest.raises(AudioEmptyError, match=r"no sound from 0 s on for 1e-09 s; correct the clip's offset"):
        Clip("x", folder / "a.wav", 0.0, 1e-9).read(RATE_HZ)


def named_in_bytes(folder: Path, name: bytes, seed: int) -> Path:
    """A sound whose name is no UTF-8, where the file system takes it."""
    path = folder / os.fsdecode(name)
    try:
        write_wave(path, seed=seed)
    except OSError:  # macOS
        pytest.skip("this file system takes UTF-8 only")
    return path


def test_names_that_are_no_utf8_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"cl\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    path = named_in_bytes(folder, b"\xe9.wav", seed=1)
    write_wave(folder / "\\xe9.wav", seed=2)  # what the other is shown as
    found = find_clips(folder)
    assert found.name == "cl\\xe9"
    assert sorted(clip.id for clip in found.clips) == ["\\xe9.wav", "\\xe9.wav (2)"]
    assert {clip.path for clip in found.clips} == {path, folder / "\\xe9.wav"}
    json.dumps([clip.id for clip in found.clips], ensure_ascii=False).encode()
    assert len(found.sha256()) == 64
    alone = find_clips(path)
    assert (alone.name, alone.clips[0].id) == ("\\xe9.wav", "\\xe9.wav")
    manifest = write_manifest(folder, {"audio": "\\xe9.wav"})
    assert find_clips(manifest.rename(folder / os.fsdecode(b"\xff.jsonl"))).name == "\\xff.jsonl"


def test_links_to_folders_are_followed_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_wave(elsewhere / "d.wav", seed=3)
    (elsewhere / "back").symlink_to(folder)  # a loop
    (folder / "a_link").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (folder / "aa_link").symlink_to(folder / "b")  # what is there by its own name stays by that
    (folder / ".hidden").symlink_to(elsewhere)
    assert [clip.id for clip in find_clips(folder).clips] == ["a.wav", "a_link/d.wav", "b/c.WAV"]


def test_a_folder_that_is_a_link(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("place") / "link"
    link.symlink_to(folder)
    assert [clip.id for clip in find_clips(link).clips] == ["a.wav", "b/c.WAV"]


def test_audio_that_two_sets_share(folder: Path) -> None:
    shutil.copyfile(folder / "a.wav", folder / "b" / "copy.wav")
    mine = ClipSet("mine", (Clip("x", folder / "a.wav", 0.0, 0.5), Clip("y", folder / "b" / "c.WAV")))

    def shared(*other: Clip) -> int:
        return mine.shared_with(ClipSet("other", other))

    assert shared(Clip("z", folder / "b" / "copy.wav")) == 1  # another name, the same content
    assert shared(Clip("z", folder / "b" / "copy.wav", 0.4)) == 1
    assert shared(Clip("z", folder / "b" / "copy.wav", 0.5)) == 0  # behind the part that is compared
    assert shared(Clip("z", folder / "b" / "c.WAV", 0.5, 0.1), Clip("z2", folder / "a.wav", 0.1, 0.1)) == 2
    assert shared() == 0
