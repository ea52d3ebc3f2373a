"""GGUF files are read as the gguf package reads them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.runtime.errors import GgufError


def write_file(path: Path, tokens: int = 3) -> Path:
    """A file with a field of every kind and tensors of several types."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    for kind in gguf.GGUFValueType:
        if kind not in (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING):
            writer.add_key_value(f"test.{kind.name}", 1, kind)
    writer.add_string("test.text", "Écoute")
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.floats", [0.5])
    writer.add_token_list([f"token {i}" for i in range(tokens)])
    writer.add_tensor("vector", generator.normal(size=5).astype(np.float32))
    writer.add_tensor("half", generator.normal(size=(7, 3)).astype(np.float16))
    blocks = gguf.quants.quantize(generator.normal(size=(6, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.gguf")
    got = gguf_tensors(path)
    want = gguf.GGUFReader(path).tensors

    assert list(got) == [tensor.name for tensor in want]
    for tensor in want:
        mine = got[tensor.name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert mine.kind == tensor.tensor_type
        assert mine.shape == tuple(reversed(tensor.shape.tolist())) == values.shape
        assert mine.start == tensor.data_offset
        np.testing.assert_array_equal(mine.rows(0, mine.shape[0]), values)
        np.testing.assert_array_equal(mine.rows(2, 4), values[2:4])


def test_a_large_vocabulary_is_passed_over(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.gguf", tokens=50_000)
    tracemalloc.start()
    gguf_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(100), r"x\.gguf is not a GGUF file of version 3"),
        (b"GGUF\x02\0\0\0" + bytes(100), "is not a GGUF file of version 3"),
        (b"", "is not a GGUF file"),
        (b"GGUF\x03\0\0\0", "truncated or broken"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + bytes(8) + b"\x63\0\0\0", "truncated or broken .*99"),
    ],
)
def test_a_broken_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(GgufError, match=message):
        gguf_tensors(tmp_path / "x.gguf")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_truncated_header_is_refused(kept: float, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.gguf")
    header = min(tensor.start for tensor in gguf_tensors(path).values())
    path.write_bytes(path.read_bytes()[: int(header * kept)])

    with pytest.raises(GgufError, match="truncated or broken"):
        gguf_tensors(path)


def test_types_that_no_decoder_is_stored_in_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tensor("m", np.ones((2, 256), np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"stores 'm' \(256, 2\) as type 28, which is none of a decoder's"):
        gguf_tensors(tmp_path / "x.gguf")


def test_any_damage_is_an_error_of_ours(tmp_path: Path) -> None:
    path, generator = write_file(tmp_path / "x.gguf"), np.random.default_rng(0)
    content = path.read_bytes()
    header = min(tensor.start for tensor in gguf_tensors(path).values())
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.integers(header)] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(len(content))] if generator.random() < 0.2 else damaged)
        try:
            for tensor in gguf_tensors(path).values():
                tensor.rows(0, 1)
        except GgufError:
            pass
