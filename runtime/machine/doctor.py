"""What this machine has, and what is missing or wrong; works with any dependency absent."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from dasheng_edge.runtime.errors import MissingExtraError

from .devices import load_onnxruntime, usable_cores
from .installation import install_line

# Distribution -> the extra that brings it; "" is the base.
DEPENDENCIES = {
    "numpy": "",
    "av": "",
    "soxr": "",
    "pydantic": "",
    "typer": "",
    "rich": "",
    "jinja2": "",
    "llama-cpp-python": "",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "torch": "export",
    "transformers": "export",
    "peft": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx-ir": "export",
    "safetensors": "export",
    "gguf": "export",
    "huggingface-hub": "export",
    "jiwer": "quant",
    "matplotlib": "quant",
}
# Instruction sets that ONNX Runtime's or llama.cpp's kernels ask for, x86 then Arm.
CPU_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_T = TypeVar("_T")


@dataclass(frozen=True)
class DoctorReport:
    """The state of the installation; `problems` hold the fix; without any, captioning and embedding will work."""

    python: str
    os: str
    cpu: str
    cpu_flags: tuple[str, ...]
    usable_cores: int
    memory_gib: float | None
    versions: dict[str, str | None]  # None: not installed
    onnx_providers: tuple[str, ...]
    llama_system: str
    llama_gpu_offload: bool
    missing_extras: dict[str, str]  # extra -> the pip line that installs it
    problems: tuple[str, ...]


def examine() -> DoctorReport:
    """Look at everything; raises nothing."""
    versions = {name: _version(name) for name in ("dasheng-edge", *DEPENDENCIES)}
    problems = [_missing(name) for name, extra in DEPENDENCIES.items() if not extra and versions[name] is None]
    problems += _runtime_problems(versions)
    providers, problem = _guarded(_onnx_providers, versions["onnxruntime"] or versions["onnxruntime-gpu"])
    problems += problem
    llama, problem = _guarded(_llama_build, versions["llama-cpp-python"])
    problems += problem
    system, offload = llama or ("", False)
    model, flags = _cpu()
    return DoctorReport(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        os=platform.platform(),
        cpu=model,
        cpu_flags=flags,
        usable_cores=usable_cores(),
        memory_gib=_memory_gib(),
        versions=versions,
        onnx_providers=providers or (),
        llama_system=system,
        llama_gpu_offload=offload,
        missing_extras=_missing_extras(versions),
        problems=tuple(problems),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _missing(name: str) -> str:
    return f"{name} is not installed; run {install_line()}"


def _runtime_problems(versions: dict[str, str | None]) -> list[str]:
    """Exactly one of the two distributions of ONNX Runtime must be there."""
    cpu, gpu = versions["onnxruntime"], versions["onnxruntime-gpu"]
    if cpu and gpu:
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_line('cpu')} (or gpu for cpu)"
        return [f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run {fix}"]
    if not cpu and not gpu:
        return [f"ONNX Runtime is not installed; run {install_line('cpu')} (or gpu for cpu, never both)"]
    return []


def _missing_extras(versions: dict[str, str | None]) -> dict[str, str]:
    has_runtime = versions["onnxruntime"] or versions["onnxruntime-gpu"]
    wanted = [name for name, extra in DEPENDENCIES.items() if extra == "export" and versions[name] is None]
    missing = {} if has_runtime else {"cpu": install_line("cpu")}
    return missing | ({"export": install_line("export", "cpu")} if wanted else {})


def _onnx_providers() -> tuple[str, ...]:
    return tuple(load_onnxruntime().get_available_providers())


def _llama_build() -> tuple[str, bool]:
    from dasheng_edge.runtime.text.llama import build_info

    return build_info()


def _guarded(look: Callable[[], _T], installed: str | None) -> tuple[_T | None, list[str]]:
    """What `look` finds; a library that is installed but does not load is a problem."""
    if installed is None:
        return None, []
    try:
        return look(), []
    except (MissingExtraError, ImportError, OSError, RuntimeError, AttributeError) as error:
        return None, [f"an installed library does not load: {error}; reinstall it"]


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
