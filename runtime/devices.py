"""Where the parts run: one explicit choice for ONNX Runtime and llama.cpp, with no silent fallback."""

from __future__ import annotations

import math
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import BundleFileError, DeviceError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray

Device = Literal["cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRAS: dict[Device, str] = {"cpu": "cpu", "cuda": "gpu"}  # of the package, which bring that provider
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
    logical = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core_of(cpu) for cpu in logical}
    return max(1, min(len(cores), _quota_cores()))


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


def load_onnxruntime() -> ModuleType:
    """ONNX Runtime with its telemetry off: since 1.32 its Linux builds send usage data unless told not to.

    Raises:
        ImportError: it is not installed, or in parts.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library starts
    module = import_module("onnxruntime")
    if not hasattr(module, "InferenceSession"):
        raise ImportError("its files are incomplete, as after another package with the same files was uninstalled")
    module.disable_telemetry_events()  # where the caller had imported it before
    return module


def onnx_session(path: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph on exactly the device that was asked for.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: it has no provider for the device, or the provider does not start.
        BundleFileError: the graph cannot be loaded.
    """
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX Runtime is not installed ({error}); run pip install 'dasheng-edge[{EXTRAS[device]}]'"
        ) from error
    provider = PROVIDERS[device]
    if provider not in (available := onnxruntime.get_available_providers()):
        raise DeviceError(
            f"device {device!r} needs ONNX Runtime's {provider}, this one has {', '.join(available)}; "
            f"run pip install 'dasheng-edge[{EXTRAS[device]}]' in a fresh environment, or choose another "
            "device"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    # Spinning threads of ONNX Runtime would take the cores from llama.cpp's while the decoder runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Lengths vary, and an arena would keep the largest request's memory for good.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise BundleFileError(f"ONNX Runtime cannot load {path}: {error}; export the bundle again") from error
    if (got := session.get_providers()[0]) != provider:
        raise DeviceError(
            f"ONNX Runtime did not start {provider} and would have run on {got}; check the driver and the CUDA "
            "libraries with `dasheng-edge doctor`, or choose another device"
        )
    return session


def run_graph(session: onnxruntime.InferenceSession, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The output of a graph that has one.

    Raises:
        DeviceError: ONNX Runtime failed, for lack of memory mostly.
    """
    try:
        (output,) = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
        raise DeviceError(
            f"ONNX Runtime failed on {session.get_providers()[0]} with {shapes}: {error}; free memory, or choose "
            "another device"
        ) from error
    result: NDArray[np.float32] = output
    return result


def check_graph(
    session: onnxruntime.InferenceSession, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    """Refuse a graph whose inputs or outputs are not the ones that the runtime feeds and reads.

    Raises:
        BundleFileError: they differ.
    """
    got_inputs = tuple(value.name for value in session.get_inputs())
    got_outputs = tuple(value.name for value in session.get_outputs())
    if (got_inputs, got_outputs) != (inputs, outputs):
        raise BundleFileError(
            f"{path} maps {got_inputs} to {got_outputs}, expected {inputs} to {outputs}; export the bundle again"
        )
