"""What a quantized bundle is made of: a precision for each part, and the named recipes in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dasheng_edge.runtime.bundle import KvType

from .decoder_types import NEED_IMATRIX, DecoderType

# fp16: weights stored as halves, computed with in float32 on CPU and in float16 on CUDA. int8: weights by output
# channel, activations quantized on the fly. The block ones quantize weights alone. mixed: chosen matrix by matrix.
EncoderPrecision = Literal["fp32", "fp16", "int8", "int8-block", "int4-block", "mixed"]


@dataclass(frozen=True)
class Recipe:
    """Precisions of encoder and projector, of the decoder, and of its keys and values."""

    encoder: EncoderPrecision = "fp32"
    decoder: DecoderType = "F16"
    kv_type: KvType = "f16"
    imatrix: bool = False  # whether the decoder is quantized with an importance matrix

    @property
    def calibrated(self) -> bool:
        """Whether it cannot be made without clips to measure on, or an importance matrix."""
        return self.imatrix or self.decoder in NEED_IMATRIX or self.encoder == "mixed"


# Chosen by the comparison in benchmarks/results/quantization.md.
RECIPES: Mapping[str, Recipe] = {
    "reference": Recipe("fp32", "F16"),
    "balanced": Recipe("int8", "Q6_K"),
    "small": Recipe("int8", "Q4_K_M", imatrix=True),
    "tiny": Recipe("mixed", "IQ3_XXS", "q8_0", imatrix=True),
}
