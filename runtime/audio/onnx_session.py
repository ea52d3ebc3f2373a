"""ONNX Runtime: loaded without its telemetry, a graph opened on exactly the device that was asked for, and run."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from dasheng_edge.runtime.bundle.bundle import weights_file
from dasheng_edge.runtime.bundle.graph_shapes import Shape
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MemoryShortError, MissingExtraError
from dasheng_edge.runtime.machine.devices import EXTRAS, PROVIDERS, Device
from dasheng_edge.runtime.machine.governor import governor
from dasheng_edge.runtime.machine.gpu import find_gpus
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.machine.memory import require, short_of_memory

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

_LESS = "free memory, or quantize to a smaller recipe"
_LIBRARY_BYTES = 96 << 20  # of addresses, with the schemas and the heap of a thread that it makes when it starts
_STACK_BYTES = 8 << 20  # of a thread, by default
_SILENT = 4  # severity of ONNX Runtime's log: only what ends the process; errors are raised, and warnings are no news
_PROVIDER_LIBRARY = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"
_MISSING_LIBRARY = re.compile(r"([\w.+-]+\.(?:so|dll)[\w.]*)")
_CUDA_FAILURE = re.compile(r"((?:CUDA|CUBLAS|CUDNN|CUFFT) failure \d+: .*?)\s*(?:;|$)")
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
    # Builds whose provider is a plug-in load it when they are imported; what is missing is told where it is needed.
    warnings.filterwarnings("ignore", "Failed to register bundled CUDA plugin")
    module = import_module("onnxruntime")
    if not hasattr(module, "InferenceSession"):
        raise ImportError("its files are incomplete, as after another package with the same files was uninstalled")
    module.disable_telemetry_events()  # where the caller had imported it before
    module.set_default_logger_severity(_SILENT)  # a provider that lacks a library prints coloured lines of C++
    return module


def why_not_cuda() -> str:
    """What keeps ONNX Runtime from the GPU, found by computing there; "" if nothing does. It prints nothing."""
    provider = PROVIDERS["cuda"]
    try:
        onnxruntime = load_onnxruntime()
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error})"
    if problem := find_gpus().problem:
        return problem
    load_cuda(onnxruntime)
    if provider not in onnxruntime.get_available_providers() and not _provider_library(onnxruntime).is_file():
        return f"this ONNX Runtime is built without {provider}, which comes with {install_line(EXTRAS['cuda'])}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT  # a machine without a GPU is no error here
    try:
        session = onnxruntime.InferenceSession(_TRIAL_GRAPH, options, providers=[provider], enable_fallback=0)
        if session.get_providers()[0] != provider:
            return f"{provider} does not start: {_why_not_started(onnxruntime)}"
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's exceptions share no other base
        return f"{provider} fails: {_plain(error)}"
    return ""


@cache
def load_cuda(onnxruntime: ModuleType) -> None:
    """Load CUDA's libraries and cuDNN from where pip put them, which the system's loader does not search."""
    vars(onnxruntime)["print"] = lambda *_: None  # it says on stdout what is missing, which is told where it is needed
    with contextlib.suppress(Exception):
        onnxruntime.preload_dlls()


def _provider_library(onnxruntime: ModuleType) -> Path:
    return Path(onnxruntime.__file__ or "").parent / "capi" / _PROVIDER_LIBRARY


def _why_not_started(onnxruntime: ModuleType) -> str:
    """Why ONNX Runtime did without its provider for CUDA, of which it gives no reason but in its log."""
    if problem := find_gpus().problem:
        return problem
    try:
        ctypes.CDLL(str(_provider_library(onnxruntime)))
    except OSError as error:
        name = _MISSING_LIBRARY.search(str(error))
        major = str(getattr(onnxruntime, "cuda_version", None) or "").partition(".")[0]
        what = f"{name[1]} is missing" if name else f"a library does not load ({error})"
        needs = f"; it needs CUDA {major} and cuDNN 9" if major else ""
        return f"{what}{needs}, which come with {install_line(EXTRAS['cuda'])}"
    return "it gives no reason; the driver may be too old for it"


def _plain(error: Exception) -> str:
    """What a provider says, without the signatures of C++ functions around it."""
    text = " ".join(str(error).split())
    failure = _CUDA_FAILURE.search(text)
    return failure[1] if failure else text[:200]


def cuda_options(*, allow_tf32: bool) -> dict[str, str]:
    """How ONNX Runtime computes on a GPU, as options of its provider.

    - Float32 is float32: TF32, which ONNX Runtime allows by itself, keeps 10 of 23 bits of what is multiplied. The
      encoder of the 7B then differs from the reference by 3.5e-4 instead of 4e-7, and takes 6 instead of 12 ms a chunk.
    - cuDNN plans a convolution by a rule of thumb. To try all its algorithms, as by default, costs 8 to 11 ms whenever
      the length of a chunk changes.
    - Memory grows by what is asked for, not to the next power of two: the decoder wants the rest of it.
    """
    return {
        "use_tf32": str(int(allow_tf32)),
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


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


def onnx_session(
    path: Path, device: Device, threads: int, *, allow_tf32: bool = False, packed: bool = True
) -> onnxruntime.InferenceSession:
    """Open a graph on exactly the device that was asked for; see `cuda_options` for `allow_tf32`.

    `packed`: whether ONNX Runtime copies the weights into its own order, which takes as much memory as they have once
    more while it does, and opens in twice or three times the time (0.6B on two cores: int8 180 instead of 90 ms, fp32
    440 instead of 140); chunks of 10 s are 3 and 8 % faster then. The numbers are the same bits.

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
    _check_provider(onnxruntime, device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; they are raised as well
    for key, value in spinning(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    # Lengths vary, and an arena would keep the largest request's memory for good.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    size, beside = (file.stat().st_size if file.is_file() else 0 for file in (path, weights_file(path)))
    stacks = (threads - 1) * _STACK_BYTES
    require(f"the graph {path}", _LESS, own=size if device == "cpu" else 0, mapped=size + beside + stacks)
    asked = (provider, cuda_options(allow_tf32=allow_tf32)) if device == "cuda" else provider
    try:
        # ONNX Runtime's own fallback would go on with the CPU, and say so on stdout, when the provider fails later.
        session = onnxruntime.InferenceSession(str(path), options, providers=[asked], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        if short_of_memory(error):
            raise MemoryShortError(f"ONNX Runtime gets no memory for {path} ({_plain(error)}): {_LESS}") from error
        if device != "cpu" and isinstance(error, (ValueError, RuntimeError)):  # of the provider; a graph's are others
            raise DeviceError(
                f"ONNX Runtime cannot start {provider}: {_plain(error)}; check the driver and the CUDA libraries with "
                "`dasheng-edge doctor`, or choose another device"
            ) from error
        raise BundleFileError(f"ONNX Runtime cannot load {path}: {error}; export the bundle again") from error
    if (got := session.get_providers()[0]) != provider:
        raise DeviceError(
            f"ONNX Runtime did not start {provider} and would have run on {got}: {_why_not_started(onnxruntime)}; "
            "see `dasheng-edge doctor`, or choose another device"
        )
    return session


def _check_provider(onnxruntime: ModuleType, device: Device) -> None:
    """Refuse a device for which this ONNX Runtime has nothing to compute with."""
    if device == "cuda":
        load_cuda(onnxruntime)
    if PROVIDERS[device] in (available := onnxruntime.get_available_providers()):
        return
    if device == "cuda" and _provider_library(onnxruntime).is_file():
        raise DeviceError(f"device {device!r} cannot be used: {_why_not_started(onnxruntime)}; or choose cpu")
    raise DeviceError(
        f"device {device!r} needs ONNX Runtime's {PROVIDERS[device]}, this one has {', '.join(available)}; "
        f"choose another device, or run in a fresh environment: {install_line(EXTRAS[device])}"
    )


@dataclass(frozen=True)
class OnDevice:
    """Rows that a graph has left where it computes: some of those of `value`, which lives as long as this does."""

    value: onnxruntime.OrtValue  # float32 [..., width]
    first: int
    rows: int

    @property
    def held(self) -> int:
        """Rows from the first on, those of others included."""
        return int(math.prod(self.value.shape()) // self.width) - self.first

    @property
    def width(self) -> int:
        """Numbers in a row."""
        width: int = self.value.shape()[-1]
        return width

    @property
    def shape(self) -> Shape:
        """As an input of a graph."""
        return 1, self.rows, self.width

    def array(self) -> NDArray[np.float32]:
        """A copy of the rows, float32 [rows, width]."""
        whole: NDArray[np.float32] = self.value.numpy().reshape(-1, self.width)
        return whole[self.first : self.first + self.rows].copy()

    @property
    def pointer(self) -> int:
        """Where the first row is."""
        begin: int = self.value.data_ptr()
        return begin + 4 * self.first * self.width


def run_graph(
    session: onnxruntime.InferenceSession,
    path: Path,
    feed: Mapping[str, NDArray[Any] | OnDevice],
    wanted: Mapping[str, Shape],
) -> list[NDArray[np.float32]]:
    """The outputs of a graph, which are float32, of these shapes, and finite.

    Raises:
        MemoryShortError: there is not enough memory.
        DeviceError: ONNX Runtime failed, or what came out is not finite.
        BundleFileError: the shapes are others, so the graph does not keep to the counting law.
    """
    outputs: list[Any] = _outputs(session, feed)
    shapes = _shapes(feed)
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


def run_on_device(
    session: onnxruntime.InferenceSession, path: Path, feed: Mapping[str, NDArray[Any]], shape: Shape
) -> OnDevice:
    """The only output of a graph, of this shape, left where it was computed; whether it is finite is not seen.

    Raises what `run_graph` raises.
    """
    (value,) = _outputs(session, feed, stay=True)
    if tuple(value.shape()) != shape or value.data_type() != "tensor(float)":
        raise BundleFileError(
            f"{path} gives {value.data_type()} {tuple(value.shape())} for {_shapes(feed)}, expected float32 {shape}; "
            "export the bundle again"
        )
    return OnDevice(value, 0, math.prod(shape[:-1]))


def _shapes(feed: Mapping[str, NDArray[Any] | OnDevice]) -> str:
    return ", ".join(f"{name} {value.shape}" for name, value in feed.items())


def _outputs(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any] | OnDevice], *, stay: bool = False
) -> list[Any]:
    """What a graph gives: arrays, or with `stay` values of ONNX Runtime where they were computed."""
    require("a chunk of audio", _LESS)
    try:
        with governor().beside(session.get_session_options().intra_op_num_threads):  # a decoder in another thread
            bound = stay or any(isinstance(value, OnDevice) for value in feed.values())
            outputs: list[Any] = _bound(session, feed, stay=stay) if bound else session.run(None, feed)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        where = f"on {session.get_providers()[0]} with {_shapes(feed)}"
        if short_of_memory(error):
            raise MemoryShortError(f"ONNX Runtime gets no memory {where}: {error}; {_LESS}") from error
        raise DeviceError(f"ONNX Runtime failed {where}: {error}; free memory, or choose another device") from error
    return outputs


def _bound(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any] | OnDevice], *, stay: bool
) -> list[Any]:
    """As `_outputs`, by bindings, which say where each input is and where the outputs are to be."""
    binding, device = session.io_binding(), "cuda" if session.get_providers()[0] == PROVIDERS["cuda"] else "cpu"
    for name, value in feed.items():
        if isinstance(value, OnDevice):
            binding.bind_input(name, device, 0, np.float32, value.shape, value.pointer)
        else:
            binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device if stay else "cpu")
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()  # another graph has another stream
    outputs: list[Any] = binding.get_outputs() if stay else binding.copy_outputs_to_cpu()
    return outputs
