"""Embeddings of tokens: the same answers with them as with tokens."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.text import token_rows
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import Watch, float_values
from dasheng_edge.runtime.text.token_rows import MAX_KEPT, TokenRows


def audio(decoder: Decoder, rows: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (rows, decoder.n_embd)).astype(np.float32)


def test_one_batch_gives_what_three_gave(decoder: Decoder, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments: list[tuple[int, ...] | NDArray[np.float32]] = [(1, 2, 3), audio(decoder), (4, 5, 6)]
    decoder.prefill(segments)
    merged = decoder.logits()
    batches: list[int] = []
    monkeypatch.setattr(token_rows, "float_values", lambda *_: None)  # as if llama.cpp had no function for them
    other = TokenRows(read_header(tiny_bundle / DECODER))
    assert other.of((4, 5, 6)) is None
    decode = decoder._decode

    def noted(rows: NDArray[Any], *, outputs: int) -> None:
        batches.append(len(rows))
        decode(rows, outputs=outputs)

    monkeypatch.setattr(decoder, "_token_rows", other)
    monkeypatch.setattr(decoder, "_decode", noted)
    decoder.prefill([(9,), audio(decoder)])
    batches.clear()
    decoder.prefill(segments)
    assert batches == [3, 9, 3]
    np.testing.assert_allclose(decoder.logits(), merged, atol=1e-4)


def test_they_are_those_that_llama_cpp_looks_up(decoder: Decoder) -> None:
    seen: list[NDArray[np.float32]] = []
    watch = Watch(lambda name: name == "embd", lambda _, values: seen.append(values.copy()))
    context = decoder.new_context(256, watch=watch)
    tokens = (0, 7, 7, decoder.n_vocab - 1)
    context.extend(np.array(tokens, np.int32), sequence=0, past=0, outputs=0)
    context.close()
    rows = decoder._token_rows.of(tokens)
    assert rows is not None
    np.testing.assert_array_equal(rows, seen[0])


def test_only_the_last_few_are_kept(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[int] = []

    def noted(kind: int, stored: bytes, count: int) -> NDArray[np.float32] | None:
        looked_up.append(count)
        return float_values(kind, stored, count)

    monkeypatch.setattr(token_rows, "float_values", noted)
    rows = TokenRows(read_header(tiny_bundle / DECODER))
    for token in range(MAX_KEPT + 1):
        rows.of((token,))
    assert len(looked_up) == MAX_KEPT + 1
    assert rows.of((MAX_KEPT,)) is not None
    assert len(looked_up) == MAX_KEPT + 1
    assert rows.of((0,)) is not None
    assert len(looked_up) == MAX_KEPT + 2


def test_they_stay_those_of_the_file_that_was_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / DECODER
    shutil.copy(tiny_bundle / DECODER, path)
    rows = TokenRows(read_header(path))
    path.unlink()
    path.write_bytes(b"something else")
    want = TokenRows(read_header(tiny_bundle / DECODER)).of((1, 2))
    np.testing.assert_array_equal(rows.of((1, 2)), want)
    rows.close()


def test_no_token_and_a_file_that_broke_off_are_left_to_llama_cpp(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / DECODER
    shutil.copy(tiny_bundle / DECODER, path)
    header = read_header(path)
    rows = TokenRows(header)
    assert rows.of((-1,)) is None
    assert rows.of((header.tensors["token_embd.weight"].shape[1],)) is None
    os.truncate(path, header.data)
    assert rows.of((1,)) is None


def test_without_a_file_tokens_are_decoded_as_such(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    header = read_header(tiny_bundle / DECODER)
    monkeypatch.setattr(os, "open", too_many)
    assert TokenRows(header).of((1,)) is None


def test_no_tokens_and_too_many_are_not_looked_up(decoder: Decoder) -> None:
    rows = decoder._token_rows
    assert rows.of(()) is None
    assert rows.of((1,) * 257) is None
    decoder.prefill([(1, 2), audio(decoder), (1,) * 257])  # which then go as they are
    assert np.isfinite(decoder.logits()).all()
