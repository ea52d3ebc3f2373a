"""sounddevice is a module with its interface; PulseAudio's programs are scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import AudioError, MissingExtraError
from dasheng_edge.runtime.live import microphone
from dasheng_edge.runtime.live.devices import Device, choose, devices
from dasheng_edge.runtime.live.microphone import GONE_S, MAX_WAITING_S, RETRY_S, Microphone
from dasheng_edge.runtime.live.source import PIECE_S, SystemClock
from tests.runtime.live.test_listening import FakeClock

RATE, DEVICE_RATE = 16_000, 48_000


class PortAudioError(Exception):
    pass


@dataclass
class FakeSound:
    """Devices, and streams that hand on a ramp while the clock goes on."""

    clock: FakeClock
    names: list[str] = field(default_factory=lambda: ["Loud Speaker", "USB Mic", "Built-in Mic"])
    streams: list[FakeStream] = field(default_factory=list)
    started: int = 1  # times that PortAudio was
    fails: bool = False

    def module(self) -> Any:
        return SimpleNamespace(
            PortAudioError=PortAudioError, default=SimpleNamespace(device=[1, 0]), query_devices=self.devices,
            InputStream=self.open, _initialize=self.start, _terminate=lambda: None,
        )  # fmt: skip

    def start(self) -> None:
        self.started += 1

    def devices(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "max_input_channels": 0 if "Speaker" in name else 2,
                "default_samplerate": float(DEVICE_RATE),
            }
            for name in self.names
        ]

    def open(self, **options: Any) -> FakeStream:
        if self.fails:
            raise PortAudioError("Device unavailable")
        self.streams.append(FakeStream(self.clock, **options))
        return self.streams[-1]


class FakeStream:
    def __init__(self, clock: FakeClock, callback: Callable[..., None], **options: Any) -> None:
        self.options, self._callback, self.active, self.closed = options, callback, True, False
        self.recorded = 0
        clock.streams.append(self)  # type: ignore[attr-defined]

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.active, self.closed = False, True

    def record(self, seconds: float) -> None:
        if self.active:
            count = round(seconds * DEVICE_RATE)
            values = (np.arange(self.recorded, self.recorded + count) / (60 * DEVICE_RATE)).astype(np.float32)
            block = np.stack([values, values], axis=1)
            self._callback(block, count, None, None)
            block[:] = 99  # PortAudio uses the memory again
            self.recorded += count


class RecordingClock(FakeClock):
    def __init__(self) -> None:
        super().__init__()
        self.streams: list[FakeStream] = []

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for stream in self.streams:
            stream.record(seconds)


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> FakeSound:
    fake = FakeSound(RecordingClock())
    monkeypatch.setitem(sys.modules, "sounddevice", fake.module())
    monkeypatch.setenv("PATH", "")  # no PulseAudio
    return fake


def take(pieces: Iterator[Any], seconds: float) -> list[Any]:
    """Pieces until so much audio has come."""
    taken, had_s = [], 0.0
    while had_s < seconds:
        taken.append(next(pieces))
        had_s += taken[-1].lost_s + len(taken[-1].samples) / RATE
    return taken


def test_inputs_are_listed_and_found_by_name(sound: FakeSound) -> None:
    known, missing = devices()
    assert missing is None
    assert [device.name for device in known] == ["USB Mic", "Built-in Mic"]
    for wanted, name in [(None, "USB Mic"), ("built", "Built-in Mic"), ("USB MIC", "USB Mic"), ("1", "Built-in Mic")]:
        assert choose(wanted, known).name == name
    for wanted, message in [
        ("mic", "2 inputs are called mic"),
        ("drum", "no input is called drum; there are: USB"),
        ("7", "called 7"),
    ]:
        with pytest.raises(AudioError, match=message):
            choose(wanted, known)
    with pytest.raises(AudioError, match="no microphone; plug one in"):
        choose(None, [])


def test_a_microphone_is_heard_whole_and_in_order(sound: FakeSound) -> None:
    mic = Microphone(None, RATE, sound.clock, pytest.fail)
    pieces = take(mic.pieces(), 5)
    heard = np.concatenate([piece.samples for piece in pieces])
    assert not any(piece.lost_s for piece in pieces)
    np.testing.assert_allclose(heard[200:], (np.arange(200, len(heard)) / (60 * RATE)), atol=2e-3)
    assert max(len(piece.samples) for piece in pieces) <= 2 * PIECE_S * RATE
    options = sound.streams[0].options
    assert (options["device"], options["samplerate"], options["channels"]) == (1, DEVICE_RATE, 2)


def test_one_that_is_unplugged_is_waited_for_and_told_of(sound: FakeSound) -> None:
    lines: list[str] = []
    mic = Microphone("usb", RATE, sound.clock, lines.append)
    pieces = mic.pieces()
    take(pieces, 2)
    sound.streams[0].active = False
    sound.names = ["Built-in Mic"]
    gone_s = sound.clock.now()
    had = [next(pieces)]
    while sound.clock.now() < gone_s + 40:
        had.append(next(pieces))
    ends = [at for at, piece in enumerate(had) if piece.ends]
    assert len(ends) == 1
    assert not any(len(piece.samples) for piece in had[ends[0] + 1 :])
    left = sum(len(piece.samples) for piece in had)
    assert left < 2 * PIECE_S * RATE  # what had come before
    assert sound.streams[0].closed
    assert sound.started == 1 + 5  # after 1, 3, 7, 15 and 30 s
    sound.names = ["Built-in Mic", "Card", "USB Mic"]
    (*_, back) = take(pieces, 50)
    assert back.lost_s == pytest.approx(sound.clock.now() - gone_s, abs=0.3)
    assert sound.streams[1].options["device"] == 2
    assert [line.partition(";")[0] for line in lines] == ["USB Mic is gone", "USB Mic is back"]


def test_one_that_says_nothing_any_more_is_gone(sound: FakeSound) -> None:
    lines: list[str] = []
    mic = Microphone("usb", RATE, sound.clock, lines.append)
    pieces = mic.pieces()
    take(pieces, 1)
    sound.clock.streams.clear()  # type: ignore[attr-defined]  # active, but no sample comes
    start_s = sound.clock.now()
    while not lines:
        next(pieces)
    assert sound.clock.now() - start_s == pytest.approx(GONE_S, abs=0.2)
    (*_, back) = take(pieces, GONE_S + RETRY_S[0])
    assert back.lost_s == pytest.approx(GONE_S + RETRY_S[0], abs=0.3)


def test_what_nobody_takes_is_lost_and_counted(sound: FakeSound) -> None:
    mic = Microphone("usb", RATE, sound.clock, pytest.fail)
    pieces = mic.pieces()
    first = take(pieces, 1)
    sound.clock.sleep(MAX_WAITING_S - 10)
    assert mic.behind_s() == pytest.approx(MAX_WAITING_S - 10, abs=0.1)
    sound.clock.sleep(20)
    sound.clock.sleep(30)
    rest = take(pieces, 105)
    lost_s = sum(piece.lost_s for piece in rest)
    assert lost_s == pytest.approx(30, abs=0.2)
    had_s = sum(len(piece.samples) for piece in first + rest) / RATE
    assert had_s + lost_s == pytest.approx(sound.clock.now() - 100, abs=0.2)


def test_one_that_cannot_be_opened_is_an_error_at_once(sound: FakeSound) -> None:
    sound.fails = True
    with pytest.raises(AudioError, match="USB Mic cannot be recorded: Device unavailable"):
        next(Microphone(None, RATE, sound.clock, pytest.fail).pieces())


def test_what_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"needs sounddevice, which is not installed; run pip install .*mic"):
        Microphone(None, RATE, FakeClock(), pytest.fail)
    monkeypatch.delitem(sys.modules, "sounddevice")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="apt install libportaudio2"):
        Microphone("anything", RATE, FakeClock(), pytest.fail)


# What this machine plays

PACTL = """#!/bin/sh
cat <<'END'
Source #1
	State: SUSPENDED
	Name: alsa_output.pci.analog-stereo.monitor
	Description: Monitor of Built-in Audio
