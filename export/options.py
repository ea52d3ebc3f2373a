"""What an export is asked for. No heavy import: the command line reads its choices from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dasheng_edge.export.prompt.overrides import PromptOverrides
from dasheng_edge.quant.decoder.types import PlainType

EncoderPrecision = Literal["fp32"]  # `dasheng-edge quantize` makes the others


_AS_THE_CHECKPOINT_SAYS = PromptOverrides()


@dataclass(frozen=True)
class ExportOptions:
    """One export: a checkpoint and its adapters, merged in this order, to a bundle."""

    checkpoint: Path
    out: Path
    adapters: tuple[Path, ...] = ()
    encoder: EncoderPrecision = "fp32"
    decoder: PlainType = "F16"
    overwrite: bool = False
    overrides: PromptOverrides = _AS_THE_CHECKPOINT_SAYS
