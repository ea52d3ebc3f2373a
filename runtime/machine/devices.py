"""Where the parts run and on how many threads: checked choices, with no silent fallback."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dasheng_edge.runtime.errors import DeviceError

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)
PROVIDERS: Mapping[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # of ONNX Runtime
EXTRAS: Mapping[Device, str] = {"cpu": "cpu", "cuda": "gpu"}  # of this package, which bring that provider
DeviceChoice = Literal["cpu", "cuda", "auto"]  # what a user may ask for: "auto" is what `choose_placement` finds


@dataclass(frozen=True)
class Placement:
    """Where the parts of a bundle are: the decoder, and those before it, of which the encoder is one."""

    encoder: Device
    decoder: Device

    def __str__(self) -> str:
        """As `--device` takes it."""
        return self.encoder if self.encoder == self.decoder else f"encoder={self.encoder},decoder={self.decoder}"

    def within(self, other: Placement) -> bool:
        """Whether it has nothing on a GPU that the other has on the CPU."""
        return (self.encoder, other.encoder) != ("cuda", "cpu") and (self.decoder, other.decoder) != ("cuda", "cpu")

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Reads what `str` gives; parts that are not named are on the CPU.

        Raises:
            DeviceError: it is neither a device nor parts with their devices.
        """
        if "=" not in text:
            return cls(checked_device(text), checked_device(text))
        places: dict[str, Device] = {}
        for one in text.split(","):
            part, _, device = one.strip().partition("=")
            if part not in ("encoder", "decoder") or part in places:
                raise DeviceError(f"got {text!r} for the devices of parts; expected such as encoder=cuda,decoder=cpu")
            places[part] = checked_device(device)
        return cls(places.get("encoder", "cpu"), places.get("decoder", "cpu"))


ON_CPU = Placement("cpu", "cpu")

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def checked_device(device: str) -> Device:
    """The device, if it is one that is known.

    Raises:
        DeviceError: it is not.
    """
    for known in DEVICES:
        if device == known:
            return known
    raise DeviceError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")


def checked_threads(threads: int | None) -> int:
    """The number of threads to use; None means one for each core that this process may use.

    Raises:
        DeviceError: fewer than one, or more than the machine has, which only wait for each other.
    """
    if threads is None:
        return usable_cores()
    most = os.cpu_count() or 1
    if not 1 <= threads <= most:
        raise DeviceError(f"cannot run on {threads} threads; expected 1 to {most}, or none given for all cores")
    return threads


def usable_cores() -> int:
    """Physical cores that this process may use, within its affinity and its container's quota.

    Matrix products do not gain from a second hardware thread on a core, so siblings count once.
    """
    cores = {_core_of(cpu) for cpu in _logical_cpus()}
    return max(1, min(len(cores), _quota_cores()))


def usable_hardware_threads() -> int:
    """As `usable_cores`, but every hardware thread of a core counts."""
    return max(1, min(len(_logical_cpus()), _quota_cores()))


def _logical_cpus() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _core_of(cpu: int) -> str:
    """Names the physical core of a logical CPU by the list of its hardware threads, e.g. '0,8'."""
    try:
        return (_CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota_cores() -> int:
    """Cores that the control group grants (its `quota period`, in microseconds), rounded up."""
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return os.cpu_count() or 1
