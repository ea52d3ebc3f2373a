"""llama.cpp fed with embeddings: sizes, cache, sampling and text, on a tiny random Qwen2."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, DeviceError, GgufError, MissingExtraError
from dasheng_edge.runtime.text import llama
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.context import Context
from dasheng_edge.runtime.text.decoder import CONTEXT_STEP, Decoder
from dasheng_edge.runtime.text.llama import build_info
from dasheng_edge.runtime.text.sequences import Sequences

EMBED = 64
TEXT = "Write an audio caption describing the sound"


@pytest.fixture(scope="module")
def path(tiny_bundle: Path) -> Path:
    return tiny_bundle / DECODER


def noise(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, (rows, EMBED)).astype(np.float32)


def relative(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


def logits_of(decoder: Decoder, *segments: tuple[int, ...] | NDArray[np.float32]) -> NDArray[np.float32]:
    decoder.prefill(list(segments))
    return decoder.logits()


def test_facts(decoder: Decoder) -> None:
    assert (decoder.n_embd, decoder.context_length) == (EMBED, 4096)
    assert decoder.metadata["general.architecture"] == "qwen2"
    assert "<|im_start|>" in decoder.chat_template
    assert {"<|im_end|>", "<|AUDIO|>"} <= set(decoder.control_tokens)
    assert not decoder.added_tokens
    assert decoder.special_texts == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}  # it has no bos_token


def test_embedding_rows_of_tokens_give_the_logits_of_the_tokens(decoder: Decoder) -> None:
    tokens = decoder.tokenize(TEXT)
    table = decoder._token_rows
    want = logits_of(decoder, tokens)
    for cut in (0, 1, 3):
        rows = table.of(tokens[cut:])
        assert rows is not None
        assert relative(logits_of(decoder, tokens[:cut], rows), want) < 1e-5


def test_memory_layout_does_not_matter(decoder: Decoder) -> None:
    rows = noise(9)
    want = logits_of(decoder, (1,), rows)
    strided = np.asfortranarray(rows.astype(np.float64))
    assert np.array_equal(logits_of(decoder, (1,), strided.astype(np.float32)), want)
    assert np.array_equal(logits_of(decoder, (1,), np.repeat(rows, 2, axis=0)[::2]), want)


def test_the_context_grows_on_demand(decoder: Decoder, path: Path) -> None:
    assert decoder.n_ctx == 0  # no cache is allocated before it is needed
    logits_of(decoder, (1, 2, 3))
    assert decoder.n_ctx == CONTEXT_STEP
    grown = logits_of(decoder, (1, 2, 3), noise(700))
    assert decoder.n_ctx == 768
    decoder.prefill([(1,)], reserve=4000)
    assert decoder.n_ctx == 4096
    large = Decoder.open(path, EngineSettings(), n_ctx=4096)
    assert relative(grown, logits_of(large, (1, 2, 3), noise(700))) < 1e-6
    large.close()


def decoded_rows(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    decode = decoder._decode

    def counted(block: NDArray[np.float32], *, outputs: int) -> None:
        rows.append(len(block))
        decode(block, outputs=outputs)

    monkeypatch.setattr(decoder, "_decode", counted)
    return rows


def test_leading_tokens_stay_in_the_cache(decoder: Decoder, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = decoded_rows(decoder, monkeypatch)
    requests: list[list[tuple[int, ...] | NDArray[np.float32]]] = [
        [(1, 2, 3, 4), noise(6), (5, 6)],
        [(1, 2, 3, 4), noise(6, 1), (5, 6)],
        [(1, 2, 9, 4), noise(6, 1), (5, 6)],
        [(1, 2, 9, 4)],
        [(1, 2, 9)],
        [noise(2), (1, 2, 9)],
        [(1, 2, 9), (4,)],
    ]
    work = [12, 8, 10, 1, 1, 5, 4]
    for request, expected in zip(requests, work, strict=True):
        rows.clear()
        got = logits_of(decoder, *request)
        assert sum(rows) == expected
        fresh = Decoder.open(path, EngineSettings(), n_ctx=CONTEXT_STEP)
        assert relative(got, logits_of(fresh, *request)) < 1e-5
        fresh.close()


def test_generated_rows_do_not_stay(decoder: Decoder) -> None:
    first = list(decoder_run(decoder, 5))
    assert list(decoder_run(decoder, 5)) == first


def decoder_run(decoder: Decoder, count: int, sampling: Sampling | None = None) -> Iterator[int]:
    decoder.prefill([(1, 2, 3), noise(4)], reserve=count)
    return decoder.generate(count, sampling) if sampling else decoder.generate(count)


def test_greedy_takes_the_largest_logit(decoder: Decoder) -> None:
    decoder.prefill([(1, 2, 3), noise(4)], reserve=8)
    best: list[int] = []
    for token in decoder.generate(8):
        best.append(token)
        assert token == decoder.logits().argmax()
    assert len(best) == 8


def test_sampling_is_reproducible_and_follows_its_options(decoder: Decoder) -> None:
    def run(**options: float) -> list[int]:
        return list(decoder_run(decoder, 12, Sampling.model_validate(options)))

    greedy = run()
    assert run(temperature=1.0, top_k=1, seed=5) == greedy
    assert run(temperature=1.0, top_p=1e-6, seed=5) == greedy
    assert run(temperature=1.0, min_p=1.0, seed=5) == greedy
    assert run(temperature=1e-4, seed=5) == greedy
    assert run(temperature=1.5, seed=5) == run(temperature=1.5, seed=5)
    assert run(temperature=1.5, seed=5) != run(temperature=1.5, seed=6)
    assert run(temperature=1.5, seed=2**32 + 4) == run(temperature=1.5, seed=5)  # llama.cpp's seeds have 32 bits
    assert len(set(run(repetition_penalty=1e6))) == 12  # nothing twice


def nucleus(logits: NDArray[np.float32], top_p: float) -> set[int]:
    """The smallest set of likeliest tokens with at least this probability."""
    order = np.argsort(-logits)
    shares = np.exp(logits[order] - logits.max())
    return set(order[: 1 + int(np.searchsorted(np.cumsum(shares / shares.sum()), top_p))].tolist())


def test_temperature_comes_before_the_other_filters_as_in_transformers(decoder: Decoder) -> None:
    logits = logits_of(decoder, (1, 2, 3))
    hot, cold = nucleus(logits / np.float32(8), 0.5), nucleus(logits, 0.5)
    seen = set()
    for seed in range(200):
        decoder.prefill([(1, 2, 3)])
        seen |= set(decoder.generate(1, Sampling(temperature=8.0, top_p=0.5, seed=seed)))

    assert len(cold) < len(hot) / 2  # else both orders would look alike
    assert seen - cold
    assert seen <= hot


def test_generation_ends_with_the_token_that_ends_it(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(decoder_run(decoder, 12))
    monkeypatch.setattr(decoder, "is_end", lambda token: token == tokens[3])
    assert list(decoder_run(decoder, 12)) == tokens[: tokens.index(tokens[3]) + 1]


def test_ends_come_from_the_vocabulary(decoder: Decoder) -> None:
    ends = {text for text, token in decoder.control_tokens.items() if decoder.is_end(token)}
    assert {"<|im_end|>", "<|endoftext|>"} <= ends
    assert "<|AUDIO|>" not in ends


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "the prompt is empty"),
        ([(), noise(0)], "the prompt is empty"),
        ([noise(3)[:, :-1]], r"shape \(3, 63\), expected \[n, 64\]"),
        ([noise(3).ravel()], r"expected \[n, 64\]"),
        ([np.full((2, EMBED), np.nan, np.float32)], "NaN or infinity"),
        ([noise(5000)], "needs 5000 positions, the decoder has 4096"),
        ([(448,)], "failed to decode 1 rows at 0"),
        ([(-1, 2)], "failed to decode 2 rows at 0"),
    ],
)
def test_requests_that_llama_cpp_would_abort_on(
    decoder: Decoder, segments: list[tuple[int, ...] | NDArray[np.float32]], message: str
) -> None:
    with pytest.raises(DecoderError, match=message):
        decoder.prefill(segments)
    assert len(logits_of(decoder, (1, 2))) == decoder.n_vocab  # and it works again


def test_logits_need_a_prefill(decoder: Decoder) -> None:
    with pytest.raises(DecoderError, match="call prefill first"):
        decoder.logits()
    with pytest.raises(DecoderError, match="call prefill first"):
        next(decoder.generate(1))


def test_a_full_context_is_an_error(decoder: Decoder) -> None:
    decoder.prefill([noise(CONTEXT_STEP - 1)])
    with pytest.raises(DecoderError, match="the context of 256 positions is full"):
        list(decoder.generate(9))


def test_nan_logits_are_an_error(decoder: Decoder) -> None:
    decoder.prefill([(1, 2)])
    assert decoder._context is not None
    decoder._llama.llama_get_logits_ith(decoder._context.pointer, -1)[3] = float("nan")
    with pytest.raises(DecoderError, match="computed NaN"):
        next(decoder.generate(1))


def test_an_abandoned_generation_is_harmless(decoder: Decoder) -> None:
    first = list(islice(decoder_run(decoder, 8), 3))
    assert list(decoder_run(decoder, 8))[:3] == first


@pytest.mark.parametrize("text", ["", " ", TEXT, "漢字 é 😀", "a\0b", "x" * 20_000])
def test_text_survives_the_tokenizer(decoder: Decoder, text: str) -> None:
    tokens = decoder.tokenize(text)
    assert decoder.detokenize(tokens) == text
    pieces = list(decoder.text_pieces(tokens))
    assert "".join(pieces) == text
    assert "\ufffd" not in text.join(pieces)


def test_broken_characters_are_replaced(decoder: Decoder) -> None:
    tokens = decoder.tokenize("😀")
    assert len(tokens) > 1
    assert decoder.detokenize(tokens[:-1]) == "\ufffd"


def test_long_pieces(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_piece(_: object, token: int, buffer: ctypes.Array[ctypes.c_char], size: int, *__: object) -> int:
        text = b"x" * token
        if len(text) > size:
            return -len(text)
        ctypes.memmove(buffer, text, len(text))
        return len(text)

    monkeypatch.setattr(decoder, "_llama", SimpleNamespace(llama_token_to_piece=to_piece))
    assert [len(decoder.piece(token)) for token in (0, 1, 32, 33, 1000)] == [0, 1, 32, 33, 1000]


def test_control_tokens_are_text_unless_asked(decoder: Decoder) -> None:
    token = decoder.control_tokens["<|im_end|>"]
    assert decoder.tokenize("<|im_end|>", parse_special=True) == (token,)
    assert token not in decoder.tokenize("<|im_end|>")
    assert decoder.piece(token) == b""


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a model",
        lambda data: data[:1000],
        lambda data: data[: len(data) // 2],
        lambda data: data[:4] + b"\xff\xff\xff\x7f" + data[8:],
    ],
)
def test_files_that_do_not_load(path: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    broken = tmp_path / "x.gguf"
    broken.write_bytes(damage(path.read_bytes()))
    with pytest.raises(GgufError, match=r"x\.gguf is (truncated|not a GGUF file)"):
        Decoder.open(broken, EngineSettings())
    with pytest.raises(GgufError, match=r"none\.gguf cannot be read: No such file"):
        Decoder.open(tmp_path / "none.gguf", EngineSettings())


def test_other_architectures_are_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "x.gguf"
    other.write_bytes(path.read_bytes().replace(b"qwen2", b"llama", 1))
    with pytest.raises(DecoderError, match="is a llama model; expected one of qwen2, qwen3"):
        Decoder.open(other, EngineSettings())


def test_what_llama_cpp_refuses_by_itself_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.llama_cpp_library(), "llama_model_load_from_file", lambda *_: None)
    with pytest.raises(DecoderError, match=r"llama\.cpp cannot load"):
        Decoder.open(path, EngineSettings())


def test_a_context_that_cannot_be_made(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder._llama, "llama_init_from_model", lambda *_: None)
    with pytest.raises(DecoderError, match="cannot make a context of 256 positions"):
        decoder.prefill([(1,)])


def test_a_context_that_cannot_grow_leaves_none_behind(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    want = logits_of(decoder, (1, 2, 3))
    with monkeypatch.context() as full:
        full.setattr(decoder._llama, "llama_init_from_model", lambda *_: None)
        with pytest.raises(DecoderError, match="cannot make a context of 768 positions"):
            decoder.prefill([noise(700)])
        assert (decoder.n_ctx, decoder._context) == (0, None)  # the old one is freed: no request may use it
        with pytest.raises(DecoderError, match="call prefill first"):
            decoder.logits()
        with pytest.raises(DecoderError, match="cannot make a context of 256 positions"):
            decoder.prefill([(1, 2, 3)])
    assert np.array_equal(logits_of(decoder, (1, 2, 3)), want)


def test_a_prefill_ends_when_it_is_computed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[str]()
    monkeypatch.setattr(Context, "synchronize", lambda _: waited.append("waited"))
    decoder.prefill([(1, 2, 3)])
    sequences = Sequences(decoder, 1)
    sequences.listen(Answer([(1, 2)], 1, Sampling()), [(3,)])
    sequences.close()
    assert waited == ["waited"] * 2


def test_one_card_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, asked = llama.llama_cpp_library(), list[Any]()
    monkeypatch.setattr(library, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(library, "llama_model_load_from_file", lambda _, params: asked.append(params))
    for settings in (EngineSettings("cuda"), EngineSettings("cpu")):
        with pytest.raises(DecoderError, match="cannot load"):
            Decoder.open(path, settings)
    there, here = asked
    assert (there.n_gpu_layers, there.split_mode, there.main_gpu) == (-1, library.LLAMA_SPLIT_MODE_NONE, 0)
    assert here.n_gpu_layers == 0


@pytest.mark.skipif(build_info()[1], reason="this llama.cpp can offload to a GPU")
def test_cuda_needs_a_build_with_cuda(path: Path) -> None:
    with pytest.raises(DeviceError, match="this one is built for CPU"):
        Decoder.open(path, EngineSettings(device="cuda"))


def test_llama_cpp_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llama.llama_cpp_library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtraError, match="pip install 'llama-cpp-python"):
        Decoder.open(tmp_path, EngineSettings())


def test_closing_twice_is_harmless(path: Path) -> None:
    decoder = Decoder.open(path, EngineSettings())
    decoder.prefill([(1,)])
    decoder.close()
    decoder.close()
    with pytest.raises(DecoderError, match="call prefill first"):
        decoder.logits()
    with pytest.raises(DecoderError, match="the decoder is closed"):
        decoder.prefill([(1,)])


def test_llama_cpp_prints_nothing(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decoder = Decoder.open(path, EngineSettings())
    decoder.prefill([(1,)])
    decoder.close()
    assert capfd.readouterr() == ("", "")


def test_build_info_names_the_cpu() -> None:
    system, offload = build_info()
    assert "CPU" in system
    assert isinstance(offload, bool)
