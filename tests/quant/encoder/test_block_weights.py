"""Weights in whole numbers: the rounding law, and the packing that ONNX Runtime reads."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dasheng_edge.quant.encoder.block_weights import (
    block_parameters,
    block_values,
    channel_int8,
    channel_scales,
    pack,
)
from dasheng_edge.quant.encoder.precisions import BLOCK_SIZE, Bits
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 70), st.integers(1, 5)),
    elements=st.floats(-8, 8, width=32, allow_subnormal=False),
)


@given(MATRICES)
def test_a_channel_is_rounded_by_half_a_step_at_most(matrix: NDArray[np.float32]) -> None:
    scales = channel_scales(matrix)
    error = np.abs(channel_int8(matrix, scales) * scales - matrix)
    assert (error <= 0.5 * scales * (1 + 1e-5) + 1e-9).all()


@given(MATRICES, st.sampled_from((4, 8)))
def test_a_block_is_rounded_by_one_step_at_most(matrix: NDArray[np.float32], bits: Bits) -> None:
    # Half a step by the value, and half by the zero point.
    scales, _ = block_parameters(matrix, bits)
    steps = np.repeat(scales, BLOCK_SIZE, axis=1)[:, : len(matrix)].T
    assert (np.abs(unpacked(matrix, bits) - matrix) <= steps * (1 + 1e-4) + 1e-9).all()


def unpacked(matrix: NDArray[np.float32], bits: Bits) -> NDArray[np.float32]:
    """What the packed bytes stand for, float32 [inputs, outputs]."""
    scales, zeros = block_parameters(matrix, bits)
    stored = block_values(matrix, bits, scales, zeros)
    if bits == 4:
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:2], BLOCK_SIZE)
    values = (stored.astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
    return values.reshape(matrix.shape[1], -1)[:, : len(matrix)].T


@pytest.mark.parametrize("inputs", [32, 96, 100])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_reads_the_packing(bits: Literal[4, 8], inputs: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(inputs, 24)).astype(np.float32)
    scales, zeros = block_parameters(matrix, bits)
    weights = {
        "b": block_values(matrix, bits, scales, zeros), "scales": scales.reshape(-1),
        "zeros": pack(zeros, bits).reshape(-1),
    }  # fmt: skip
    node = helper.make_node(
        "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", K=inputs, N=24, bits=bits,
        block_size=BLOCK_SIZE, accuracy_level=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = load_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})  # gives the matrix itself
    np.testing.assert_allclose(got, unpacked(matrix, bits), atol=1e-5)


def test_zeros_stay_zeros() -> None:
    nothing = np.zeros((64, 3), np.float32)
    assert (channel_int8(nothing, channel_scales(nothing)) == 0).all()
    assert (unpacked(nothing, 4) == 0).all()
