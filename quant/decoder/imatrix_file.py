"""Importance matrices: the mean square of every input of every matrix, in llama.cpp's GGUF format.

Format: tools/imatrix/imatrix.cpp of llama.cpp. For each matrix `NAME.in_sum2` float32 [1, inputs], the sum of
squares over rows, and `NAME.counts` float32 [1, 1], the number of rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.errors import ClipsError, OutputExistsError
from dasheng_edge.runtime.gguf.header import STRING, UINT32, Header, read_header

from .gguf_file import StoredTensor, gguf_tensors

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


@dataclass(frozen=True)
class Entry:
    """What was seen at one matrix."""

    sums: NDArray[np.float32]  # [inputs], of squares
    rows: int


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix, by llama.cpp's names of the decoder's tensors."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunks: int = 0
    chunk_size: int = 0

    def importance(self, name: str) -> NDArray[np.float32]:
        """What the quantizer weighs with: mean squares, float32 [inputs]; ones where nothing was seen."""
        entry = self.entries[name]
        if not entry.rows:
            return np.ones_like(entry.sums)
        return entry.sums / np.float32(entry.rows)


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a file that `llama-quantize --imatrix` takes."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # of a model's architecture, which this has none of
    try:
        writer.add_type("imatrix")
        writer.add_array(_KEYS[0], list(imatrix.datasets))
        writer.add_uint32(_KEYS[1], imatrix.chunks)
        writer.add_uint32(_KEYS[2], imatrix.chunk_size)
        for name in sorted(imatrix.entries):
            entry = imatrix.entries[name]
            writer.add_tensor(name + _SUMS, entry.sums.astype(np.float32)[None])
            writer.add_tensor(name + _COUNTS, np.array([[entry.rows]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, of ours or of `llama-imatrix`.

    Raises:
        ClipsError: there is no such file, it is no importance matrix, is damaged, or holds NaN or infinity.
    """
    if not path.is_file():
        raise ClipsError(f"there is no importance matrix {path}; name a GGUF file made by this tool or llama-imatrix")
    try:
        header = read_header(path, _KEYS[:1])
        datasets = _datasets(header)
        tensors = {name: _checked(name, tensor) for name, tensor in gguf_tensors(path).items()}
    except (ValueError, OSError) as error:
        raise ClipsError(
            f"{path} is not an importance matrix ({error}); make one with `llama-imatrix --output-format gguf`, or "
            "leave it out and pass --calibrate CLIPS"
        ) from error
    entries = {}
    for name in tensors:
        if not name.endswith(_SUMS):
            continue
        matrix = name.removesuffix(_SUMS)
        sums, counts = (_values(tensors.get(matrix + part)) for part in (_SUMS, _COUNTS))
        if counts.size != 1 or not all(map(_is_sum, (counts, sums))):
            count = f"counts {', '.join(f'{one:g}' for one in counts[:3])}" if counts.size else "no count"
            raise ClipsError(
                f"{path}: {matrix} has {count} and sums between {sums.min():g} and {sums.max():g}; expected one count "
                "and finite sums of squares: measure it again"
            )
        entries[matrix] = Entry(sums, round(float(counts[0])))
    if not entries:
        raise ClipsError(f"{path} holds no matrix; measure it again")
    return Imatrix(entries, datasets, header.number(_KEYS[1]), header.number(_KEYS[2]))


def _checked(name: str, tensor: StoredTensor) -> StoredTensor:
    if tensor.kind != GGMLQuantizationType.F32:
        raise ValueError(f"{name[:80]!r} has the type {tensor.kind.name}, expected F32")
    return tensor


def _values(tensor: StoredTensor | None) -> NDArray[np.float32]:
    """All values of a tensor of float32; none of none."""
    return np.empty(0, np.float32) if tensor is None else tensor.rows(0, tensor.shape[0]).reshape(-1)


def _is_sum(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _datasets(header: Header) -> tuple[str, ...]:
    """The data sets that a file names, if it is an importance matrix.

    Raises:
        ValueError: it is none.
    """
    if header.text("general.type") != "imatrix":
        raise ValueError("its general.type is not 'imatrix'")
    kinds = {key: (header.values[key].kind, header.values[key].is_array) for key in _KEYS if key in header.values}
    if kinds != dict(zip(_KEYS, ((STRING, True), (UINT32, False), (UINT32, False)), strict=True)):
        raise ValueError(f"it lacks one of {', '.join(_KEYS)}, or states it as another type")
    return tuple(text.decode("utf-8") for text in header.array(_KEYS[0]))


@contextmanager
def saved_imatrix(
    path: Path | None, bundles: tuple[Path, ...], *, overwrite: bool
) -> Generator[Callable[[Path], None]]:
    """What copies a measured file to `path`, which gets its name when the block ends without an error.

    Raises:
        OutputExistsError: something is there that is no importance matrix, or may not be overwritten; or the place lies
            in one of the bundles.
        OutputWriteError: it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    for folder in bundles:
        if path.resolve().is_relative_to(folder.resolve()):
            raise OutputExistsError(f"{path} lies in the bundle {folder}; choose another --save-imatrix")
    output = PartialOutput(
        path, overwrite=overwrite, what="an importance matrix", why_not=_why_no_imatrix, option="--save-imatrix"
    )

    def save(measured: Path) -> None:
        with output.write_errors():
            shutil.copyfile(measured, output.path)

    output.open(folder=False)
    try:
        yield save
        with output.write_errors():
            output.move()
    finally:
        output.discard()


def _why_no_imatrix(path: Path) -> str:
    try:
        read_imatrix(path)
    except ClipsError as error:
        return str(error)
    return ""
