"""Rows of the tables are copied byte by byte in every type; what else is in the file stays as it is."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from dasheng_edge.quant.vocabulary.gguf_cut import new_ids, write_cut_gguf
from dasheng_edge.runtime.gguf.check import BLOCKS, MERGES, TOKEN_TYPES, TOKENS
from dasheng_edge.runtime.gguf.header import Header, read_header

WIDTH, NAMES = 256, ("a", "b", "c", "ab", "abc", "<x>", "bc")
KEPT = np.array([True, True, False, True, False, True, True])


def write_decoder(path: Path, kind: int, *, tied: bool) -> Path:
    """A decoder's tables and a matrix, with random bytes."""
    writer, bytes_of = gguf.GGUFWriter(path, "qwen2"), np.random.default_rng(kind)
    writer.add_size_label("4K")
    writer.add_vocab_size(len(NAMES))
    writer.add_tags(["one", "two"])
    writer.add_token_list(NAMES)
    writer.add_token_types([1, 1, 1, 1, 1, 3, 1])
    writer.add_token_merges(["a b", "ab c", "b c", "a bc"])
    writer.add_eos_token_id(5)
    writer.add_add_bos_token(False)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, rows in (("output_norm.weight", 3), ("token_embd.weight", 7), ("output.weight", 7)):
        if name == "output.weight" and tied:
            continue
        values, size = BLOCKS[kind]
        content = bytes_of.integers(0, 256, (rows, WIDTH // values * size), np.uint8)
        writer.add_tensor(name, content, raw_dtype=GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def whole(path: Path) -> Header:
    return read_header(path, read_header(path).values)


def rows(header: Header, name: str) -> list[bytes]:
    tensor = header.tensors[name]
    values, size = BLOCKS[tensor.kind]
    row, content = tensor.shape[0] // values * size, header.path.read_bytes()
    start = header.data + tensor.offset
    return [content[start + i * row : start + (i + 1) * row] for i in range(math.prod(tensor.shape[1:]))]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_are_copied_as_they_are_stored(kind: int, tied: bool, tmp_path: Path) -> None:
    before = whole(write_decoder(tmp_path / "whole.gguf", kind, tied=tied))
    write_cut_gguf(tmp_path / "cut.gguf", before, KEPT, 1_000_000)
    after = whole(tmp_path / "cut.gguf")
    assert [*after.tensors] == [*before.tensors]
    for name, tensor in after.tensors.items():
        kept = KEPT.tolist() if name != "output_norm.weight" else [True] * 3
        assert rows(after, name) == [row for row, keeps in zip(rows(before, name), kept, strict=True) if keeps]
        assert (tensor.kind, tensor.shape[0], tensor.offset % 32) == (kind, WIDTH, 0)
    assert after.size % 32 == 0


def test_the_rest_of_the_header_follows(tmp_path: Path) -> None:
    before = whole(write_decoder(tmp_path / "whole.gguf", 0, tied=False))
    write_cut_gguf(tmp_path / "cut.gguf", before, KEPT, 596_000_000)
    after = whole(tmp_path / "cut.gguf")
    assert [*after.values] == [*before.values]
    changed = {key for key in before.values if before.values[key] != after.values[key]}
    assert changed == {
        TOKENS,
        TOKEN_TYPES,
        MERGES,
        "tokenizer.ggml.eos_token_id",
        "qwen2.vocab_size",
        "general.size_label",
    }
    assert after.array(TOKENS) == [b"a", b"b", b"ab", b"<x>", b"bc"]
    assert after.array(TOKEN_TYPES) == [1, 1, 1, 3, 1]
    assert after.array(MERGES) == [b"a b"]  # of the others, a part is gone, or what they make
    assert (after.number("tokenizer.ggml.eos_token_id"), after.number("qwen2.vocab_size")) == (3, 5)
    assert after.text("general.size_label") == "596M"
    assert after.array("general.tags") == [b"one", b"two"]


def test_ids_keep_their_order() -> None:
    assert new_ids(KEPT)[KEPT].tolist() == [0, 1, 2, 3, 4]
