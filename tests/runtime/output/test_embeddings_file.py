"""The npz file of `embed`: what may be replaced, and that nothing half-written stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.embedder import Embedding
from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError
from dasheng_edge.runtime.output import embeddings_file
from dasheng_edge.runtime.output.embeddings_file import EmbeddingsWriter
from tests.fixtures.full_disk import largest_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these locks nor SIGKILL")

WRITER = """
import sys, time
from dasheng_edge.runtime.output.embeddings_file import EmbeddingsWriter
with EmbeddingsWriter(sys.argv[1]):
    print("opened", flush=True)
    time.sleep(60)
"""


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def made(frames: int, value: float = 1.0) -> Embedding:
    rows = np.full((frames, 4), value, np.float32)
    return Embedding(rows, rows.mean(axis=0), frames / 25)


def write(out: Path, *, overwrite: bool = False) -> None:
    with EmbeddingsWriter(out, overwrite=overwrite) as writer:
        writer.add("a", made(1))
        writer.finish(rate_hz=25.0, model="m")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("precious"), "it is not an npz file"),
        (lambda path: np.savez(path, names=np.zeros(1)), "it lacks mean.npy"),
        (Path.mkdir, "it is a folder"),
        pytest.param(os.mkfifo if hasattr(os, "mkfifo") else None, "it is not a regular file", marks=posix),
    ],
)
def test_other_things_are_not_replaced(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    out = tmp_path / "x.npz"
    make(out)
    before = out.stat()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=reason):
            EmbeddingsWriter(out, overwrite=overwrite)
    assert out.stat() == before
    assert list(tmp_path.iterdir()) == [out]


def test_its_own_kind_and_empty_files_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    out.touch()
    for _ in range(2):
        with pytest.raises(OutputExistsError, match="already exists; pass --overwrite"):
            write(out)
        write(out, overwrite=True)
    assert load(out)["names"].tolist() == ["a"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_clip_in_pieces_is_the_same_file_as_a_clip_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(3, 1, (5000, 4)).astype(np.float32)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    files = []
    for size in (1, 7, 252, 5000):
        for spooled in (1 << 24, 100):  # in memory, and on the disk
            monkeypatch.setattr(embeddings_file, "SPOOLED_BYTES", spooled)
            with EmbeddingsWriter(tmp_path / f"{size}-{spooled}.npz") as writer:
                writer.add("first", made(2))
                with pytest.raises(ValueError), writer.clip("fails") as clip:
                    clip.add([rows[0], "no"])  # type: ignore[arg-type]
                with writer.clip("long") as clip:
                    for start in range(0, len(rows), size):
                        clip.add(rows[start : start + size])
                    clip.audio_s = 200.0
                writer.finish(rate_hz=25.0, model="m")
            files.append(writer.out)
    assert len({file.read_bytes() for file in files}) == 1
    whole = load(files[0])
    assert whole["names"].tolist() == ["first", "long"]
    np.testing.assert_array_equal(whole["frames_1"], rows)
    np.testing.assert_array_equal(whole["mean"][1], mean)
    np.savez(tmp_path / "numpy.npz", frames_1=rows)
    with zipfile.ZipFile(files[0]) as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as theirs:
        assert ours.read("frames_1.npy") == theirs.read("frames_1.npy")


@posix
def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        with pytest.raises(OutputWriteError, match="another process is writing it"):
            write(out)
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob(".x.npz.partial-*"))
    write(out)
    assert list(tmp_path.iterdir()) == [out]


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "x.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.npz").stat().st_mode) == mode


def test_a_file_that_cannot_be_opened_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("dasheng_edge.runtime.output.embeddings_file.zipfile.ZipFile", fail)
    with pytest.raises(OutputWriteError, match="Operation not permitted"):
        write(tmp_path / "new" / "folders" / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real.npz").touch()
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    with EmbeddingsWriter(tmp_path / "link.npz", overwrite=True) as writer:
        writer.add("a", made(1))
        writer.finish(rate_hz=25.0, model="m")
    assert (tmp_path / "link.npz").is_symlink()
    assert load(tmp_path / "real.npz")["names"].tolist() == ["a"]


@pytest.mark.parametrize("size", [0, 100, 700, 1_200])
def test_a_disk_that_fills_up_at_any_place(tmp_path: Path, size: int) -> None:
    def write() -> None:
        with EmbeddingsWriter(tmp_path / "x.npz") as writer:
            writer.add("a", made(10))
            writer.finish(rate_hz=25.0, model="m")

    with largest_file(size), pytest.raises(OutputWriteError, match="nothing was left behind"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputWriteError, match="cannot write"), EmbeddingsWriter(tmp_path / "file" / "x.npz"):
        pass


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    def write() -> None:
        with EmbeddingsWriter(tmp_path / "x.npz") as writer:
            writer.add("a", made(1))
            (tmp_path / "x.npz").write_text("precious")
            writer.finish(rate_hz=25.0, model="m")

    with pytest.raises(OutputExistsError, match="not an npz file"):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_writer_is_used_in_its_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        EmbeddingsWriter(tmp_path / "x.npz").add("a", made(1))


def test_the_same_clips_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        with EmbeddingsWriter(tmp_path / name) as writer:
            writer.add("café \udce9.wav", made(3))
            writer.finish(rate_hz=25.0, model="m")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert load(tmp_path / "a.npz")["names"].tolist() == ["café \udce9.wav"]


def test_frames_are_on_the_disk_before_the_next_clip(tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path / "x.npz") as writer:
        sizes = []
        for index in range(4):
            writer.add(str(index), made(100_000))
            (partial,) = tmp_path.glob(".x.npz.partial-*")
            sizes.append(partial.stat().st_size)
        assert np.diff(sizes) == pytest.approx(100_000 * 4 * 4, rel=0.01)
    assert list(tmp_path.iterdir()) == []
