"""Logits of whole answers, watching llama.cpp compute, and quantized keys and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError
from dasheng_edge.runtime.text.decoder import SCORED_ROWS, Decoder
from dasheng_edge.runtime.text.llama import Watch

PROMPT = (1, 2, 3)


@pytest.mark.parametrize("count", [1, 2, SCORED_ROWS, SCORED_ROWS + 1, 150])
def test_each_row_is_what_the_tokens_before_it_give(decoder: Decoder, count: int) -> None:
    answer = tuple(int(token) for token in np.random.default_rng(0).integers(5, 300, count))
    got = decoder.score((PROMPT,), answer)
    assert got.shape == (count, decoder.n_vocab)
    for index in {0, count // 2, count - 1}:
        decoder.prefill((PROMPT + answer[:index],))
        np.testing.assert_allclose(got[index], decoder.logits(), atol=1e-4 * float(got.std()))


def test_generation_is_as_before(decoder: Decoder) -> None:
    decoder.prefill((PROMPT,), reserve=20)
    before = list(decoder.generate(20))
    decoder.score((PROMPT,), tuple(before))
    decoder.prefill((PROMPT,), reserve=20)
    assert list(decoder.generate(20)) == before


def test_prefilled_counts_what_was_not_kept(decoder: Decoder) -> None:
    decoder.prefill((PROMPT,))
    assert decoder.prefilled == 3
    decoder.prefill(((1, 2, 4, 5),))
    assert decoder.prefilled == 2


def test_a_watch_sees_rows_and_its_errors_are_raised(decoder: Decoder) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    decoder.watch(
        Watch(lambda name: name.startswith("attn_norm"), lambda name, values: seen.update({name: values.shape}))
    )
    decoder.prefill((PROMPT,))
    assert seen == {"attn_norm-0": (3, 256), "attn_norm-1": (3, 256)}

    def fail(name: str, _: object) -> None:
        raise ValueError(name)

    decoder.watch(Watch(lambda name: name == "attn_norm-1", fail))
    with pytest.raises(ValueError, match="attn_norm-1"):
        decoder.prefill((PROMPT,))
    decoder.watch(None)
    decoder.prefill((PROMPT,))
    assert np.isfinite(decoder.logits()).all()


def test_what_is_not_float32_is_refused(tiny_bundle: Path) -> None:
    decoder = Decoder.open(
        tiny_bundle / DECODER, EngineSettings(), n_ctx=512
    )  # of 256, all rows are shown without gaps
    decoder.watch(Watch(lambda name: name == "leaf_9" or "inp_pos" in name or name == "inp_tokens", lambda *_: None))
    decoder.prefill((PROMPT,))  # inputs are no results, so nothing is shown of them
    decoder.watch(Watch(lambda _: True, lambda *_: None))
    with pytest.raises(DecoderError, match=r"llama\.cpp computes .* not in float32"):
        decoder.prefill((PROMPT,))
    decoder.close()


@pytest.mark.parametrize(("kv_type", "most"), [("q8_0", 0.2), ("q4_0", 1.2)])
def test_quantized_keys_and_values_change_a_little(
    tiny_bundle: Path, decoder: Decoder, kv_type: KvType, most: float
) -> None:
    answer = tuple(range(5, 45))
    wanted = decoder.score((PROMPT,), answer)
    other = Decoder.open(tiny_bundle / DECODER, EngineSettings(kv_type=kv_type))
    got = other.score((PROMPT,), answer)
    other.close()
    error = float(np.sqrt(np.square(got - wanted).mean()) / wanted.std())
    assert 1e-4 < error < most


def test_halves_are_how_keys_and_values_are_kept_by_default(tiny_bundle: Path, decoder: Decoder) -> None:
    other = Decoder.open(tiny_bundle / DECODER, EngineSettings(kv_type="f16"))
    np.testing.assert_array_equal(other.score((PROMPT,), (7, 8, 9)), decoder.score((PROMPT,), (7, 8, 9)))
    other.close()


def test_embeddings_may_be_in_what_is_scored(decoder: Decoder) -> None:
    audio = np.random.default_rng(0).normal(size=(5, decoder.n_embd)).astype(np.float32)
    got = decoder.score((PROMPT, audio, (4,)), (7, 8))
    decoder.prefill((PROMPT, audio, (4, 7)))
    np.testing.assert_allclose(got[1], decoder.logits(), atol=1e-4 * float(got.std()))


def test_an_empty_answer_has_no_rows(decoder: Decoder) -> None:
    assert decoder.score((PROMPT,), ()).shape == (0, decoder.n_vocab)
