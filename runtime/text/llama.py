"""llama.cpp's bindings: loaded on first use, its log collected, its errors in our words.

Only this module and the quantizer's child process import llama_cpp; `decoder` is what drives it.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import DecoderError, MissingExtraError
from dasheng_edge.runtime.machine.memory import require, short_of_memory

_LIBRARY_BYTES = 16 << 20  # of addresses
_LOG_WARN, _LOG_ERROR = 3, 4  # enum ggml_log_level
_FLOAT_NAMES = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}


@cache
def llama_cpp_library() -> Any:
    """The bindings, loaded on first use: `Any`, since their functions are C calls."""
    require("llama.cpp", "free memory", mapped=_LIBRARY_BYTES)  # cut off while it starts, it ends the process
    try:
        from llama_cpp import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        if short_of_memory(error):
            raise
        raise MissingExtraError(
            f"llama-cpp-python cannot be loaded ({error}); run pip install 'llama-cpp-python>=0.3.36,<0.4', "
            "which compiles llama.cpp and needs a C++ compiler"
        ) from error
    _load_processors(llama_cpp)
    return llama_cpp


def _load_processors(llama_cpp: Any) -> None:
    """A llama.cpp that has its code for each processor in a file of its own loads the best, if told where they are.

    By the library that llama.cpp itself is linked with: a wheel has another copy of it under another name.
    """
    ggml = llama_cpp._lib  # noqa: SLF001  # the one handle; functions of ggml are not bound
    if not ggml.ggml_backend_reg_count():
        ggml.ggml_backend_load_all_from_path(str(Path(llama_cpp.__file__).parent / "lib").encode())


class Log:
    """Collects llama.cpp's warnings and errors for our messages, and keeps the rest off the screen."""

    def __init__(self, llama: Any) -> None:
        self.lines: deque[str] = deque(maxlen=8)
        self._callback = llama.llama_log_callback(self._keep)  # must outlive every call of llama.cpp
        llama.llama_log_set(self._callback, None)

    def _keep(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level in (_LOG_WARN, _LOG_ERROR) and line:
            self.lines.append(line)

    def last(self) -> str:
        """The last line, for the end of a message."""
        return self.lines[-1] if self.lines else "it gave no reason"


@cache
def llama_log() -> Log:
    """One for the process, like llama.cpp's logger."""
    return Log(llama_cpp_library())


def build_info() -> tuple[str, bool]:
    """llama.cpp's features on this machine, and whether it can offload to a GPU."""
    llama = llama_cpp_library()
    llama_log()
    return llama.llama_print_system_info().decode().strip(), bool(llama.llama_supports_gpu_offload())


def why_no_gpu() -> str:
    """What keeps llama.cpp from a GPU; "" if nothing does. It looks for the device itself, not just for its code."""
    try:
        offload = build_info()[1]
    except MissingExtraError as error:
        return str(error)
    return "" if offload else "this llama.cpp finds no GPU or is built without support for it"


def pointer(array: NDArray[Any], kind: Any) -> Any:
    """A C pointer to an array's values."""
    return array.ctypes.data_as(ctypes.POINTER(kind))


class HeldSignals:
    """Ctrl-C and SIGTERM while llama.cpp works: what is raised in a callback, C would swallow."""

    def __init__(self) -> None:
        self.caught: list[int] = []  # callbacks end the work if it is not empty

    @contextmanager
    def held(self) -> Generator[None]:
        """Signals within are caught, and raised behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            caught, self.caught = self.caught, []
            for first in caught[:1]:
                signal.raise_signal(first)

    def _catch(self, number: int, _: object) -> None:
        self.caught.append(number)


class Watch:
    """Shows intermediate results of llama.cpp while it computes, by the names that its graphs give them.

    `see` is handed each tensor whose name `wants` accepts, as float32 [rows, width]. An error that it raises ends the
    computation and is raised by `check`. The tensor is read by functions of ggml alone, so nothing here depends on
    how its structure is laid out.
    """

    def __init__(self, wants: Callable[[str], bool], see: Callable[[str, NDArray[np.float32]], None]) -> None:
        llama = llama_cpp_library()
        self._wants, self._see = wants, see
        self._error: Exception | None = None
        self.signals = HeldSignals()
        self._ggml = _ggml_functions()
        self.callback = llama.ggml_backend_sched_eval_callback(self._evaluated)  # must outlive the context

    def _evaluated(self, tensor: int, ask: bool, _: object) -> bool:
        if self.signals.caught:
            return False
        try:
            name = self._ggml.ggml_get_name(tensor).decode()
            if ask:
                return self._wants(name)
            if self._ggml.ggml_nelements(tensor):  # none where no row of a batch has logits
                self._see(name, self._values(tensor))
        except Exception as error:  # noqa: BLE001  # nothing may be raised through C
            self._error = self._error or error
            return False
        return True

    def _values(self, tensor: int) -> NDArray[np.float32]:
        size, rows = self._ggml.ggml_nelements(tensor), self._ggml.ggml_nrows(tensor)
        values = np.empty(size, np.float32)
        if self._ggml.ggml_nbytes(tensor) != values.nbytes:  # of another type, or with gaps
            raise DecoderError(f"llama.cpp computes {self._ggml.ggml_get_name(tensor).decode()} not in float32")
        self._ggml.ggml_backend_tensor_get(tensor, pointer(values, ctypes.c_float), 0, values.nbytes)
        return values.reshape(rows, -1)

    def check(self) -> None:
        """Raise what went wrong since the last look, if anything."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def float_values(kind: int, stored: bytes, count: int) -> NDArray[np.float32] | None:
    """So many numbers that are stored as an `enum ggml_type`, as llama.cpp computes with them.

    None if this llama.cpp has no function of its own for them.
    """
    ggml = _ggml_functions()
    name = ggml.ggml_type_name(kind).decode()
    if name == "f32":
        return np.frombuffer(stored, np.float32, count).copy()
    function = getattr(ggml, _FLOAT_NAMES.get(name, f"dequantize_row_{name}"), None)
    if function is None:
        return None
    function.restype, function.argtypes = None, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
    values = np.empty(count, np.float32)
    function(stored, values.ctypes.data, count)
    return values


@cache
def _ggml_functions() -> Any:
    """Accessors of the library that llama.cpp itself computes with."""
    llama_cpp_library()
    from llama_cpp._ctypes_extensions import load_shared_library

    folder = find_spec("llama_cpp")
    assert folder is not None
    assert folder.origin is not None
    ggml = load_shared_library("ggml-base", Path(folder.origin).parent / "lib")
    for name, kind in (("ggml_get_name", ctypes.c_char_p), ("ggml_nelements", ctypes.c_int64),
                       ("ggml_nrows", ctypes.c_int64), ("ggml_nbytes", ctypes.c_size_t)):  # fmt: skip
        function = getattr(ggml, name)
        function.restype, function.argtypes = kind, [ctypes.c_void_p]
    ggml.ggml_type_name.restype, ggml.ggml_type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    ggml.ggml_backend_tensor_get.restype = None
    ggml.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t, ctypes.c_size_t,
    ]  # fmt: skip
    return ggml
