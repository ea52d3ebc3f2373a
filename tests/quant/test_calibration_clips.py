"""Whether clips to calibrate on are different enough, told apart on scenes and on cuts of one sound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.micro.scenes.synthesise import plan_scene, render_scene
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.clips import calibration_warnings
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
