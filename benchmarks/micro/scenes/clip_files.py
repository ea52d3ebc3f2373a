"""Clips on disk: FLAC files and their `references.jsonl`, written as a whole folder or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks.micro.scenes.signals import RATE, Samples
from dasheng_edge.runtime.atomic_output import replacing

REFERENCES = "references.jsonl"
Reference = dict[str, str | int | float | list[str]]


@dataclass(frozen=True)
class Clip:
    """A waveform (float32 [samples], 16 kHz) and what is to be known about it; the file is `name`.flac."""

    name: str
    waveform: Samples
    reference: Reference


def write_clips(folder: Path, clips: Iterable[Clip]) -> int:
    """Writes `folder`, one FLAC per clip and the references; bytes written. Refuses an existing folder."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it, or pass another folder.")
    with replacing(folder) as fresh:
        fresh.mkdir()
        lines = []
        for clip in clips:
            file = fresh / f"{clip.name}.flac"
            write_flac(file, clip.waveform)
            row: Reference = {"file": file.name, "seconds": round(len(clip.waveform) / RATE, 3)}
            lines.append(json.dumps(row | clip.reference, ensure_ascii=False) + "\n")
        (fresh / REFERENCES).write_text("".join(lines), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def write_flac(path: Path, waveform: Samples) -> None:
    """16-bit mono FLAC at 16 kHz of float32 [samples] in [-1, 1]."""
    pcm = np.clip(np.rint(waveform * 32_768), -32_768, 32_767).astype(np.int16)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, options={"compression_level": "12"})
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
