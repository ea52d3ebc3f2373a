"""The precisions of encoder and projector, in one table. Imports nothing heavy: the command line reads it.

`graphs.convert` makes them of weight matrices; other weights stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BLOCK_SIZE = 32  # inputs that share a scale: as fine as llama.cpp's, at 5.1 or 9.25 bits a weight with the zero points
Bits = Literal[4, 8, 16, 32]
MatrixPrecision = Literal["fp32", "fp16", "int8", "int8-block", "int4-block"]
EncoderPrecision = Literal[MatrixPrecision, "mixed"]  # mixed: a precision for each block, chosen by measuring


@dataclass(frozen=True)
class Precision:
    """How a matrix is stored, and what that may cost.

    `scales` None: floating point, computed with in float32 on a CPU; "channel": one scale for each output, and
    activations quantized on the fly; "block": a scale and a zero point for each `BLOCK_SIZE` inputs, weights alone.
    `min_snr_db` is the SNR of the embeddings below which something is wrong; None: they must not change.
    """

    bits: Bits
    scales: Literal["channel", "block"] | None
    min_snr_db: float | None

    @property
    def value_bytes(self) -> float:
        """Bytes of a weight; its share of a block's float32 scale and zero point included."""
        return self.bits / 8 + ((4 + self.bits / 8) / BLOCK_SIZE if self.scales == "block" else 0)


# SNR measured on micro (51 clips; trained): fp16 73.5, int8 38.6, int8-block 41.2 and int4-block 21.8 dB; on tiny
# random models: 70, 36, 39 and 17.
PRECISIONS: Mapping[MatrixPrecision, Precision] = {
    "fp32": Precision(32, None, None),
    "fp16": Precision(16, None, 50.0),
    "int8": Precision(8, "channel", 20.0),
    "int8-block": Precision(8, "block", 25.0),
    "int4-block": Precision(4, "block", 8.0),
}
