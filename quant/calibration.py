"""Clips as the parts of a bundle see them: what a quantization is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.golden import GoldenClip
from dasheng_edge.runtime.bundle.manifest import CalibrationFacts
from dasheng_edge.runtime.clips.clips import Clip, ClipSet
from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError, PromptError, clip_error
from dasheng_edge.runtime.parts import Parts
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
    names: tuple[str, ...] = ()  # of the clips


def calibrate_on(clips: ClipSet, parts: AudioParts, advance: Advance) -> Calibration:
    """Read the clips; those that cannot be read are left out, with a warning.

    Raises:
        DashengEdgeError: none can be read, for the reason that the first cannot, an AudioError mostly.
    """
    rate = parts.front_end.spec.sample_rate_hz
    digest, samples, features = hashlib.sha256(), 0, []
    read: list[Clip] = []
    errors: list[DashengEdgeError] = []
    said: list[str] = []
    for clip in clips.clips:
        try:
            waveform = clip.read(rate, said.append)
            spectra = parts.front_end.features([waveform])
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            errors.append(clip_error(f"clip {clip.id}", error))
        else:
            digest.update(np.ascontiguousarray(waveform, np.float32).tobytes())
            samples += len(waveform)
            features.append(spectra)
            read.append(clip)
        advance(1)
    if not read:
        raise errors[0]
    audio_s = samples / rate
    facts = CalibrationFacts(name=clips.name, clips=len(features), audio_s=round(audio_s, 3), sha256=digest.hexdigest())
    warnings = (
        *(f"left out of the calibration: {error}" for error in errors),
        *said,
        *calibration_warnings([clip.log_mel for clip in features], audio_s),
    )
    prompts, names = tuple(clip.prompt for clip in read), tuple(clip.id for clip in read)
    return Calibration(tuple(features), prompts, facts, warnings, names)


def fitting(
    calibration: Calibration, parts: Parts, positions: int
) -> tuple[list[tuple[Features, str | None]], list[DashengEdgeError]]:
    """Clips with their prompts that fit into so many positions of a decoder, and why others do not.

    Raises:
        AudioTooLongError, PromptError: none does; the reason is that of the first.
    """
    clips: list[tuple[Features, str | None]] = []
    left_out: list[DashengEdgeError] = []
    for name, features, prompt in zip(calibration.names, calibration.features, calibration.prompts, strict=True):
        try:
            needed = parts.audio.front_end.spec.tokens_of(features.samples) + parts.prompts.build(prompt).text_tokens
        except PromptError as error:
            left_out.append(PromptError(f"clip {name}: {error}"))
            continue
        if needed <= positions:
            clips.append((features, prompt))
        else:
            what = f"clip {name} and its prompt need {needed} positions of the decoder, which has {max(positions, 0)}"
            left_out.append(AudioTooLongError(f"{what} beside the answer; cut the clip"))
    if not clips:
        raise left_out[0]
    return clips, left_out


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
