"""Clips of noise that a model has enough to say about: what is timed must have the same length in every variant."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.records.record import BenchmarkError
from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.bundle.manifest import Sampling

RATE_HZ = 16_000
TRIES = 24
GREEDY = Sampling()


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """White noise, float32 [samples] in [-0.3, 0.3] at 16 kHz, in steps of 16 bits."""
    levels = np.random.default_rng(seed).integers(-9830, 9831, round(seconds * RATE_HZ))  # 0.3 of 32768
    return (levels / 32768).astype(np.float32)


def write_wav(path: Path, waveform: NDArray[np.float32]) -> Path:
    """As 16-bit PCM, in which `noise` loses nothing."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.rint(waveform * 32768).astype("<i2").tobytes())
    return path


def talkative_noise(captioner: Captioner, seconds: float, tokens: int) -> NDArray[np.float32]:
    """Noise that the model, greedily, says at least so many tokens about: random weights end a text at any time.

    Raises:
        BenchmarkError: no clip that was tried is one.
    """
    for seed in range(TRIES):
        waveform = noise(seconds, seed)
        said = captioner.caption((waveform, RATE_HZ), max_new_tokens=tokens, sampling=GREEDY)
        if len(said.tokens) == tokens:
            return waveform
    raise BenchmarkError(
        f"{captioner.bundle.folder.name} ends its text before {tokens} tokens on each of {TRIES} clips of "
        f"{seconds:g} s; ask for fewer with --tokens"
    )
