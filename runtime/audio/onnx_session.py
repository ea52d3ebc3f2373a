"""ONNX Runtime: loaded without its telemetry, a graph opened on exactly the device that was asked for, and run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from dasheng_edge.runtime.bundle.bundle import weights_file
from dasheng_edge.runtime.bundle.graph_shapes import Shape
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MemoryShortError, MissingExtraError
from dasheng_edge.runtime.machine.devices import EXTRAS, PROVIDERS, Device
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.machine.memory import require, short_of_memory

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

_LESS = "free memory, or quantize to a smaller recipe"
_LIBRARY_BYTES = 96 << 20  # of addresses, with the schemas and the heap of a thread that it makes when it starts
_STACK_BYTES = 8 << 20  # of a thread, by default
# An ONNX graph of one node, y = x + x, both float32 [1], at opset 13: what a provider is tried with.
_TRIAL_GRAPH = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


def load_onnxruntime() -> ModuleType:
    """ONNX Runtime with its telemetry off: since 1.32 its Linux builds send usage data unless told not to.

    Raises:
        ImportError: it is not installed, or in parts.
        MemoryShortError: there is not enough memory for it.
    """
    if "onnxruntime" not in sys.modules:  # a library that is cut off while it starts ends the process
        require("ONNX Runtime", _LESS, mapped=_LIBRARY_BYTES)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library starts
    module = import_module("onnxruntime")
    if not hasattr(module, "InferenceSession"):
        raise ImportError("its files are incomplete, as after another package with the same files was uninstalled")
    module.disable_telemetry_events()  # where the caller had imported it before
    return module


def why_not_cuda() -> str:
    """What keeps ONNX Runtime from the GPU, found by computing there; "" if nothing does."""
    provider = PROVIDERS["cuda"]
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error})"
    if provider not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime is built without {provider}, which comes with 'dasheng-edge[{EXTRAS['cuda']}]'"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a machine without a GPU is no error here
    try:
        session = onnxruntime.InferenceSession(_TRIAL_GRAPH, options, providers=[provider], enable_fallback=0)
        if session.get_providers()[0] != provider:
            return f"{provider} does not start; `dasheng-edge doctor` and the driver's tools may tell why"
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's exceptions share no other base
        return f"{provider} fails: {' '.join(str(error).split())[:200]}"
    return ""


def spinning(version: str) -> dict[str, str]:
    """How long threads of this ONNX Runtime wait for each other in a loop before they sleep, as session options.

    Not at all once a run has ended: they would take the cores from llama.cpp's. Within a run, 10 microseconds: on two
    quiet cores the int8 encoders of 0.6B and 7B are 5 to 10 and 4 % faster so, and 10 and 15 % slower where another
    program keeps a core; with ONNX Runtime's default, 28 % slower. Before 1.26 it loops for milliseconds or not at all.
    """
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if release < (1, 26):
        return {"session.intra_op.allow_spinning": "0"}
    return {
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": "10",
        "session.force_spinning_stop": "1",
    }


def onnx_session(path: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph on exactly the device that was asked for.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: it has no provider for the device, or the provider does not start.
        MemoryShortError: there is not enough memory for it.
        BundleFileError: the graph cannot be loaded.
    """
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        if short_of_memory(error):
            raise
        raise MissingExtraError(
            f"ONNX Runtime is not installed ({error}); run {install_line(EXTRAS[device])}"
        ) from error
    provider = PROVIDERS[device]
    if provider not in (available := onnxruntime.get_available_providers()):
        raise DeviceError(
            f"device {device!r} needs ONNX Runtime's {provider}, this one has {', '.join(available)}; "
            f"choose another device, or run in a fresh environment: {install_line(EXTRAS[device])}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    for key, value in spinning(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    # Lengths vary, and an arena would keep the largest request's memory for good.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    size, beside = (file.stat().st_size if file.is_file() else 0 for file in (path, weights_file(path)))
    stacks = (threads - 1) * _STACK_BYTES
    require(f"the graph {path}", _LESS, own=size if device == "cpu" else 0, mapped=size + beside + stacks)
    try:
        # ONNX Runtime's own fallback would go on with the CPU, and say so on stdout, when the provider fails later.
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        if short_of_memory(error):
            raise MemoryShortError(f"ONNX Runtime gets no memory for {path} ({error}): {_LESS}") from error
        if device != "cpu" and isinstance(error, (ValueError, RuntimeError)):  # of the provider; a graph's are others
            raise DeviceError(
                f"ONNX Runtime cannot start {provider}: {error}; check the driver and the CUDA libraries with "
                "`dasheng-edge doctor`, or choose another device"
            ) from error
        raise BundleFileError(f"ONNX Runtime cannot load {path}: {error}; export the bundle again") from error
    if (got := session.get_providers()[0]) != provider:
        raise DeviceError(
            f"ONNX Runtime did not start {provider} and would have run on {got}; check the driver and the CUDA "
            "libraries with `dasheng-edge doctor`, or choose another device"
        )
    return session


def run_graph(
    session: onnxruntime.InferenceSession, path: Path, feed: dict[str, NDArray[Any]], wanted: Mapping[str, Shape]
) -> list[NDArray[np.float32]]:
    """The outputs of a graph, which are float32, of these shapes, and finite.

    Raises:
        MemoryShortError: there is not enough memory.
        DeviceError: ONNX Runtime failed, or what came out is not finite.
        BundleFileError: the shapes are others, so the graph does not keep to the counting law.
    """
    require("a chunk of audio", _LESS)
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
    try:
        outputs: list[Any] = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        where = f"on {session.get_providers()[0]} with {shapes}"
        if short_of_memory(error):
            raise MemoryShortError(f"ONNX Runtime gets no memory {where}: {error}; {_LESS}") from error
        raise DeviceError(f"ONNX Runtime failed {where}: {error}; free memory, or choose another device") from error
    for (name, shape), got in zip(wanted.items(), outputs, strict=True):
        if getattr(got, "dtype", None) != np.float32 or got.shape != shape:
            what = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else type(got).__name__
            raise BundleFileError(
                f"{path} gives {name} {what} for {shapes}, expected float32 {shape}; export the bundle again"
            )
        if not np.isfinite(got).all():
            raise DeviceError(
                f"{path} gives {name} with NaN or infinity for {shapes}; if other audio works, this clip is far too "
                "loud; else choose another device, or export or quantize with another encoder precision"
            )
    return outputs
