"""What a decoder's type can hold, and what of a decoder is held against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.quant.decoder.activations import Activations, instead_of, watched
from dasheng_edge.quant.decoder.types import DecoderType
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text.decoder import Decoder


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("ffn_up-1", 65_504.0, ()),
        ("ffn_up-1", 65_505.0, ("F16",)),
        ("attn_norm-0", np.inf, ("F32", "BF16", "F16", "Q4_K_M")),
        ("result_norm", np.nan, ("F32", "BF16", "F16", "Q4_K_M")),
        ("Kcur-3", 1e5, ("BF16", "F16", "Q4_K_M")),  # kept in F16 beside all but F32
        ("ffn_out-2", 1e30, ("F16",)),
    ],
)
def test_each_type_holds_its_range(name: str, value: float, refused: tuple[str, ...]) -> None:
    seen = Activations()
    kinds: tuple[DecoderType, ...] = ("F32", "BF16", "F16", "Q4_K_M")
    seen.see("ffn_norm-0", np.ones((2, 3), np.float32))
    seen.see(name, np.array([[1.0, -value]]))
    assert seen.highest == value or np.isnan([seen.highest, value]).all()
    assert tuple(kind for kind in kinds if seen.beyond(kind)) == refused
    what, _, block = name.partition("-")
    assert all(
        f"{what}{f' of block {block}' if block else ''} reaches" in seen.beyond(k) for k in kinds if k in refused
    )


def test_the_first_that_is_too_large_is_named_and_nan_is_not_forgotten() -> None:
    seen = Activations()
    for value in (1e5, np.nan, 2.0):
        seen.see("ffn_gate-0", np.array([[value]], np.float32))
        seen.see("ffn_swiglu-0", np.array([[1e9]], np.float32))
    assert seen.beyond("F16").startswith("ffn_gate of block 0 reaches nan")
    assert (instead_of("F16"), instead_of("BF16"), instead_of("Q2_K")) == ("BF16 or F32", "F32", "BF16 or F32")
    assert np.isnan(Activations().highest)


def test_every_block_is_seen_in_both_ways_of_attending(tiny_bundle: Path) -> None:
    text = read_golden(Bundle.open(tiny_bundle))[1].text
    assert text is not None
    decoder = Decoder.open(tiny_bundle / DECODER, EngineSettings())
    try:
        for exact in (True, False):
            decoder.attend(exact=exact)
            with watched(decoder) as seen:
                decoder.prefill(text.segments)
            parts = {
                "attn_norm",
                "Qcur",
                "Kcur",
                "Vcur",
                "kqv_out",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_swiglu",
                "ffn_out",
            }
            blocks = {f"{part}-{block}" for part in parts for block in range(2)}
            assert set(seen.largest) == {*blocks, "result_norm"}
            assert 0 < seen.highest < 1e3
            assert not seen.beyond("F16")
    finally:
        decoder.close()
