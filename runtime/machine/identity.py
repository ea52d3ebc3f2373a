"""What this machine is: processor, cores, memory, system, and versions of libraries. No host name, no path."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .devices import usable_cores

ENGINES = ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python")  # distributions of what computes
# Instruction sets that ONNX Runtime's or llama.cpp's kernels ask for, x86 then Arm.
CPU_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Identity:
    """What decides how fast something is here, beside the versions."""

    python: str
    os: str
    cpu: str
    cpu_flags: tuple[str, ...]  # those of CPU_FLAGS that it has
    usable_cores: int  # by this process
    memory_gib: float | None  # None: the system does not tell


def identify() -> Identity:
    """Looks at this machine; raises nothing."""
    cpu, flags = _cpu()
    return Identity(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        os=platform.platform(),
        cpu=cpu,
        cpu_flags=flags,
        usable_cores=usable_cores(),
        memory_gib=_memory_gib(),
    )


def installed(names: Iterable[str] = ENGINES) -> dict[str, str]:
    """Versions of the distributions that are installed, in the order of the names."""
    return {name: version for name in names if (version := version_of(name))}


def version_of(name: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name, and those of `CPU_FLAGS` that this CPU has."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    have = set(flags.group(1).split()) if flags else set()
    return model.group(1) if model else platform.machine(), tuple(flag for flag in CPU_FLAGS if flag in have)


def _memory_gib() -> float | None:
    """Physical memory, where the system tells it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None
