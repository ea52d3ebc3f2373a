"""The forms of graphs and what is chosen of them. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GraphForm = Literal["static", "qdq", "ort"]
Opset = Literal[17, 19, 23]
Method = Literal["minmax", "percentile", "entropy"]
Activations = Literal["uint8", "int8"]


@dataclass(frozen=True)
class StaticOptions:
    """How ranges of activations are chosen, and how these are stored.

    "uint8" has a zero point, which QNN and CPUs take; "int8" is symmetric, which TensorRT and RKNN ask for.
    """

    method: Method = "minmax"
    activations: Activations = "uint8"
