"""Writes small audio and video files with FFmpeg, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from numpy.typing import NDArray

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


@dataclass(frozen=True)
class Format:
    """A file type: FFmpeg's names of the container and the codec, and a rate that the codec takes."""

    suffix: str
    container: str
    codec: str
    rate: int = 48_000
    lossless: bool = False
    video: bool = False


FORMATS = (
    Format("wav", "wav", "pcm_s16le", 44_100, lossless=True),
    Format("flac", "flac", "flac", 22_050, lossless=True),
    Format("mp3", "mp3", "libmp3lame", 44_100),
    Format("ogg", "ogg", "libopus"),
    Format("opus", "opus", "libopus"),
    Format("m4a", "mp4", "aac", 44_100),
    Format("aac", "adts", "aac", 44_100),
    Format("webm", "webm", "libopus"),
    Format("mp4", "mp4", "aac", video=True),
)


def sine(frequency_hz: float, seconds: float, rate: int, amplitude: float = 0.5) -> NDArray[np.float32]:
    """A tone, float32 [n]."""
    t = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


def write_audio(path: Path, waveform: NDArray[np.float32], kind: Format) -> Path:
    """Encode float32 [n] or [channels, n], full scale 1, and return the path."""
    channels = np.atleast_2d(waveform)
    layout = LAYOUTS[len(channels)]
    with av.open(path, "w", format=kind.container) as container:
        stream = container.add_stream(kind.codec, rate=kind.rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if kind.video:
            _add_video(container, channels.shape[1] / kind.rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = kind.rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=kind.rate, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return path


def _add_video(container: OutputContainer, seconds: float) -> None:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for index in range(round(25 * seconds)):
        picture = np.full((64, 64, 3), index % 255, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))
