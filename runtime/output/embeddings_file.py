"""The npz file of `dasheng-edge embed`, written one clip at a time.

What `numpy.load(path)` finds in it:

- `names` str [n]: the audio files, as they were given; one that could not be read is not among them
- `mean` float32 [n, dim]: row i is the mean over the frames of `names[i]`
- `seconds` float64 [n]: how long each clip is
- `frames_0` ... `frames_{n-1}` float32 [frames, dim]: one vector per 1 / `rate_hz` seconds
- `rate_hz` float64 []: 25
- `model` str []: the name in the bundle's manifest; vectors of different models are not comparable
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.embedder import Embedding

SPOOLED_BYTES = 1 << 24  # in memory: frames of 3.6 minutes, 768 numbers each
COPIED_BYTES = 1 << 20  # at once
_ENTRIES = {f"{name}.npy" for name in ("names", "mean", "seconds", "rate_hz", "model")}


def _why_not_embeddings(path: Path) -> str:
    """Why a file may not be replaced: it is neither empty nor a file of embeddings; "" if it may."""
    if path.is_dir():
        return f"it is a folder; name a file in it, such as {path / 'out.npz'}"
    if not path.is_file():  # a device, or a pipe that somebody reads
        return "it is not a regular file"
    if not path.stat().st_size:
        return ""
    try:
        with zipfile.ZipFile(path) as zipped:
            missing = sorted(_ENTRIES - set(zipped.namelist()))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "it is not an npz file"
    return f"it lacks {missing[0]}" if missing else ""


class RunningClip:
    """A clip whose frames come some at a time, on disk but for the last few; `spool` is for who makes them."""

    def __init__(self, frames: IO[bytes], spool: IO[bytes]) -> None:
        self._file, self.spool = frames, spool
        self._sum: NDArray[np.float64] = np.zeros(0)
        self.frames = 0
        self.audio_s = 0.0

    def add(self, frames: NDArray[np.float32]) -> None:
        """More frames, float32 [n, dim]."""
        self._file.write(np.ascontiguousarray(frames, "<f4").data)
        # Row by row from the first on, as a sum over all of them at once.
        rows = np.concatenate([self._sum[None], frames]) if self.frames else frames
        self._sum = rows.sum(axis=0, dtype=np.float64)
        self.frames += len(frames)

    @property
    def mean(self) -> NDArray[np.float32]:
        """Over the frames, float32 [dim]."""
        return (self._sum / self.frames).astype(np.float32)

    def write(self, file: IO[bytes]) -> None:
        """Write them as `numpy.save` writes an array of all."""
        shape = (self.frames, len(self._sum))
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, COPIED_BYTES)


class EmbeddingsWriter:
    """Writes the file under a temporary name beside `out` and renames it when it is complete.

    Each clip's frames go to the disk as they come, so memory does not grow with their number. Leaving the
    block before `finish` (an error, Ctrl-C) removes what was written, and what a killed writer of the same file
    could not remove, the next one does.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or is something other than such a file.
        OutputWriteError: the disk is full, the place is not writable, or another writer is at work there.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False) -> None:
        self._partial = PartialOutput(
            out, overwrite=overwrite, what="a file of embeddings", why_not=_why_not_embeddings
        )
        self.out = self._partial.out
        self._names: list[str] = []
        self._means: list[NDArray[np.float32]] = []
        self._seconds: list[float] = []
        self._zip: zipfile.ZipFile | None = None

    def __len__(self) -> int:
        """Clips that were added."""
        return len(self._names)

    def __enter__(self) -> EmbeddingsWriter:
        self._partial.open(folder=False)
        return self

    def add(self, name: str, embedding: Embedding) -> None:
        """Write one clip."""
        with self.clip(name) as clip:
            clip.add(embedding.frames)
            clip.audio_s = embedding.audio_s

    @contextlib.contextmanager
    def clip(self, name: str) -> Generator[RunningClip]:
        """Write one clip some frames at a time; after an error in the block, nothing of it is in the file.

        An `OSError` that is none of ours is one of the files here, which lie beside the output and have no names.
        """
        folder = str(self._partial.path.parent)
        with (
            self._partial.write_errors(),
            tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=folder) as frames,
            tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=folder) as spool,
        ):
            clip = RunningClip(frames, spool)
            yield clip
            with self._entry(f"frames_{len(self._names)}") as file:
                clip.write(file)
        self._names.append(name)
        self._means.append(clip.mean)
        self._seconds.append(clip.audio_s)

    def finish(self, *, rate_hz: float, model: str) -> None:
        """Write the rest and move the file to its final name; at least one clip was added."""
        for name, array in {
            "names": np.array(self._names),
            "mean": np.stack(self._means),
            "seconds": np.array(self._seconds),
            "rate_hz": np.array(rate_hz),
            "model": np.array(model),
        }.items():
            self._write(name, array)
        with self._partial.write_errors():
            self._opened().close()
            self._partial.move()
        self._zip = None

    def _write(self, name: str, array: NDArray[Any]) -> None:
        with self._entry(name) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    @contextlib.contextmanager
    def _entry(self, name: str) -> Generator[IO[bytes]]:
        # A fixed date, so that the same clips make the same file.
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with self._partial.write_errors(), self._opened().open(entry, "w", force_zip64=True) as file:
            yield file

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._partial.path, "w", zipfile.ZIP_STORED)
        return self._zip

    def __exit__(self, *_: object) -> None:
        zipped, self._zip = self._zip, None
        if zipped is not None:
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or an entry is open still
                zipped.close()
        self._partial.discard()
