"""What an export is asked for. No heavy import: the command line reads its choices from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# llama.cpp's file types that need no importance matrix, best first.
DecoderType = Literal[
    "F32", "BF16", "F16",
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
]  # fmt: skip
EncoderPrecision = Literal["fp32"]


@dataclass(frozen=True)
class PromptOverrides:
    """What the exporter was told to take instead; None: as the checkpoint or its variant says, `system=""`: none."""

    prompt: str | None = None
    system: str | None = None
    audio_first: bool | None = None  # order in the user's turn


@dataclass(frozen=True)
class ExportOptions:
    """One export: a checkpoint and its adapters, merged in this order, to a bundle."""

    checkpoint: Path
    out: Path
    adapters: tuple[Path, ...] = ()
    encoder: EncoderPrecision = "fp32"
    decoder: DecoderType = "F16"
    overwrite: bool = False
    overrides: PromptOverrides = PromptOverrides()