Source #2
	Name: alsa_input.pci.analog-stereo
	Description: Built-in Audio
END
"""


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PulseAudio with a monitor; sounddevice is not installed."""
    if os.name == "nt":
        pytest.skip("needs a shell")
    for name, text in (("pactl", PACTL), ("parec", "#!/bin/sh\nexec cat sound.raw\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    return tmp_path


@pytest.mark.parametrize(
    "wanted", ["monitor", "Monitor of Built-in Audio", "0", "alsa_output.pci.analog-stereo.monitor"]
)
def test_what_this_machine_plays_is_heard_without_portaudio(
    pulse: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: NDArray[np.float32] = np.linspace(-1, 1, 20_000, dtype="<f4")
    (pulse / "sound.raw").write_bytes(samples.tobytes() + b"xx")  # killed in the middle of a sample
    known, missing = devices()
    assert missing is not None
    assert choose(wanted, known) == Device(
        "Monitor of Built-in Audio", RATE, 1, "alsa_output.pci.analog-stereo.monitor"
    )
    monkeypatch.setattr(microphone, "PIECE_S", 0.01)
    lines: list[str] = []
    pieces = Microphone(wanted, RATE, SystemClock(), lines.append).pieces()
    heard = []
    while not lines:  # the program ends, as where the server does
        heard.append(next(pieces).samples)
    np.testing.assert_allclose(np.concatenate(heard), samples, atol=1e-4)


def test_a_microphone_needs_portaudio_beside_monitors(pulse: Path) -> None:
    with pytest.raises(MissingExtraError, match="needs sounddevice"):
        Microphone(None, RATE, FakeClock(), pytest.fail)
