"""llama.cpp's file types that a decoder can be stored in, and how far each may be from its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGMLQuantizationType

# Best first. These need no importance matrix, ...
PlainType = Literal[
    "F32", "BF16", "F16",
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K",
]  # fmt: skip
# ... and these cannot be made without one. Types of 1 bit and for mixtures of experts are left out.
ImatrixType = Literal["IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"]
DecoderType = Literal[PlainType, ImatrixType]
# The exporter writes these itself; llama.cpp's quantizer makes the others.
COPIED_TYPES: tuple[DecoderType, ...] = ("F32", "BF16", "F16")
NEED_IMATRIX: tuple[DecoderType, ...] = get_args(ImatrixType)


@dataclass(frozen=True)
class DecoderOptions:
    """What a decoder is made in."""

    kind: DecoderType
    imatrix: Path | None = None  # read as `llama-quantize --imatrix` reads it
    # Regular expression that is searched in a tensor's name -> its type, as `llama-quantize --tensor-type` takes
    # them; the first that matches holds.
    tensor_types: Mapping[str, GGMLQuantizationType] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderTolerance:
    """What a decoder type may cost, as RMS of the difference over RMS of the reference."""

    weights: float  # over all matrices; one alone may cost WORST_MATRIX times that
    logits: float


# Measured on two models: a tiny one with random weights, and the trained micro model (bfloat16), each with and
# without an adapter, three clips each; the largest values, for BF16, F16, Q8_0, Q6_K, Q5, Q4, Q3_K and Q2_K:
#   weights, random   1.7e-3  2.1e-4  0.0053  0.018  0.042  0.085  0.15  0.29   tolerance: 1.5 times that
#   weights, trained  1.0e-3  1.3e-4  0.0050  0.017  0.032  0.062  0.11  0.19   (some in finer types)
#   worst matrix      1.7e-3  2.1e-4  0.0055  0.018  0.044  0.088  0.15  0.30   tolerance: 2.2 times that
#   logits, random    0.0085  0.0021  0.025   0.064  0.15   0.29   0.58  0.79   tolerance: 1.7 to 2.4; last 1.2, 1.01
#   logits, trained   0.0014  5e-4    0.014   0.029  0.046  0.20   0.13  0.16   tolerance: 2.5 (Q4) to 14 times
# Logits that are zero lose 1 and unrelated ones 1.4, so no tolerance may come near; it is why random weights have
# almost no room in Q2_K.
DECODER_TOLERANCES: Mapping[DecoderType, DecoderTolerance] = {
    "F32": DecoderTolerance(1e-7, 1e-3),
    "BF16": DecoderTolerance(2.5e-3, 0.02),
    "F16": DecoderTolerance(3.2e-4, 0.005),
    "Q8_0": DecoderTolerance(0.008, 0.05),
    "Q6_K": DecoderTolerance(0.027, 0.15),
    **dict.fromkeys(("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"), DecoderTolerance(0.065, 0.3)),
    **dict.fromkeys(("Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"), DecoderTolerance(0.13, 0.5)),
    **dict.fromkeys(("Q3_K_L", "Q3_K_M", "Q3_K_S"), DecoderTolerance(0.23, 0.7)),
    **dict.fromkeys(("IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS"), DecoderTolerance(0.27, 0.75)),
    **dict.fromkeys(("Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"), DecoderTolerance(0.45, 0.8)),
}
WORST_MATRIX = 1.5  # times the tolerance of all, which is 0.68 for Q2_K: one of zeros costs 1
# A token may differ where the reference's preference is within what the logits' tolerance explains: four
# standard deviations of a logit's error, which covers 16 tokens of three clips. At most two of the logits
# themselves, so that this says something for coarse types, too; 0.99 is the largest seen (random model, Q2_K).
TOKEN_MARGIN_DEVIATIONS, MAX_TOKEN_MARGIN = 4.0, 2.0


def token_margin(logits_std: float, kind: DecoderType) -> float:
    """Largest preference of the reference that a type may overturn, in logits."""
    deviations = min(TOKEN_MARGIN_DEVIATIONS * DECODER_TOLERANCES[kind].logits, MAX_TOKEN_MARGIN)
    return float(f"{deviations * logits_std:.3g}")
