"""Mutated audio files, of containers that are made here by FFmpeg."""

from __future__ import annotations

import io
from functools import cache, partial
from pathlib import Path

import av
import av.error
import numpy as np

from dasheng_edge.runtime.audio.read import read_audio

from .case import Case
from .mutate import Rng, mutated, spliced

MAX_SAMPLES = 600 * 16_000  # a mutated length may be hours of silence, which are read as fast as any
# Container and codec by FFmpeg's names, rate, layout.
CONTAINERS = (
    ("wav", "pcm_s16le", 44_100, "stereo"), ("wav", "pcm_f32le", 48_000, "mono"), ("wav", "pcm_u8", 8_000, "mono"),
    ("wav", "pcm_s24le", 48_000, "5.1"), ("wav", "adpcm_ms", 22_050, "mono"), ("wav", "pcm_mulaw", 8_000, "mono"),
    ("w64", "pcm_s16le", 44_100, "stereo"), ("aiff", "pcm_s16be", 44_100, "stereo"),
    ("au", "pcm_s16be", 16_000, "mono"),
    ("caf", "pcm_s16le", 44_100, "stereo"), ("voc", "pcm_u8", 11_025, "mono"), ("sox", "pcm_s32le", 44_100, "stereo"),
    ("flac", "flac", 44_100, "stereo"), ("ogg", "flac", 44_100, "mono"), ("ogg", "libopus", 48_000, "stereo"),
    ("ogg", "libvorbis", 44_100, "stereo"), ("opus", "libopus", 48_000, "7.1"), ("mp3", "libmp3lame", 44_100, "stereo"),
    ("mp3", "libmp3lame", 16_000, "mono"), ("mp2", "mp2", 44_100, "stereo"), ("adts", "aac", 44_100, "stereo"),
    ("mp4", "aac", 48_000, "stereo"), ("ipod", "aac", 44_100, "7.1"), ("mov", "pcm_s16be", 48_000, "stereo"),
    ("mp4", "alac", 44_100, "stereo"), ("matroska", "flac", 44_100, "stereo"), ("matroska", "aac", 44_100, "5.1"),
    ("matroska", "pcm_s16le", 44_100, "mono"), ("webm", "libopus", 48_000, "stereo"),
    ("webm", "libvorbis", 44_100, "mono"),
    ("mpegts", "mp2", 48_000, "stereo"), ("mpegts", "aac", 44_100, "stereo"), ("avi", "libmp3lame", 44_100, "stereo"),
    ("avi", "pcm_s16le", 44_100, "stereo"), ("flv", "aac", 44_100, "stereo"), ("asf", "wmav2", 44_100, "stereo"),
    ("ac3", "ac3", 48_000, "5.1"), ("eac3", "eac3", 48_000, "stereo"), ("wv", "wavpack", 44_100, "7.1"),
    ("tta", "tta", 44_100, "stereo"), ("rm", "ac3", 44_100, "stereo"), ("nut", "pcm_s16le", 44_100, "stereo"),
    ("wav", "pcm_s16le", 48_000, "22.2"), ("matroska", "pcm_s16le", 384_000, "stereo"),
    ("nut", "pcm_f64le", 96_000, "5.1"),
    ("3gp", "aac", 44_100, "mono"), ("gxf", "pcm_s16le", 48_000, "mono"), ("dts", "dca", 48_000, "stereo"),
)  # fmt: skip


@cache
def container(number: int, seconds: float = 0.7) -> bytes:
    """The file of a row of the table: a rising tone, a pause, a burst of noise; empty if FFmpeg cannot write it."""
    form, codec, rate, layout = CONTAINERS[number]
    channels = av.AudioLayout(layout).nb_channels
    t = np.arange(int(rate * seconds)) / rate
    sound = 0.3 * np.sin(2 * np.pi * (200 + 800 * t) * t) * (t < 0.3)
    sound += np.where(t > 0.45, np.random.default_rng(0).normal(0, 0.1, len(t)), 0)
    samples = np.repeat(sound.astype(np.float32), channels).reshape(1, -1)
    out = io.BytesIO()
    try:
        with av.open(out, "w", format=form) as file:
            options = {"strict": "experimental"}
            stream = file.add_stream(codec, rate=rate, options=options, layout=layout)
            assert isinstance(stream, av.AudioStream)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=size)
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                file.mux(stream.encode(part))
    except (av.error.FFmpegError, ValueError):
        return b""
    return out.getvalue()


def mutated_file(rng: Rng, folder: Path) -> tuple[str, Path]:
    """What it was, and where it is."""
    rows = [number for number in range(len(CONTAINERS)) if container(number)]
    number = rows[int(rng.integers(len(rows)))]
    data = container(number)
    if rng.random() < 0.1:
        data = spliced(data, container(rows[int(rng.integers(len(rows)))]), rng)
    form, codec, _, layout = CONTAINERS[number]
    path = folder / f"audio.{form}"
    path.write_bytes(mutated(data, rng, header_bytes=512 if rng.random() < 0.6 else None))
    return f"{form} {codec} {layout}", path


def audio(rng: Rng, folder: Path) -> Case:
    """Read in blocks."""
    what, path = mutated_file(rng, folder)
    source = path.read_bytes() if rng.random() < 0.1 else path
    return Case(what, partial(_read, source))


def _read(source: Path | bytes) -> int:
    samples = 0
    for block in read_audio(source):
        if block.dtype != np.float32 or block.ndim != 1 or not np.isfinite(block).all():
            raise AssertionError(f"a block of {block.dtype}, {block.shape}, finite: {np.isfinite(block).all()}")
        samples += len(block)
        if samples > MAX_SAMPLES:
            break
    return samples


def containers_at_hand() -> int:
    """How many of the table this FFmpeg writes."""
    return sum(bool(container(number)) for number in range(len(CONTAINERS)))
