"""What a quantized bundle is made of: a precision for each part, and the named recipes in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dasheng_edge.quant.decoder.types import DecoderType
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.runtime.bundle.manifest import KvType

RecipeName = Literal["reference", "balanced", "small", "tiny"]


@dataclass(frozen=True)
class Recipe:
    """Precisions of encoder and projector, of the decoder, and of its keys and values; None: as in the source."""

    encoder: EncoderPrecision | None
    decoder: DecoderType | None
    kv_type: KvType | None
    imatrix: bool = False  # whether it is not made without an importance matrix

    @property
    def text(self) -> str:
        """As in "int8, Q4_K_M with an importance matrix, f16"."""
        decoder = f"{self.decoder} with an importance matrix" if self.imatrix else self.decoder
        return ", ".join(part for part in (self.encoder, decoder, self.kv_type) if part)


# "small" uses an importance matrix if there are clips to measure it on, but does not require it: on micro, Q4_K_M is
# the same with and without (benchmarks/results/quantization).
RECIPES: Mapping[str, Recipe] = {
    "reference": Recipe("fp32", "F16", "f16"),
    "balanced": Recipe("int8", "Q6_K", "f16"),
    "small": Recipe("int8", "Q4_K_M", "f16"),
    "tiny": Recipe("mixed", "IQ3_XXS", "q8_0", imatrix=True),
}
assert get_args(RecipeName) == tuple(RECIPES)
