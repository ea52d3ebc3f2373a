"""NVIDIA GPUs as the driver tells of them, through its own libraries: no engine is loaded and no memory taken."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

# The CUDA driver, which sees what programs may use, and NVML, which knows what is free and which a Jetson may lack.
_CUDA, _NVML = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
_NAME_BYTES = 96
# Codes of cuInit: `enum cudaError_enum`.
_NO_DEVICE = 100
_OTHER_DRIVER = 803  # the library and the kernel's module are of two versions, as after an update
_MAJOR, _MINOR = 75, 76  # enum CUdevice_attribute: of the compute capability


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    memory_bytes: int
    free_bytes: int | None  # None: the driver does not tell, as on boards that share memory with the CPU
    capability: str  # "9.0"
    driver: str  # "580.159.04, CUDA 13.0"; without the first where NVML is not there

    def __str__(self) -> str:
        """As in "NVIDIA H200, 139.8 GiB, driver 580.159.04, CUDA 13.0"."""
        return f"{self.name}, {self.memory_bytes / 2**30:.1f} GiB, driver {self.driver}"


@dataclass(frozen=True)
class Gpus:
    """What the driver sees, in its order: engines take the first."""

    cards: tuple[Gpu, ...]
    problem: str  # why there is none, in a sentence without its full stop; "" where there is one


def find_gpus() -> Gpus:
    """Ask the driver. It takes up to half a second, and raises nothing."""
    if sys.platform == "darwin":
        return Gpus((), "no NVIDIA GPU is visible: macOS has no driver for them")
    try:
        cuda = _library(_CUDA)
    except OSError:
        return Gpus((), f"no NVIDIA GPU is visible: its driver is not installed ({_CUDA} is not found)")
    try:
        return _ask(cuda)
    except (AttributeError, OSError, ValueError) as error:  # a library that lacks a function
        return Gpus((), f"no NVIDIA GPU is visible: {_CUDA} is not as expected ({error})")


def _library(name: str) -> Any:
    return ctypes.CDLL(name)


def _ask(cuda: Any) -> Gpus:
    if code := cuda.cuInit(0):
        return Gpus((), f"no NVIDIA GPU is visible: {_why(cuda, code)}")
    count, version = c_int(), c_int()
    cuda.cuDeviceGetCount(byref(count))
    cuda.cuDriverGetVersion(byref(version))
    if not count.value:
        return Gpus((), f"no NVIDIA GPU is visible: {_why(cuda, _NO_DEVICE)}")
    nvml = _Nvml()
    release = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    driver = f"{nvml.driver}, {release}" if nvml.driver else release
    return Gpus(tuple(_card(cuda, index, nvml, driver) for index in range(count.value)), "")


def _why(cuda: Any, code: int) -> str:
    """What a code of the driver means for a person."""
    if code == _NO_DEVICE:
        return "the driver finds none, or CUDA_VISIBLE_DEVICES hides it"
    if code == _OTHER_DRIVER:
        return "the driver was updated and is not loaded yet; restart the machine"
    text = c_char_p()
    cuda.cuGetErrorString(code, byref(text))
    return f"the driver says {(text.value or b'nothing').decode('utf-8', 'replace')!r} (code {code})"


def _card(cuda: Any, index: int, nvml: _Nvml, driver: str) -> Gpu:
    device, name, uuid = c_int(), ctypes.create_string_buffer(_NAME_BYTES), (ctypes.c_ubyte * 16)()
    total, major, minor = c_size_t(), c_int(), c_int()
    cuda.cuDeviceGet(byref(device), index)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    cuda.cuDeviceTotalMem_v2(byref(total), device)
    cuda.cuDeviceGetAttribute(byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(byref(minor), _MINOR, device)
    cuda.cuDeviceGetUuid(byref(uuid), device)
    text = bytes(uuid).hex()
    place = "-".join(text[start:stop] for start, stop in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    return Gpu(
        name.value.decode("utf-8", "replace"),
        total.value,
        nvml.free_bytes(f"GPU-{place}"),
        f"{major.value}.{minor.value}",
        driver,
    )


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class _Nvml:
    """NVML, or nothing: every answer may be absent."""

    def __init__(self) -> None:
        self.driver, self._nvml = "", None
        try:
            nvml = _library(_NVML)
            if nvml.nvmlInit_v2():
                return
            text = ctypes.create_string_buffer(_NAME_BYTES)
            if not nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES):
                self.driver = text.value.decode("utf-8", "replace")
        except (AttributeError, OSError):
            return
        self._nvml = nvml

    def free_bytes(self, uuid: str) -> int | None:
        """Memory that nobody has taken on a card; None where NVML does not know."""
        if self._nvml is None:
            return None
        card, memory = c_void_p(), _Memory()
        if self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode("ascii"), byref(card)):
            return None  # such as a slice of a card
        return None if self._nvml.nvmlDeviceGetMemoryInfo(card, byref(memory)) else int(memory.free)
