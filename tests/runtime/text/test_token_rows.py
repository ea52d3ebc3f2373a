"""Embeddings of tokens: the same answers with them as with tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.text import token_rows
from dasheng_edge.runtime.text.context import Context
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import Watch
from dasheng_edge.runtime.text.token_rows import MAX_KEPT, TokenRows


def audio(decoder: Decoder, rows: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (rows, decoder.n_embd)).astype(np.float32)


def test_one_batch_gives_what_three_gave(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    segments: list[tuple[int, ...] | NDArray[np.float32]] = [(1, 2, 3), audio(decoder), (4, 5, 6)]
    decoder.prefill(segments)
    merged = decoder.logits()
    batches: list[int] = []
    monkeypatch.setattr(token_rows, "LOOKED_UP", "nothing of that name")  # as if llama.cpp did not show them
    other = TokenRows(decoder.new_context, decoder.n_embd)
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


def test_the_decoders_own_rows_are_left_alone(decoder: Decoder) -> None:
    decoder.prefill([(1, 2, 3), audio(decoder)])
    want = decoder.logits()
    assert TokenRows(decoder.new_context, decoder.n_embd).of((8, 9)) is not None
    np.testing.assert_array_equal(decoder.logits(), want)


def test_only_the_last_few_are_kept(decoder: Decoder) -> None:
    looked_up: list[int] = []

    def new_context(n_ctx: int, *, watch: Watch) -> Context:
        looked_up.append(n_ctx)
        return decoder.new_context(n_ctx, watch=watch)

    rows = TokenRows(new_context, decoder.n_embd)
    for token in range(MAX_KEPT + 1):
        rows.of((token,))
    assert len(looked_up) == MAX_KEPT + 1
    assert rows.of((MAX_KEPT,)) is not None
    assert len(looked_up) == MAX_KEPT + 1
    assert rows.of((0,)) is not None
    assert len(looked_up) == MAX_KEPT + 2


def test_no_tokens_and_too_many_are_not_looked_up(decoder: Decoder) -> None:
    rows = TokenRows(decoder.new_context, decoder.n_embd)
    assert rows.of(()) is None
    assert rows.of((1,) * 257) is None
    decoder.prefill([(1, 2), audio(decoder), (1,) * 257])  # which then go as they are
    assert np.isfinite(decoder.logits()).all()
