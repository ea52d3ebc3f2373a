"""What is measured is told apart into rates, and graphs and decoders of zeros are what the engines take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.gguf.check import BLOCKS, check_gguf
from dasheng_edge.runtime.planning import calibrate as module
from dasheng_edge.runtime.planning.board import Board, Rates, TypeRates
from dasheng_edge.runtime.planning.calibrate import CHUNK, FAR, FEW, KINDS, MANY, NARROW, WIDE, decoder_rates
from dasheng_edge.runtime.planning.speed import row_values
from dasheng_edge.runtime.planning.synthetic import Compute, DecoderSpec, encoder_graph, write_decoder
from dasheng_edge.runtime.text.decoder import Decoder


@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_a_graph_of_zeros_computes(compute: Compute, tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder_graph(compute, 64, 2))
    session = onnx_session(path, "cpu", 1)
    values = np.random.default_rng(0).normal(0, 1, (1, 7, 64)).astype(np.float32)
    (got,) = session.run(None, {"x": values})
    np.testing.assert_array_equal(got, values)  # what blocks of zeros add is nothing


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_decoder_of_zeros_opens_in_any_type(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "decoder.gguf"
    write_decoder(path, DecoderSpec(kind, 256, 1, 300))
    check_gguf(path)
    decoder = Decoder.open(path, EngineSettings(), n_ctx=256)
    decoder.prefill([(1, 2), np.zeros((3, 256), np.float32)])
    assert not decoder.logits().any()
    decoder.close()


def test_rates_of_an_encoder_are_told_apart() -> None:
    int8, fp32, value_s, block_s = 400e9, 90e9, 5e-9, 1e-4

    def block(width: int, rate: float) -> float:
        scores = 4 * CHUNK * CHUNK * width / fp32
        return block_s + 24 * width * width * CHUNK / rate + scores + value_s * CHUNK * width

    got = module.encoder_rates(block(NARROW, int8), block(WIDE, int8), block(WIDE, fp32), block_s)
    assert got["int8_gop_per_s"] == pytest.approx(int8 / 1e9)
    assert got["fp32_gop_per_s"] == pytest.approx(fp32 / 1e9)
    assert got["encoder_value_ns"] == pytest.approx(value_s * 1e9)
    assert got["encoder_block_us"] == pytest.approx(block_s * 1e6)


def test_rates_of_a_decoder_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_logit_ns", lambda: 1.0)
    value_s, layer_s, token_s, position_s, product_s, byte_s = 8e-9, 3e-5, 7e-5, 6e-10, 5e-12, 6e-11
    spec = DecoderSpec(KINDS["Q4_K"], WIDE, 12)
    small = DecoderSpec(KINDS["Q4_K"], NARROW, 8)

    def decoded(one: DecoderSpec, per_byte: float) -> module.Decoded:
        values = sum(inner * columns for inner, columns in one.matrices)
        row = values * product_s + value_s * row_values(one.sizes) * one.layers
        token = token_s + layer_s * one.layers + per_byte * sum(map(one.bytes_of, one.matrices))
        far = token + position_s * (FAR - module.LEAD) * one.sizes.heads * one.sizes.head_width * one.layers
        return module.Decoded(token, far, token + FEW * row, token + MANY * row)

    fewer = DecoderSpec(KINDS["Q4_K"], NARROW, 2)
    # The narrow one is read out of caches, in half the time.
    got = decoder_rates(decoded(small, byte_s / 2), decoded(fewer, byte_s / 2), decoded(spec, byte_s), small, spec)
    assert got["decoder_value_ns"] == pytest.approx(value_s * 1e9)
    assert got["position_ns"] == pytest.approx(position_s * 1e9)
    assert got["layer_us"] == pytest.approx(layer_s * 1e6, rel=0.1)
    assert got["token_us"] == pytest.approx(token_s * 1e6, rel=0.1)


def test_times_that_others_spoilt_still_give_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = np.random.default_rng(0).uniform(1e-6, 1.0, 1000).tolist()
    monkeypatch.setattr(module, "_typical_s", lambda _: times.pop())
    monkeypatch.setattr(module, "DEEP", 1)
    for _ in range(20):
        encoder = module.encoder_rates(*(times.pop() for _ in range(4)))
        types, known = module.type_rates(tmp_path, KINDS["Q4_K"], 1, {})
        assert Rates(threads=1, **encoder, **known, types={"Q4_K": types}).threads == 1


def test_this_machine_is_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Rates(
        threads=1, int8_gop_per_s=1, fp32_gop_per_s=1, encoder_value_ns=0, encoder_block_us=0, decoder_value_ns=0,
        layer_us=0, types={"F16": TypeRates(decode_gb_per_s=1, start_gb_per_s=1, prefill_gop_per_s=1)},
    )  # fmt: skip

    class Measured:
        def __init__(self, _: str) -> None: ...
        def __enter__(self) -> Measured:
            return self

        def __exit__(self, *_: object) -> None: ...
        def ask(self, wanted: dict[str, object], _: object) -> dict[str, object]:
            assert wanted == {"threads": [1, 3]}
            return {"process_mb": 99, "engines_s": 1.5, "rates": [rate.model_dump()], "open_mb_per_s": 3,
                    "vocabulary_us": 2, "disk_mb_per_s": 4}  # fmt: skip

    monkeypatch.setattr(module, "Child", Measured)
    monkeypatch.setattr(module, "usable_cores", lambda: 3)
    board = module.calibrate()
    assert isinstance(board, Board)
    assert board.process_mb == 99
    assert board.start_s >= 1.5
    assert not board.guesses
