"""What can be listened to, by name: microphones and other inputs, and what this machine plays.

PortAudio (sounddevice, the extra `mic`) knows the inputs. What a Linux desktop plays is a monitor of PulseAudio or
PipeWire, which PortAudio does not show: `pactl` lists monitors, and `parec` records one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dasheng_edge.runtime.errors import AudioError, MissingExtraError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.names import MAX_LISTED, printable

MONITOR = "monitor"  # in place of a name
_PULSE_RATE_HZ = 16_000  # PulseAudio resamples
_LONGEST_PACTL_S = 5.0


@dataclass(frozen=True)
class Device:
    """Something that can be listened to."""

    name: str
    rate_hz: int
    channels: int
    place: int | str  # PortAudio's number, or PulseAudio's name of a monitor
    default: bool = False

    @property
    def is_monitor(self) -> bool:
        """Whether it is what this machine plays."""
        return isinstance(self.place, str)


def devices(*, again: bool = False) -> tuple[list[Device], MissingExtraError | None]:
    """Inputs and monitors, and why there are no inputs, where that is so; `again` looks for new ones.

    Raises nothing.
    """
    try:
        inputs, missing = _inputs(again=again), None
    except MissingExtraError as error:
        inputs, missing = [], error
    return inputs + _monitors(), missing


def portaudio() -> Any:
    """The module sounddevice.

    Raises:
        MissingExtraError: it is not installed, or PortAudio is not.
    """
    try:
        return import_module("sounddevice")
    except ModuleNotFoundError as error:
        line = install_line("mic")
        raise MissingExtraError(f"listening needs sounddevice, which is not installed; run {line}") from error
    except OSError as error:
        raise MissingExtraError(
            "listening needs the library PortAudio, which is not installed; install it with your system's packages "
            "(Debian, Ubuntu: apt install libportaudio2; macOS: brew install portaudio)"
        ) from error


def _inputs(*, again: bool) -> list[Device]:
    sounddevice = portaudio()
    if again:  # PortAudio lists devices once, when it starts
        sounddevice._terminate()  # noqa: SLF001  # there is no public name for it
        sounddevice._initialize()  # noqa: SLF001
    chosen = sounddevice.default.device[0]
    return [
        Device(
            str(info["name"]),
            int(info["default_samplerate"]),
            min(2, info["max_input_channels"]),
            place,
            place == chosen,
        )
        for place, info in enumerate(sounddevice.query_devices())
        if info["max_input_channels"] > 0
    ]


def _monitors() -> list[Device]:
    """Monitors of PulseAudio, which PipeWire knows too; none without their programs."""
    if not (shutil.which("pactl") and shutil.which("parec")):
        return []
    try:
        listed = subprocess.run(
            ["pactl", "list", "sources"],  # noqa: S607  # as the shell finds it
            env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, timeout=_LONGEST_PACTL_S, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no server runs
        return []
    fields = [line.strip().partition(": ")[::2] for line in listed.splitlines()]
    names = [value for key, value in fields if key == "Name"]
    texts = [value for key, value in fields if key == "Description"]
    return [
        Device(text, _PULSE_RATE_HZ, 1, name)
        for name, text in zip(names, texts, strict=False)
        if name.endswith(".monitor")
    ]


def choose(wanted: str | None, known: Sequence[Device], missing: MissingExtraError | None = None) -> Device:
    """The device of a name, of a part of one, or of a number in the list; "monitor": what this machine plays.

    Raises:
        AudioError: it is none of them, or could be several.
        MissingExtraError: there may be one, but PortAudio is not installed.
    """
    fits = _fitting(wanted, known)
    if len(fits) == 1:
        return fits[0]
    if not fits and missing is not None:
        raise missing
    what = "there is no microphone" if wanted is None else f"no input is called {printable(wanted)}"
    if fits:
        what = f"{len(fits)} inputs are called {printable(str(wanted))}"
        known = fits
    names = ", ".join(printable(device.name) for device in known[:MAX_LISTED])
    raise AudioError(f"{what}; {f'there are: {names}' if names else 'plug one in'} (see listen --list-devices)")


def _fitting(wanted: str | None, known: Sequence[Device]) -> list[Device]:
    if wanted is None:
        inputs = [device for device in known if not device.is_monitor]
        return [device for device in inputs if device.default] or inputs[:1]
    if wanted.isdecimal():
        return [*known[int(wanted) : int(wanted) + 1]]
    word = wanted.casefold()
    for fits in (
        [device for device in known if word in (device.name.casefold(), str(device.place).casefold())],
        [device for device in known if device.is_monitor][:1] if word == MONITOR else [],
    ):
        if fits:
            return fits[:1]
    return [device for device in known if word in device.name.casefold()]
