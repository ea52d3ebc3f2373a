"""The largest activations of a decoder while it hears golden clips, held against what its type can hold.

Beside F16 matrices, llama.cpp rounds what they multiply to float16, and on GPUs the products, too; keys and values are
kept in float16 beside all types but F32. What is beyond 65504 there becomes infinite, and the answer NaN.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import Watch

from .importance import HEAD_INPUT, INPUTS
from .types import DecoderType

FLOAT16_MAX = 65504.0
KEPT = ("Kcur", "Vcur")  # as keys and values
# What llama.cpp's graphs of Qwen2 and Qwen3 call products of matrices; those with q, k and v are kept or attended to.
PRODUCTS = ("Qcur", *KEPT, "ffn_gate", "ffn_up", "ffn_out")
_OF_A_BLOCK = re.compile(rf"({'|'.join((*INPUTS, *PRODUCTS))})-(\d+)")
# What to take in place of a type that is not finite.
FINER = {"F16": "BF16 or F32", "BF16": "F32"}


@dataclass
class Activations:
    """The largest magnitude of each activation, by llama.cpp's name, in the order in which they were computed first."""

    largest: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def wants(name: str) -> bool:
        return name == HEAD_INPUT or _OF_A_BLOCK.fullmatch(name) is not None

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        # fmax would drop NaN, which must show
        self.largest[name] = float(np.max([self.largest.get(name, 0.0), np.abs(values).max()]))

    @property
    def highest(self) -> float:
        """The largest of all; NaN if one is."""
        return float(np.max([*self.largest.values()])) if self.largest else np.nan

    def beyond(self, kind: DecoderType) -> str:
        """Which activation a decoder of a type cannot hold, the first that was computed; "" if it can hold all."""
        for name, value in self.largest.items():
            what, _, block = name.partition("-")
            held = kind == "F16" or (what in KEPT and kind != "F32")
            if not value <= (FLOAT16_MAX if held else np.finfo(np.float32).max):
                where = f"{what} of block {block}" if block else what
                kept = f"{kind} holds" if kind == "F16" else "keys and values in F16 hold"
                limit = f", and {kept} at most {FLOAT16_MAX:.0f}" if held else ""
                return f"{where} reaches {value:.3g} on the golden clips{limit}"
        return ""


@contextmanager
def watched(decoder: Decoder) -> Generator[Activations]:
    """Note the activations of all that a decoder computes within."""
    seen = Activations()
    decoder.watch(Watch(seen.wants, seen.see))
    try:
        yield seen
    finally:
        decoder.watch(None)


def instead_of(kind: DecoderType) -> str:
    """What to take in place of a type that is not finite, or that loses too much."""
    return FINER.get(kind, "BF16 or F32")
