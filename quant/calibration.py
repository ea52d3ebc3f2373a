"""Clips as the parts of a bundle see them: what a quantization is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.clips import ClipSet
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.golden import GoldenClip
from dasheng_edge.runtime.bundle.manifest import CalibrationFacts
from dasheng_edge.runtime.progress import Advance

# Fewer say little about what a model will hear. With 64 scenes of 6 s, importance matrices of two halves give
# quantized decoders that are equally good.
MIN_CLIPS, MIN_S = 32, 120.0
TWIN_DB = 1.5  # cuts of one sound: 0.05 to 0.7 (median of 64 cuts), different scenes: 2.8 at least, of 64


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
        AudioError: a clip cannot be read.
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
    warnings = calibration_warnings([clip.log_mel for clip in features], audio_s)
    return Calibration(tuple(features), tuple(clip.prompt for clip in clips.clips), facts, warnings)


def golden_features(golden: Sequence[GoldenClip], parts: AudioParts) -> Calibration:
    """The bundle's golden clips, on which a loss is measured if no clips are given."""
    return Calibration(tuple(parts.front_end.features([clip.samples]) for clip in golden), (None,) * len(golden), None)


def calibration_warnings(spectra: Sequence[NDArray[np.float32]], audio_s: float) -> tuple[str, ...]:
    """What speaks against calibrating on clips with these log-mels, [n_mels, frames] each, of so many seconds in all.

    Alike are clips whose log-mels have the same mean and deviation in each band.
    """
    warnings = []
    if len(spectra) < MIN_CLIPS or audio_s < MIN_S:
        warnings.append(
            f"{len(spectra)} clips of {audio_s:.0f} s in all are few to calibrate on: use {MIN_CLIPS} or more, of "
            f"{MIN_S:.0f} s in all, like what the model will hear"
        )
    if len(spectra) > 1 and (share := _alike(spectra)) > 0.5:
        warnings.append(
            f"{100 * share:.0f} % of the calibration clips sound like another of them: choose different ones"
        )
    return tuple(warnings)


def _alike(spectra: Sequence[NDArray[np.float32]]) -> float:
    """Share of the clips that have a twin, by mean and deviation over time of each mel band."""
    marks = np.stack([np.concatenate([one.mean(axis=1), one.std(axis=1)]) for one in spectra]).astype(np.float64)
    twins = 0
    for index, mark in enumerate(marks):  # a row at a time: all pairs of thousands of clips would fill the memory
        distances_db = np.abs(marks - mark).mean(axis=1)
        distances_db[index] = np.inf
        twins += bool(distances_db.min() < TWIN_DB)
    return twins / len(marks)
