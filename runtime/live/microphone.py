"""Audio from a device, which may be unplugged and come back."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import AudioError
from dasheng_edge.runtime.names import printable

from .devices import Device, choose, devices, portaudio
from .source import NOTHING, PIECE_S, Clock, Piece

MAX_WAITING_S = 60.0  # of audio that is kept while nobody takes it: 12 MB
GONE_S = 3.0  # without a sample
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between attempts to have a device back; the last one for ever


class Recorder(Protocol):
    """A device that is recorded: it hands float32 [n, channels] to whoever opened it, from a thread of its own."""

    def alive(self) -> bool: ...
    def close(self) -> None: ...


Put = Callable[[NDArray[np.float32]], None]


class _Input:
    """An input of PortAudio."""

    def __init__(self, device: Device, put: Put) -> None:
        sounddevice = portaudio()

        def copied(samples: NDArray[np.float32], *_: object) -> None:
            put(samples.copy())

        try:
            self._stream = sounddevice.InputStream(
                device=device.place, channels=device.channels, samplerate=device.rate_hz, dtype="float32",
                blocksize=round(device.rate_hz * PIECE_S), callback=copied,
            )  # fmt: skip
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(f"{printable(device.name)} cannot be recorded: {error}") from error

    def alive(self) -> bool:
        return bool(self._stream.active)

    def close(self) -> None:
        with suppress(Exception):  # it may be gone
            self._stream.close()


class _Monitor:
    """A monitor of PulseAudio, by its own recorder."""

    def __init__(self, device: Device, put: Put) -> None:
        command = [
            "parec", f"--device={device.place}", "--format=float32le", f"--rate={device.rate_hz}", "--channels=1",
            "--latency-msec=100", "--client-name=dasheng-edge",
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603
        except OSError as error:
            raise AudioError(f"{printable(device.name)} cannot be recorded: {error}") from error
        self._thread = threading.Thread(target=self._read, args=(put, device.rate_hz), daemon=True, name="parec")
        self._thread.start()

    def _read(self, put: Put, rate_hz: int) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read(4 * round(rate_hz * PIECE_S)):
            put(np.frombuffer(data[: len(data) // 4 * 4], "<f4")[:, None].astype(np.float32))

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def record(device: Device, put: Put) -> Recorder:
    """Record a device; `put` is given what comes, in a thread that must not wait.

    Raises:
        AudioError: it cannot be recorded.
        MissingExtraError: PortAudio is not installed.
    """
    return _Monitor(device, put) if device.is_monitor else _Input(device, put)


class _Waiting:
    """What was recorded and not taken; the newest is lost where nobody takes it."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz, self._lock = rate_hz, threading.Lock()
        self._blocks: deque[NDArray[np.float32]] = deque()
        self._samples = self._lost = 0

    def put(self, block: NDArray[np.float32]) -> None:
        with self._lock:
            if self._lost or self._samples >= MAX_WAITING_S * self._rate_hz:
                self._lost += len(block)  # in one piece: until all of it was taken
            else:
                self._blocks.append(block)
                self._samples += len(block)

    def take(self) -> tuple[list[NDArray[np.float32]], float]:
        """Blocks, and how many seconds are missing behind them."""
        with self._lock:
            blocks, lost = [*self._blocks], self._lost
            self._blocks.clear()
            self._samples = self._lost = 0
        return blocks, lost / self._rate_hz

    def seconds(self) -> float:
        return self._samples / self._rate_hz


class Microphone:
    """Audio of a device, mono at `rate_hz`. One that is unplugged is told of, and waited for.

    Raises what `choose` raises.
    """

    def __init__(self, wanted: str | None, rate_hz: int, clock: Clock, say: Callable[[str], None]) -> None:
        self._device = choose(wanted, *devices())
        self._rate_hz, self._clock, self._say = rate_hz, clock, say
        self._waiting = _Waiting(self._device.rate_hz)

    @property
    def name(self) -> str:
        """The device."""
        return self._device.name

    def behind_s(self) -> float:
        """See `Source`."""
        return self._waiting.seconds()

    def pieces(self) -> Iterator[Piece]:
        """See `Source`; it never ends, and gives an empty piece where there is nothing yet."""
        recorder = record(self._device, self._put)
        self._last_s, lost_s = self._clock.now(), 0.0
        while True:
            try:
                yield from self._recorded(recorder, lost_s)
            finally:
                recorder.close()
            recorder = yield from self._found_again()
            lost_s = self._clock.now() - self._last_s

    def _put(self, block: NDArray[np.float32]) -> None:
        self._waiting.put(block)

    def _recorded(self, recorder: Recorder, lost_s: float) -> Iterator[Piece]:
        """Pieces until the device is gone."""
        self._last_s = self._clock.now()
        resampler = soxr.ResampleStream(self._device.rate_hz, self._rate_hz, 1, dtype="float32", quality="HQ")
        while True:
            alive = recorder.alive()  # asked first: what it left is taken
            blocks, missing_s = self._waiting.take()
            if blocks:
                self._last_s = self._clock.now()
                mono = np.concatenate(blocks).mean(axis=1, dtype=np.float32)
                yield Piece(resampler.resample_chunk(mono), lost_s)
                lost_s = missing_s
            elif alive and self._clock.now() - self._last_s <= GONE_S:
                yield NOTHING
                self._clock.sleep(PIECE_S / 2)
            else:
                yield Piece(resampler.resample_chunk(np.zeros(0, np.float32), last=True), ends=True)
                return

    def _found_again(self) -> Generator[Piece, None, Recorder]:
        """Wait until the device is there again."""
        self._say(f"{self.name} is gone; it is looked for every {RETRY_S[0]:g} to {RETRY_S[-1]:g} s until it is back")
        for wait_s in chain(RETRY_S, repeat(RETRY_S[-1])):
            until_s = self._clock.now() + wait_s
            while self._clock.now() < until_s:
                yield NOTHING
                self._clock.sleep(PIECE_S)
            with suppress(AudioError):
                self._device = choose(self.name, *devices(again=True))
                self._waiting = _Waiting(self._device.rate_hz)
                recorder = record(self._device, self._put)
                self._say(f"{self.name} is back")
                return recorder
        raise AssertionError
