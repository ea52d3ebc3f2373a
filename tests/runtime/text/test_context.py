"""A context computes with the threads that its governor allows, and says the same with any number of them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError
from dasheng_edge.runtime.text import context, llama
from dasheng_edge.runtime.text.decoder import Decoder

PROMPT, ANSWER = tuple(range(1, 40)), 12
SETTINGS = {"prefill_threads": 3, "decode_threads": 2}


class Allowing:
    """A governor that others leave another number of cores at each step."""

    def __init__(self, *free: int) -> None:
        self.free, self.step = free, 0

    def threads(self, *limits: int) -> tuple[int, ...]:
        self.step += 1
        return tuple(min(limit, self.free[self.step % len(self.free)]) for limit in limits)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The threads that each step computes with."""
    library, steps = llama.llama_cpp_library(), list[tuple[int, int]]()
    decode = library.llama_decode

    def counted(pointer: Any, batch: Any) -> Any:
        steps.append((library.llama_n_threads(pointer), library.llama_n_threads_batch(pointer)))
        return decode(pointer, batch)

    monkeypatch.setattr(library, "llama_decode", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return steps


def answer(path: Path, settings: EngineSettings) -> tuple[int, ...]:
    decoder = Decoder.open(path, settings)
    try:
        decoder.prefill([PROMPT], reserve=ANSWER)
        return tuple(decoder.generate(ANSWER))
    finally:
        decoder.close()


@pytest.mark.parametrize("free", [(1,), (4,), (1, 2, 3), (3, 1, 1, 2)])
def test_threads_follow_the_governor_and_the_answer_does_not(
    tiny_bundle: Path, used: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, free: tuple[int, ...]
) -> None:
    path = tiny_bundle / DECODER
    wanted = answer(path, EngineSettings())
    used.clear()
    governor, allowed = Allowing(*free), Allowing(*free)
    monkeypatch.setattr(context, "governor", lambda: governor)
    assert answer(path, EngineSettings(**SETTINGS)) == wanted  # type: ignore[arg-type]
    assert used == [allowed.threads(2, 3) for _ in used]


def test_threads_stay_as_they_are_set_where_that_is_asked_for(
    tiny_bundle: Path, used: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "governor", lambda: Allowing(1))
    answer(tiny_bundle / DECODER, EngineSettings(**SETTINGS, adaptive_threads=False))  # type: ignore[arg-type]
    assert set(used) == {(2, 3)}


def test_of_a_row_whose_token_llama_chooses_one_logit_is_copied(decoder: Decoder) -> None:
    library, rows = llama.llama_cpp_library(), np.array(PROMPT, np.int32)
    made = decoder.new_context(256, sequences=2, outputs=2)
    made.extend(rows, sequence=0, past=0, outputs=1)
    logits = made.logits(-1).copy()
    made.choose(1, greedily=True)
    made.extend(rows, sequence=1, past=0, outputs=1)
    assert made.chosen(-1) == logits.argmax()
    assert library.llama_get_sampled_logits_count_ith(made.pointer, -1) == 1
    assert library.llama_get_sampled_logits_ith(made.pointer, -1)[0] == logits.max()
    made.close()


@pytest.mark.parametrize("missing", ["nothing was chosen", "what was chosen is no number"])
def test_a_token_that_llama_could_not_choose_is_an_error(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    made = decoder.new_context(256)
    if missing != "nothing was chosen":
        made.choose(0, greedily=True)
        nan = (ctypes.c_float * 1)(np.nan)
        monkeypatch.setattr(llama.llama_cpp_library(), "llama_get_sampled_logits_ith", lambda *_: nan)
    made.extend(np.array(PROMPT, np.int32), sequence=0, past=0, outputs=1)
    with pytest.raises(DecoderError, match="NaN or infinity"):
        made.chosen(-1)
    made.close()
