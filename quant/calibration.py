"""Clips as the parts of a bundle see them: what a quantization is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.clips import ClipSet, calibration_warnings
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.golden import GoldenClip
from dasheng_edge.runtime.bundle.manifest import CalibrationFacts
from dasheng_edge.runtime.progress import Advance


@dataclass(frozen=True)
class Calibration:
    """Features of clips with their prompts; `facts` is None where they are only the bundle's golden clips."""

    features: tuple[Features, ...]
    prompts: tuple[str | None, ...]
    facts: CalibrationFacts | None
    warnings: tuple[str, ...] = ()


def calibrate_on(clips: ClipSet, parts: AudioParts, advance: Advance) -> Calibration:
    """Read the clips.

    Raises:
        AudioError: one cannot be read.
    """
    rate = parts.front_end.spec.sample_rate_hz
    digest, samples, features = hashlib.sha256(), 0, []
    for clip in clips.clips:
        waveform = clip.read(rate)
        digest.update(np.ascontiguousarray(waveform, np.float32).tobytes())
        samples += len(waveform)
        features.append(parts.front_end.features([waveform]))
        advance(1)
    audio_s = samples / rate
    facts = CalibrationFacts(name=clips.name, clips=len(features), audio_s=round(audio_s, 3), sha256=digest.hexdigest())
    warnings = calibration_warnings([one.log_mel for one in features], audio_s)
    return Calibration(tuple(features), tuple(clip.prompt for clip in clips.clips), facts, warnings)


def golden_features(golden: Sequence[GoldenClip], parts: AudioParts) -> Calibration:
    """What a bundle brings with it, for a loss to be measured on where there are no clips."""
    waveforms = [clip.waveform.astype(np.float32) / np.float32(32768) for clip in golden]
    return Calibration(
        tuple(parts.front_end.features([one]) for one in waveforms), tuple(None for _ in waveforms), None
    )
