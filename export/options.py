"""What an export is asked for. No heavy import: the command line reads its choices from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dasheng_edge.quant.decoder.types import PlainType

EncoderPrecision = Literal["fp32"]  # `dasheng-edge quantize` makes the others


@dataclass(frozen=True)
class PromptOverrides:
    """What is said about the prompt instead; None: as the checkpoint or its variant says, `system=""`: none."""

    prompt: str | None = None
    system: str | None = None
    audio_first: bool | None = None  # order in the user's turn


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
    pad_last_chunk: bool | None = None  # of a Dasheng encoder alone; None: as the checkpoint says, else not
