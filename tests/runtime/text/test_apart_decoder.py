"""A decoder whose weights come and go, against one that stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import CaptionerBusyError, DecoderError, GgufError
from dasheng_edge.runtime.machine.turns import Turns
from dasheng_edge.runtime.text import apart_decoder
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.apart_decoder import ApartDecoder
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.model import load_model
from dasheng_edge.runtime.text.sequences import Sequences

LOW = EngineSettings(memory="low")


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def apart(tiny_bundle: Path, turns: Turns) -> Iterator[ApartDecoder]:
    decoder = ApartDecoder(tiny_bundle / DECODER, LOW, Bundle.open(tiny_bundle).decoder_facts, turns)
    yield decoder
    decoder.close()


def test_it_knows_what_a_decoder_knows(apart: ApartDecoder, decoder: Decoder, turns: Turns) -> None:
    for _ in range(2):  # with its tokenizer, and without
        assert (apart.n_embd, apart.n_vocab, apart.context_length) == (
            decoder.n_embd, decoder.n_vocab, decoder.context_length,
        )  # fmt: skip
        for name in ("control_tokens", "added_tokens", "special_texts", "chat_template", "metadata"):
            assert getattr(apart, name) == getattr(decoder, name)
        every = range(decoder.n_vocab)
        assert [*map(apart.piece, every)] == [*map(decoder.piece, every)]
        assert [*map(apart.is_end, every)] == [*map(decoder.is_end, every)]
        assert apart.detokenize(every) == decoder.detokenize(every)
        apart.new_context(256).close()
        assert not apart._free_model.alive
    assert apart.tokenize("a dog <|im_end|>") == decoder.tokenize("a dog <|im_end|>")
    assert apart.tokenize("a dog <|im_end|>", True) == decoder.tokenize("a dog <|im_end|>", parse_special=True)
    apart.new_context(256).close()
    turns.take("audio")
    assert apart.tokenize("a dog <|im_end|>") == decoder.tokenize("a dog <|im_end|>")
    assert not apart._free_model.alive  # it was kept


def test_it_computes_the_same_bits(apart: ApartDecoder, tiny_bundle: Path, turns: Turns) -> None:
    whole = Decoder.open(tiny_bundle / DECODER, LOW)
    rows = np.random.default_rng(0).normal(0, 0.1, (90, whole.n_embd)).astype(np.float32)
    for _ in range(2):
        apart.prefill([(1, 2, 3), rows, (4, 5)])
        whole.prefill([(1, 2, 3), rows, (4, 5)])
        np.testing.assert_array_equal(apart.logits(), whole.logits())
        turns.take("audio")
        assert apart.n_ctx == 0
    whole.close()


def test_answers_in_the_making_are_not_interrupted(apart: ApartDecoder, turns: Turns) -> None:
    sequences = Sequences(apart, 2, keep=True)
    answer = Answer([(1, 2, 3)], 4, Sampling())
    sequences.begin([answer])
    with pytest.raises(CaptionerBusyError, match='memory="low"'):
        turns.take("audio")
    while not answer.ended:
        sequences.step()
    turns.take("audio")
    assert sequences.positions == 0
    again = Answer([(1, 2, 3)], 4, Sampling())
    sequences.begin([again])  # as if nothing had been asked before
    while not again.ended:
        sequences.step()
    assert again.tokens == answer.tokens
    sequences.close()


def test_a_context_is_no_larger_than_the_request(apart: ApartDecoder) -> None:
    sequences = Sequences(apart, 1, keep=True)
    for rows, positions in ((10, 256), (300, 512)):
        answer = Answer([(1,) * rows], 1, Sampling())
        sequences.begin([answer])
        assert answer.error is None
        assert sequences.positions == positions
    sequences.close()


def test_closed_means_closed(apart: ApartDecoder) -> None:
    apart.close()
    apart.close()
    with pytest.raises(DecoderError, match="closed"):
        apart.new_context(256)


def test_keys_that_no_block_fits_stay_f16(tiny_bundle: Path, turns: Turns) -> None:
    facts = Bundle.open(tiny_bundle).decoder_facts
    decoder = ApartDecoder(tiny_bundle / DECODER, replace(LOW, kv_type="q8_0"), facts, turns)
    decoder.prefill([(1, 2, 3)])
    assert decoder.settings.kv_type == ("f16" if decoder_head(decoder) % 32 else "q8_0")
    decoder.close()


def decoder_head(decoder: Decoder) -> int:
    heads = int(decoder.metadata["qwen2.attention.head_count"])
    return int(decoder.metadata.get("qwen2.attention.key_length", decoder.n_embd // heads))


def test_a_file_is_checked_once_and_again_if_it_is_another(
    tiny_bundle: Path, tmp_path: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, checked = tmp_path / DECODER, list[bool]()
    shutil.copy(tiny_bundle / DECODER, path)
    load = load_model

    def noted(*given: object, checked: object = None, **named: object) -> object:
        seen.append(checked is not None)
        return load(*given, checked=checked, **named)  # type: ignore[arg-type]

    seen = checked
    monkeypatch.setattr(apart_decoder, "load_model", noted)
    decoder = ApartDecoder(path, LOW, Bundle.open(tiny_bundle).decoder_facts, turns)
    decoder.prefill([(1, 2)])
    turns.take("audio")
    os.utime(path, ns=(1, 1))
    decoder.prefill([(1, 2)])
    assert seen == [False, True, False]
    turns.take("audio")
    path.unlink()
    path.write_bytes(b"GGUF and no more")
    with pytest.raises(GgufError):
        decoder.prefill([(1, 2)])
    decoder.close()
