"""Decoded frames -> float32 -> one channel, and what levels say: no samples, channels that cancel, nothing to hear."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import av
import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import AudioError

GATHERED_S = 0.5  # of frames, before they are resampled
LISTED = re.compile(r"channels \(|ambisonic.*\+|@")  # in the name of a layout that may be a list of channels
MAX_LEVEL = 100.0  # full scale is 1; more than this means integers kept as floats
SILENT = 1e-4  # what moves less than this (-80 dB, three steps of 16 bits) is nothing to hear, at whatever offset
SHORT_S = 0.1  # half an audio token
# Channels that have nothing to do with each other mix to a power of 1/n of theirs. Below a fiftieth of that they are
# copies of each other turned upside down: two that correlate by less than -0.98.
CANCELLING = 0.02


def give_plain_layout(decoder: av.AudioCodecContext) -> None:
    """Replace a layout that lists its channels one by one, before the decoder is opened.

    PyAV's layouts share that list with FFmpeg's, and both free it. Here only the one that was replaced does.
    """
    layout = decoder.layout
    if layout.nb_channels:
        named = not LISTED.search(layout.name)
        decoder.layout = layout.name if named else f"{layout.nb_channels} channels"


def keep_layout(frame: av.AudioFrame) -> None:
    """Keep the layout of a frame for ever where its decoder listed the channels: FFmpeg frees that list."""
    if LISTED.search(frame.layout.name):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(frame.layout))


GATHERED = ("mono", "stereo", "1 channels", "2 channels")  # as FFmpeg calls them, which of many a WAV knows the number


class Packer:
    """Decoded frames as packed float32. Nothing else is safe: PyAV walks past the planes of eight channels and more.

    FFmpeg's resampler takes longer for a frame than most decoders do, so frames of one or two channels are gathered.
    """

    def __init__(self) -> None:
        self._kind: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler
        self._fifo: av.AudioFifo

    def packed(self, frame: av.AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Sample rate and float32 [n, channels] of what is ready, which this frame need not be; see `rest`.

        Raises:
            ValueError or one of FFmpeg's errors: the frame makes no sense.
        """
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:
            yield from self.rest()
            resampler = av.AudioResampler(format="flt")
            yield frame.sample_rate, _samples(resampler, frame)  # tries it out, too
            self._kind, self._resampler, self._fifo = kind, resampler, av.AudioFifo()
        elif kind[1] not in GATHERED:
            yield frame.sample_rate, _samples(self._resampler, frame)
        else:
            frame.pts = None
            self._fifo.write(frame)
            if self._fifo.samples >= GATHERED_S * frame.sample_rate:
                yield from self.rest()

    def rest(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What was gathered and not given yet."""
        if self._kind is not None and (frame := self._fifo.read()) is not None:
            frame.sample_rate, frame.pts = self._kind[2], None
            yield self._kind[2], _samples(self._resampler, frame)


def _samples(resampler: av.AudioResampler, frame: av.AudioFrame) -> NDArray[np.float32]:
    parts = []
    for packed in resampler.resample(frame):
        channels = packed.layout.nb_channels
        if packed.format.name != "flt" or not channels:
            raise ValueError(f"a frame of {packed.format.name} with {channels} channels")
        data = np.frombuffer(memoryview(packed.planes[0]), np.float32, packed.samples * channels)
        parts.append(data.reshape(-1, channels))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


class Mixer:
    """Mixes the blocks of one clip, in their order, and remembers what there is to say about it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seconds = 0.0
        self._samples = 0
        self._low, self._high = np.inf, -np.inf
        self._cancelled: list[float] = []  # where it begins, and how many seconds of it there are
        self._channel = 0

    def mono(self, block: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        """The next second or so, float32 [n, channels] -> [n]: the mean of the channels, or one of them if they cancel.

        Raises:
            AudioError: samples are NaN, infinite, or so loud that they are no samples.
        """
        loudest = float(np.abs(block).max())
        if not np.isfinite(loudest):
            raise AudioError(
                f"{self._name} holds NaN or infinite samples after {self._seconds:.2f} s; expected finite ones"
            )
        if loudest > MAX_LEVEL:
            raise AudioError(
                f"{self._name} reaches {loudest:g} after {self._seconds:.2f} s, full scale is 1; these look like "
                "integers kept as floats: use the integers themselves, or divide by 32768"
            )
        mono = block[:, 0] if block.shape[1] == 1 else self._mixed(block, rate_hz)
        self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
        self._samples += len(mono)
        self._seconds += len(mono) / rate_hz
        return mono

    def _mixed(self, block: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        channels = np.ascontiguousarray(block.T)  # numpy takes ten times as long along a short last axis
        mean: NDArray[np.float32] = channels.mean(axis=0, dtype=np.float32)
        powers = np.array([np.dot(channel, channel) / len(channel) for channel in channels])
        uncorrelated = float(powers.mean()) / len(powers)
        if uncorrelated <= SILENT**2 or float(np.dot(mean, mean) / len(mean)) >= CANCELLING * uncorrelated:
            return mean
        channel = int(np.argmax(powers >= powers.max() / 2))  # the first loud one: the same in every block
        begin, so_far = self._cancelled or (self._seconds, 0.0)
        self._cancelled, self._channel = [begin, so_far + len(block) / rate_hz], channel + 1
        alone: NDArray[np.float32] = channels[channel].copy()
        return alone

    def warnings(self) -> Iterator[str]:
        """What there is to say, once all blocks were mixed."""
        if self._cancelled:
            begin, seconds = self._cancelled
            yield (
                f"channels cancel each other when they are mixed, for {seconds:.2f} s from {begin:.2f} s on, as where "
                f"one is wired upside down; channel {self._channel} alone is heard there"
            )
        if self._samples and self._seconds < SHORT_S:
            samples = "1 sample" if self._samples == 1 else f"{self._samples} samples"
            yield f"it is only {1000 * self._seconds:.3g} ms long ({samples}): there is next to nothing to hear"
        if self._high - self._low < SILENT:
            yield "it is silent: there is nothing to hear"
