"""Numbers as llama.cpp stores them, against the converters of gguf-py, which are written in NumPy."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from dasheng_edge.runtime.gguf.check import BLOCKS
from dasheng_edge.runtime.text.llama import float_values


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_type_of_a_decoder_gives_the_same_floats(kind: int) -> None:
    values, size = BLOCKS[kind]
    stored = np.random.default_rng(kind).integers(0, 256, (3, 2, size), np.uint8)
    if values > 1:  # halves among them are scales; those above 1,024 and NaN are of no matter here
        stored[..., [0, 1, -2, -1]] &= 0x3B
    got = float_values(kind, stored.tobytes(), 6 * values)
    assert got is not None
    want = gguf.quants.dequantize(stored.reshape(3, -1), gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(got.view(np.uint32), want.reshape(-1).astype(np.float32).view(np.uint32))
