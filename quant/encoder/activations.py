"""The largest activations of an encoder and its projector, held against float16, in which graphs for GPUs multiply."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dasheng_edge.runtime.errors import QuantizeError

from .graphs import matrix_nodes
from .stages import Chain

FLOAT16_MAX = 65504.0


def largest_activations(chain: Chain) -> dict[str, float]:
    """By matrix, the largest magnitude of what it multiplies and of its products, over the clips of the chain."""
    largest: dict[str, float] = {}
    for index, stage in enumerate(chain.stages):
        nodes = matrix_nodes(chain.model(stage)) if stage.matrices else {}
        ends = {matrix: (_name(node.inputs[0]), _name(node.outputs[0])) for matrix, node in nodes.items()}
        names = list(dict.fromkeys(name for pair in ends.values() for name in pair))
        seen = {name: np.abs(one).max() for name, one in zip(names, chain.values(index, names), strict=True)}
        largest |= {matrix: float(np.max([seen[name] for name in pair])) for matrix, pair in ends.items()}
    return largest


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def check_float16(chain: Chain) -> float:
    """The largest activation of all.

    Raises:
        QuantizeError: float16 cannot hold one.
    """
    largest = largest_activations(chain)
    for matrix, value in largest.items():
        if not value <= FLOAT16_MAX:
            raise QuantizeError(
                f"{matrix} sees or gives {value:.3g} on the clips, and float16 holds at most {FLOAT16_MAX:.0f}, so "
                "that the graphs for GPUs would yield NaN; nothing was written. Choose --encoder fp32, or int8 on CPUs"
            )
    return max(largest.values())
