"""The peer of `bench --against`: the same clips and prompt in PyTorch and transformers, in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime.audio.read import Waveform
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.child import Child, ChildError
from dasheng_edge.runtime.errors import CheckpointError, MissingExtraError
from dasheng_edge.runtime.machine.identity import identify
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.text.prompt import Prompt

MODULE = "dasheng_edge.export.reference.bench"  # started by name: the runtime must not import upwards
# Instructions without which bfloat16 is slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class SameWork:
    """What the bundle was measured on."""

    bundle: Bundle
    waveforms: tuple[Waveform, ...]
    prompt: Prompt
    new_tokens: tuple[int, ...]  # of each clip
    rounds: int
    threads: int


@dataclass(frozen=True)
class Against:
    """What it took there. The first token is not timed separately, and reading audio files is not included."""

    dtype: str
    load_ms: float
    stages_ms: dict[str, list[float]]  # a value for each round and clip
    peak_rss_bytes: int | None


def check_transformers() -> None:
    """Raises MissingExtraError if there is nothing to compare with."""
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise MissingExtraError(
            f"--against transformers needs {' and '.join(missing)}; run {install_line('export', 'cpu')}"
        )
    if find_spec("dasheng_edge.export") is None or find_spec(MODULE) is None:
        raise MissingExtraError(f"--against transformers needs the exporter; run {install_line('export', 'cpu')}")


def compare(work: SameWork, checkpoint: Path) -> Against:
    """Run the checkpoint on the CPU, in bfloat16 if this CPU computes in it, or else in float32.

    An adapter that is merged into the bundle changes no speed, so the checkpoint is run without.

    Raises:
        CheckpointError: the checkpoint cannot be opened or is not the bundle's, or the process failed; the message has
            its words.
    """
    dtype = "bfloat16" if _BFLOAT16_FLAGS & set(identify().cpu_flags) else "float32"
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips.npz"
        with clips.open("wb") as file:
            np.savez(file, *work.waveforms)
        try:
            with Child(MODULE) as child:
                measured = child.ask(_request(work, checkpoint, clips, dtype))
        except ChildError as error:
            raise CheckpointError(
                f"running {checkpoint} in transformers ended with {error.status}: {error.said}"
            ) from error
    return Against(dtype, **measured)


def _request(work: SameWork, checkpoint: Path, clips: Path, dtype: str) -> dict[str, Any]:
    encoder, decoder = work.bundle.manifest.encoder, work.bundle.decoder_facts
    return {
        "checkpoint": str(checkpoint),
        "sizes": {
            "embed_dim": encoder.embed_dim, "depth": encoder.depth, "hidden_size": decoder.hidden_size,
            "layers": decoder.layers, "vocab_size": decoder.vocab_size,
        },
        "clips": str(clips),
        "prompt": work.prompt.rows(None),
        "new_tokens": work.new_tokens,
        "rounds": work.rounds,
        "threads": work.threads,
        "dtype": dtype,
    }  # fmt: skip


def joined(blocks: Sequence[Waveform]) -> Waveform:
    """One waveform float32 [n] of its blocks."""
    return np.concatenate([*blocks, np.zeros(0, np.float32)])
