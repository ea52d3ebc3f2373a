"""An encoder whose norms give a few channels that stand out many times, and which is still the same model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dasheng_edge.quant.encoder.smoothing import Smoothing, fold, smoothable

CHANNELS, TIMES = 3, (15.0, 60.0)


def add_outliers(model: ir.Model, seed: int = 0) -> dict[str, Smoothing]:
    """Blow channels up and shrink their rows, which smoothing undoes; what was divided by, for each matrix."""
    rng = np.random.default_rng(seed)
    folded = {}
    for name, norm in smoothable(model).items():
        weight = norm.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        scales = np.ones(weight.const_value.size, np.float32)
        scales[rng.choice(scales.size, CHANNELS, replace=False)] = 1 / rng.uniform(*TIMES, CHANNELS)
        folded[name] = Smoothing(0.5, scales)
    fold(model, folded)
    return folded
