"""Files of importance matrices: what is written comes back, and what is none is refused."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest

from dasheng_edge.quant.decoder.imatrix_file import Entry, Imatrix, read_imatrix, write_imatrix
from dasheng_edge.runtime.errors import ClipsError


def test_a_file_comes_back(tmp_path: Path) -> None:
    entries = {"blk.0.attn_q.weight": Entry(np.arange(5, dtype=np.float32), 3), "x": Entry(np.ones(2, np.float32), 0)}
    write_imatrix(tmp_path / "x.gguf", Imatrix(entries, ("scenes", "more"), 4, 512))
    got = read_imatrix(tmp_path / "x.gguf")
    assert (got.datasets, got.chunks, got.chunk_size) == (("scenes", "more"), 4, 512)
    assert got.entries.keys() == entries.keys()
    np.testing.assert_array_equal(got.importance("blk.0.attn_q.weight"), np.arange(5, dtype=np.float32) / np.float32(3))
    np.testing.assert_array_equal(got.importance("x"), [1, 1])  # nothing was seen


def damaged(
    tmp_path: Path,
    sums: list[float],
    *,
    kind: str = "imatrix",
    counts: bool = True,
    keys: bool = True,
    count: float = 1.0,
) -> Path:
    path = tmp_path / "damaged.gguf"
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    if keys:
        writer.add_array("imatrix.datasets", ["a"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 1)
    writer.add_tensor("m.in_sum2", np.array([sums], np.float32))
    if counts:
        writer.add_tensor("m.counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_are_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(ClipsError, match="there is no importance matrix"):
        read_imatrix(tmp_path / "nothing.gguf")
    (tmp_path / "text").write_text("no GGUF at all")
    with pytest.raises(ClipsError, match="is not an importance matrix"):
        read_imatrix(tmp_path / "text")
    with pytest.raises(ClipsError, match=r"its general\.type is not 'imatrix'"):
        read_imatrix(damaged(tmp_path, [1.0], kind="model"))
    with pytest.raises(ClipsError, match=r"it lacks one of imatrix\.datasets"):
        read_imatrix(damaged(tmp_path, [1.0], keys=False))
    with pytest.raises(ClipsError, match="m has no count"):
        read_imatrix(damaged(tmp_path, [1.0], counts=False))
    for wrong in (float("inf"), -1.0):
        with pytest.raises(ClipsError, match=r"m has counts 1 and sums between .*; expected one count and finite sums"):
            read_imatrix(damaged(tmp_path, [1.0, wrong]))
    with pytest.raises(ClipsError, match="expected one count and finite sums"):
        read_imatrix(damaged(tmp_path, [1.0, float("nan")]))
    for wrong in (float("nan"), float("inf"), -3.0):
        with pytest.raises(ClipsError, match=r"m has counts .* expected one count and finite sums"):
            read_imatrix(damaged(tmp_path, [1.0], count=wrong))
    write_imatrix(tmp_path / "empty.gguf", Imatrix({}, ("a",)))
    with pytest.raises(ClipsError, match=r"holds no matrix|is not an importance matrix"):
        read_imatrix(tmp_path / "empty.gguf")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.gguf"
    entries = {f"m{i}": Entry(np.ones(64, np.float32), 1) for i in range(4)}
    write_imatrix(path, Imatrix(entries, ("a",)))
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    with pytest.raises(ClipsError, match=r"x\.gguf is not an importance matrix \(.*make one with `llama-imatrix"):
        read_imatrix(path)


@pytest.mark.parametrize("place", range(24, 400, 8))
@pytest.mark.parametrize("stated", [2**40, 2**63, 2**64 - 1])
def test_sizes_of_terabytes_are_not_believed(tmp_path: Path, place: int, stated: int) -> None:
    """Wherever in a file: as the length of a text, of an array, of a tensor, or as its place."""
    path = tmp_path / "x.gguf"
    write_imatrix(path, Imatrix({"m": Entry(np.ones(64, np.float32), 1)}, ("a",)))
    content = bytearray(path.read_bytes())
    content[place : place + 8] = stated.to_bytes(8, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with suppress(ClipsError):
        read_imatrix(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_older_format_is_refused(tmp_path: Path) -> None:
    """llama.cpp's .dat: a count, then the length of a name, the name, calls, values."""
    (tmp_path / "x.dat").write_bytes(struct.pack("<ii", 2**31 - 1, 2**31 - 1) + b"blk.0.attn_q.weight" + bytes(64))
    with pytest.raises(ClipsError, match=r"is not a GGUF file of version 3.*--output-format gguf"):
        read_imatrix(tmp_path / "x.dat")


@pytest.mark.parametrize("kind", ["F16", "F64", "I32"])
def test_sums_of_another_type_are_refused(tmp_path: Path, kind: str) -> None:
    content = damaged(tmp_path, [1.0] * 64).read_bytes()
    described = struct.pack("<IQQI", 2, 64, 1, 0)
    assert content.count(described) == 1
    changed = struct.pack("<IQQI", 2, 64, 1, int(gguf.GGMLQuantizationType[kind]))
    (tmp_path / "x.gguf").write_bytes(content.replace(described, changed))
    with pytest.raises(ClipsError, match="is not an importance matrix"):
        read_imatrix(tmp_path / "x.gguf")


def test_a_folder_is_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(ClipsError, match="there is no importance matrix"):
        read_imatrix(tmp_path)


def test_what_is_written_is_llama_cpps_format(tmp_path: Path) -> None:
    """tools/imatrix/imatrix.cpp: two tensors for a matrix, and no model's architecture."""
    write_imatrix(tmp_path / "x.gguf", Imatrix({"b": Entry(np.ones(3, np.float32), 7)}, ("scenes",), 4, 512))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert facts == {
        "general.type": "imatrix", "imatrix.datasets": ["scenes"], "imatrix.chunk_count": 4, "imatrix.chunk_size": 512,
    }  # fmt: skip
    tensors = {tensor.name: (tuple(tensor.shape), tensor.data.tolist()) for tensor in reader.tensors}
    assert tensors == {"b.in_sum2": ((3, 1), [[1, 1, 1]]), "b.counts": ((1, 1), [[7]])}


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_imatrix(tmp_path / "gone" / "x.gguf", Imatrix({}, ()))
