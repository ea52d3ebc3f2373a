"""Reads files with one library, in a process that may have nothing else: `python peer_reader.py NAME FILE...`.

Prints a line of JSON before and after each file: seconds of audio and whether there was a warning, or the
exception.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable

RATE_HZ = 16_000


def ours(path: str) -> float:
    """`read_audio`."""
    from dasheng_edge.runtime.audio.read import read_audio

    audio = read_audio(path)
    seconds = sum(map(len, audio)) / RATE_HZ
    for warning in audio.warnings:
        warnings.warn(warning, stacklevel=1)
    return seconds


def faster_whisper(path: str) -> float:
    """PyAV, as faster-whisper calls it."""
    from faster_whisper.audio import decode_audio  # type: ignore[import-not-found, unused-ignore]

    return float(len(decode_audio(path, sampling_rate=RATE_HZ)) / RATE_HZ)


def librosa(path: str) -> float:
    """libsndfile."""
    import librosa as library  # type: ignore[import-not-found, unused-ignore]

    return float(len(library.load(path, sr=RATE_HZ)[0]) / RATE_HZ)


def soundfile(path: str) -> float:
    """libsndfile, at the file's own rate."""
    import soundfile as library  # type: ignore[import-not-found, import-untyped, unused-ignore]

    samples, rate = library.read(path)
    return float(len(samples) / rate)


READERS: dict[str, Callable[[str], float]] = {
    reader.__name__: reader for reader in (ours, faster_whisper, librosa, soundfile)
}

if __name__ == "__main__":
    for file in sys.argv[2:]:
        print(json.dumps({"file": file}), flush=True)
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                seconds = READERS[sys.argv[1]](file)
            told: dict[str, object] = {"seconds": seconds, "warned": bool(heard)}
        except Exception as error:  # noqa: BLE001  # whatever a library raises
            told = {"error": f"{type(error).__name__}: {str(error)[:100]}"}
        print(json.dumps(told), flush=True)
