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
import os
import tempfile
import zipfile
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embedder import Embedding
from .errors import OutputExistsError, OutputWriteError


class EmbeddingsWriter:
    """Writes the file under a temporary name beside `out` and renames it when it is complete.

    Each clip's frames go to the disk as they come, so memory does not grow with their number. Leaving the
    block before `finish` (an error, Ctrl-C) removes what was written.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or is a folder.
        OutputWriteError: the disk is full or the place is not writable.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False) -> None:
        self.out = Path(out).resolve()  # a link stays, and what it points to is replaced
        self._overwrite = overwrite
        self._names: list[str] = []
        self._means: list[NDArray[np.float32]] = []
        self._seconds: list[float] = []
        self._path: Path | None = None  # of the temporary file
        self._zip: zipfile.ZipFile | None = None
        self._check_out()

    def __len__(self) -> int:
        """Clips that were added."""
        return len(self._names)

    def _check_out(self) -> None:
        if self.out.is_dir():
            raise OutputExistsError(f"{self.out} is a folder; name a file in it, such as {self.out / 'out.npz'}")
        if self.out.exists() and not self._overwrite:
            raise OutputExistsError(f"{self.out} already exists; pass --overwrite or choose another --out")

    def __enter__(self) -> EmbeddingsWriter:
        with self._write_errors():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(prefix=f".{self.out.name}.partial-", dir=self.out.parent)
            self._path = Path(name)
            os.close(number)
            self._path.chmod(0o644)
            self._zip = zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED)
        return self

    def add(self, name: str, embedding: Embedding) -> None:
        """Write one clip."""
        self._write(f"frames_{len(self._names)}", embedding.frames)
        self._names.append(name)
        self._means.append(embedding.mean)
        self._seconds.append(embedding.audio_s)

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
        zipped, path = self._opened()
        with self._write_errors():
            zipped.close()
            self._check_out()
            path.replace(self.out)
        self._zip = self._path = None

    def _write(self, name: str, array: NDArray[Any]) -> None:
        zipped, _ = self._opened()
        # A fixed date, so that the same clips make the same file.
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with self._write_errors(), zipped.open(entry, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def _opened(self) -> tuple[zipfile.ZipFile, Path]:
        if self._zip is None or self._path is None:
            raise RuntimeError("EmbeddingsWriter is used outside its `with` block")
        return self._zip, self._path

    @contextlib.contextmanager
    def _write_errors(self) -> Generator[None]:
        try:
            yield
        except (OutputExistsError, OutputWriteError):
            raise
        except OSError as error:
            raise OutputWriteError(
                f"cannot write {self.out}: {error.strerror or error}; nothing was left behind: free some space or "
                "choose another --out"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        zipped, path = self._zip, self._path
        self._zip = self._path = None
        if zipped is not None:
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or an entry is open still
                zipped.close()
        if path is not None:
            path.unlink(missing_ok=True)
