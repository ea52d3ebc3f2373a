"""What an export was told about the prompt. No heavy import: the command line builds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptOverrides:
    """What the exporter takes instead; None: as the checkpoint or its variant says, `system=""`: none."""

    prompt: str | None = None
    system: str | None = None
    audio_first: bool | None = None  # order in the user's turn
