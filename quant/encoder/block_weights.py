"""Weight matrices in whole numbers: by output channel, and in blocks as ONNX Runtime's MatMulNBits stores them.

Matrices are as MatMul takes them, float32 [inputs, outputs].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .precisions import BLOCK_SIZE, Bits

Matrix = NDArray[np.float32]
INT8_LEVELS = 127  # symmetric: -128 is not used


def channel_scales(matrix: Matrix) -> NDArray[np.float32]:
    """float32 [outputs]: what one step is worth; 1 for a column of zeros."""
    largest = np.abs(matrix).max(axis=0)
    scales: NDArray[np.float32] = np.where(largest > 0, largest / np.float32(INT8_LEVELS), np.float32(1))
    return scales.astype(np.float32)


def channel_int8(matrix: Matrix, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """int8 [inputs, outputs], rounded to nearest even; times the scales, this is the matrix."""
    steps: NDArray[np.int8] = np.clip(np.rint(matrix / scales), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    return steps


def block_parameters(matrix: Matrix, bits: Bits) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scales float32 and zero points uint8, [outputs, blocks] each: a block's range, zero included, in 2^bits steps."""
    blocks = _blocks(matrix)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    steps = np.float32(2**bits - 1)
    scales = np.where(high > low, (high - low) / steps, np.float32(1)).astype(np.float32)
    zeros = np.clip(np.rint(-low / scales), 0, steps).astype(np.uint8)
    return scales, zeros


def block_values(
    matrix: Matrix, bits: Bits, scales: NDArray[np.float32], zeros: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """uint8 [outputs, blocks, 32 * bits / 8], the earlier of two 4-bit values in the lower half of a byte."""
    steps = np.rint(_blocks(matrix) / scales[:, :, None]) + zeros[:, :, None]
    return pack(np.clip(steps, 0, 2**bits - 1).astype(np.uint8), bits)


def pack(values: NDArray[np.uint8], bits: Bits) -> NDArray[np.uint8]:
    """Values below 2^bits, two to a byte along the last axis where they have 4 bits; an odd last one stands alone."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    packed = (values[..., ::2] | (values[..., 1::2] << 4)).astype(np.uint8)
    return packed


def _blocks(matrix: Matrix) -> NDArray[np.float32]:
    """float32 [outputs, blocks, 32], the last block filled up with zeros."""
    inputs, outputs = matrix.shape
    padded = -inputs % BLOCK_SIZE
    columns = np.ascontiguousarray(matrix.T)
    if padded:
        columns = np.pad(columns, ((0, 0), (0, padded)))
    return columns.reshape(outputs, -1, BLOCK_SIZE)
