"""Smoothing scales: moves outliers of activations into the weights, where quantizing costs less.

A channel that a LayerNorm gives is divided by its scale, in the norm's own weight and bias, and the row of the matrix
that reads it is multiplied by it, so the float32 model stays the same. With a the largest magnitude of a channel and w
that of its row, the scale is a^e / w^(1-e) (SmoothQuant, Xiao et al. 2022, equation 4). Outliers of a trained model
are why: one channel 60 times as large as the others leaves the others four of 255 steps. Which exponent, or none, is
measured matrix by matrix behind the block that it is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dasheng_edge.runtime.deviation import noise_share_of

from .graphs import convert, lazily, matrix_nodes, weight_of
from .precisions import MatrixPrecision
from .stages import Chain

Array = NDArray[np.float32]
EXPONENTS = (0.25, 0.5, 0.75)
MIN_GAIN_DB = 0.1  # behind the block; less is chance
_TINY = 1e-5  # of the largest magnitude: what a channel that is always zero is taken for


@dataclass(frozen=True)
class Smoothing:
    """What a matrix's inputs are divided by, float32 [inputs], and the exponent that it comes from."""

    exponent: float
    scales: Array


def smoothing_scales(activations: Array, weights: Array, exponent: float) -> Array:
    """float32 [inputs] from the largest magnitudes of each channel and of its row, spread evenly around 1."""
    channels, rows = (np.maximum(each, max(_TINY * float(each.max()), _TINY)) for each in (activations, weights))
    scales = channels**exponent / rows ** (1 - exponent)
    centred: Array = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
    return centred


def smoothable(model: ir.Model) -> dict[str, ir.Node]:
    """The LayerNormalization whose output a matrix alone reads, by matrix: of qkv and fc1."""
    norms = {}
    for name, node in matrix_nodes(model).items():
        given = node.inputs[0]
        norm = given.producer() if given is not None else None
        if norm is None or norm.op_type != "LayerNormalization" or len(norm.outputs[0].uses()) != 1:
            continue
        own = [value for value in norm.inputs[1:] if value is not None and len(value.uses()) == 1]
        if len(own) == len(norm.inputs) - 1 and all(value.is_initializer() for value in own):
            norms[name] = norm
    return norms


def fold(model: ir.Model, smoothing: Mapping[str, Smoothing]) -> None:
    """Divide what the norms give and multiply the matrices; those that the graph does not have are passed over."""
    nodes = matrix_nodes(model)
    for name, norm in smoothable(model).items():
        if name not in smoothing:
            continue
        scales = smoothing[name].scales
        for value in norm.inputs[1:]:
            assert value is not None
            _scale(value, np.reciprocal(scales))
        _scale(weight_of(nodes[name])[0], scales[:, None])


def _scale(value: ir.Value, factor: Array) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.const_value = lazily(
        tensor.name or "", tensor.dtype, tuple(tensor.shape.numpy()), lambda: tensor.numpy() * factor
    )


class SmoothingSearch:
    """Finds the scales of a stage's matrices for a precision."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._magnitudes: dict[int, dict[str, tuple[Array, Array]]] = {}

    def of(self, index: int, precision: MatrixPrecision) -> dict[str, Smoothing]:
        """The best scales of each matrix where they gain anything, behind the stage with that matrix alone in it."""
        chosen = {}
        for name, (activations, weights) in self._largest(index).items():
            best, lowest = None, self._noise(index, name, precision, None) * noise_share_of(MIN_GAIN_DB)
            for exponent in EXPONENTS:
                tried = Smoothing(exponent, smoothing_scales(activations, weights, exponent))
                noise = self._noise(index, name, precision, tried)
                if noise < lowest:
                    best, lowest = tried, noise
            if best is not None:
                chosen[name] = best
        return chosen

    def _noise(self, index: int, name: str, precision: MatrixPrecision, smoothing: Smoothing | None) -> float:
        def change(model: ir.Model) -> None:
            if smoothing is not None:
                fold(model, {name: smoothing})
            convert(model, {name: precision})

        return self._chain.noise(index, change, at_end=False)

    def _largest(self, index: int) -> dict[str, tuple[Array, Array]]:
        """Largest magnitudes of the channels and of the rows of each matrix that can be smoothed."""
        if index not in self._magnitudes:
            model = self._chain.model(self._chain.stages[index])
            norms, nodes = smoothable(model), matrix_nodes(model)
            given = [norm.outputs[0].name or "" for norm in norms.values()]
            channels = self._chain.values(index, given) if given else []
            self._magnitudes[index] = {
                name: (np.abs(values).max(axis=0), np.abs(weight_of(nodes[name])[1].numpy()).max(axis=1))
                for name, values in zip(norms, channels, strict=True)
            }
        return self._magnitudes[index]
