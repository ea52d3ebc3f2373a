"""What a context takes, counted before it is made, against what llama.cpp says that it took."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, MemoryShortError
from dasheng_edge.runtime.text import context as context_module
from dasheng_edge.runtime.text.context_memory import context_bytes
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import llama_cpp_library, llama_log


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes to be filled of each context."""
    counts: list[int] = []

    def count(model: Any, params: Any) -> tuple[int, int]:
        counts.append(context_bytes(model, params)[0])
        return context_bytes(model, params)

    monkeypatch.setattr(context_module, "context_bytes", count)
    return counts


@pytest.mark.parametrize(("n_ctx", "sequences", "outputs"), [(256, 1, 1), (512, 1, 64), (4096, 1, 1), (8192, 32, 32)])
def test_it_is_what_llama_cpp_takes_and_not_much_more(
    tiny_bundle: Path, counted: list[int], n_ctx: int, sequences: int, outputs: int
) -> None:
    decoder = Decoder.open(tiny_bundle / DECODER, EngineSettings())
    llama, said = llama_cpp_library(), []
    listen = llama.llama_log_callback(lambda _, text, __: said.append(text.decode("utf-8", "replace")))
    llama.llama_log_set(listen, None)
    try:
        decoder.new_context(n_ctx, sequences=sequences, outputs=outputs).close()
    finally:
        llama.llama_log_set(llama_log()._callback, None)
        decoder.close()
    sizes = re.findall(r"(?:KV|compute|output) buffer size = +([\d.]+) MiB", "".join(said))
    took = sum(map(float, sizes)) * 2**20
    assert len(sizes) == 3
    assert took <= counted[-1] + 20_000 <= 1.4 * took + 2_000_000


def test_a_context_that_does_not_fit_is_refused_before_it_is_made(decoder: Decoder) -> None:
    with pytest.raises(MemoryShortError, match=r"a context of \d+ positions for 1 answers at once needs about \d+ MB"):
        decoder.new_context(2**31 - 256)


def test_what_llama_cpp_says_of_memory_is_passed_on(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        llama_log().lines.append("failed to allocate compute pp buffers")

    monkeypatch.setattr(decoder._llama, "llama_init_from_model", fail)
    with pytest.raises(MemoryShortError, match="gets no memory for 256 positions"):
        decoder.prefill([(1,)])
    monkeypatch.setattr(decoder._llama, "llama_init_from_model", lambda *_: None)
    with pytest.raises(DecoderError, match="cannot make a context"):
        decoder.prefill([(1,)])
