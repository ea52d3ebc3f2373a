"""Whether clips to calibrate on are different enough, told apart on scenes and on cuts of one sound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.micro.scenes.synthesise import plan_scene, render_scene
from dasheng_edge.quant.calibration import MIN_CLIPS, calibration_warnings
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.engine_options import EngineSettings

RATE_HZ = 16_000


def log_mels(tiny_bundle: Path, waveforms: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    parts = AudioParts.open(Bundle.open(tiny_bundle), EngineSettings())
    return [parts.front_end.features([waveform]).log_mel for waveform in waveforms]


@pytest.mark.slow
def test_scenes_are_different_and_cuts_or_copies_of_one_sound_are_not(tiny_bundle: Path) -> None:
    plans = [plan for plan in map(plan_scene, range(200)) if plan.language == "none"]  # the others need espeak-ng
    scenes = [render_scene(plan).waveform for plan in plans[:64]]
    assert calibration_warnings(log_mels(tiny_bundle, scenes), 400.0) == ()
    long = (plan_scene(seed, duration_s=20.0) for seed in range(1000))
    rain = render_scene(next(plan for plan in long if plan.labels == "rain")).waveform
    starts = np.linspace(0, len(rain) - 4 * RATE_HZ, 64).astype(int)
    for alike in ([rain[start : start + 4 * RATE_HZ] for start in starts], [rain[: 4 * RATE_HZ]] * 64):
        (warning,) = calibration_warnings(log_mels(tiny_bundle, alike), 256.0)
        assert re.match(r"(9\d|100) % of the calibration clips sound like another", warning)


def spectrum(level_db: float, seed: int) -> NDArray[np.float32]:
    """Log-mel of a scene: each band about its own level."""
    generator = np.random.default_rng(seed)
    return (level_db + generator.normal(0, 3, (64, 100))).astype(np.float32)


def test_many_different_clips_are_fine() -> None:
    different = [spectrum(-60 + 3.0 * i, i) for i in range(MIN_CLIPS)]
    assert calibration_warnings(different, 120.0) == ()


@pytest.mark.parametrize(("clips", "seconds"), [(MIN_CLIPS - 1, 120.0), (MIN_CLIPS, 119.0), (1, 1.0)])
def test_few_clips_are_told(clips: int, seconds: float) -> None:
    (warning,) = calibration_warnings([spectrum(-60 + 3.0 * i, i) for i in range(clips)], seconds)
    assert warning == (
        f"{clips} clips of {seconds:.0f} s in all are few to calibrate on: use 32 or more, of 120 s in all, like what "
        "the model will hear"
    )


def test_alike_clips_are_told_where_they_are_more_than_half() -> None:
    different = [spectrum(-60 + 3.0 * i, i) for i in range(20)]
    alike = [spectrum(20.0, 100 + i) for i in range(20)]
    assert calibration_warnings(different + alike, 600.0) == ()
    (warning,) = calibration_warnings(different[:-1] + alike, 600.0)
    assert warning == "51 % of the calibration clips sound like another of them: choose different ones"
    louder = [one + np.float32(4) * i for i, one in enumerate(alike)]  # the mean of each band tells them apart
    assert calibration_warnings(louder + different, 600.0) == ()
