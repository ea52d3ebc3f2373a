"""llama.cpp's quantizer in a process of its own: `python -m dasheng_edge.export.quantizer SOURCE TARGET FTYPE THREADS`.

It is one C call that takes ten minutes for a 7B decoder and cannot be told to stop: Python would see Ctrl-C or
a termination only when it returns. A process can be ended at any time, and a failed assertion of llama.cpp ends
only that process. The child needs no PyTorch, and what it mapped is given back when it is done.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import get_args

from gguf import LlamaFileType

from dasheng_edge.runtime.errors import ExportError, OutputWriteError

from .options import DecoderType

FILE_TYPES: Mapping[str, LlamaFileType] = {
    name: LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"] for name in get_args(DecoderType)
}
BUFFER_BYTES = 256 << 20  # of rows that the quantizer holds in float32 and in the new type; its own default is 8 GiB
_TENSOR = re.compile(rb"\[ *\d+/ *\d+\] ")  # how a line of its log about a tensor begins: "[   3/  27] blk.0 ..."
_BEGUN = b"+"  # what the child tells when a tensor is begun; other lines are llama.cpp's warnings and errors
_WARN, _ERROR = 3, 4  # enum ggml_log_level


def quantize(
    source: Path, target: Path, kind: DecoderType, threads: int = 0, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Quantize a GGUF file; `advance` is told of each tensor that is begun, 0 threads means one per core.

    Raises:
        OutputWriteError: llama.cpp could not write the file.
        ExportError: llama.cpp refused for another reason, with its own words, or its process ended.
    """
    # No other folder's modules: Python 3.11 and later would else look into the working directory first.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", __name__, str(source), str(target), str(int(FILE_TYPES[kind])), str(threads)]
    said: list[str] = []
    code = -1
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if line == _BEGUN + b"\n":
                advance(1)
            else:
                said.append(line.decode("utf-8", "replace"))
        code = child.wait()
    finally:
        with child:  # closes the pipes and waits
            child.kill()
        if code != 0:
            target.unlink(missing_ok=True)
    if code != 0:
        _refuse(target, kind, code, " ".join(" ".join(said).split()))


def _refuse(target: Path, kind: str, code: int, said: str) -> None:
    if "iostream" in said:  # the C++ library's word for a failed write
        raise OutputWriteError(f"cannot write {target.name}: llama.cpp says {said!r}; is the disk full?")
    ended = "" if code == 1 else f"its process ended with {code}: "
    raise ExportError(
        f"llama.cpp could not quantize the decoder to {kind}: {ended}{said or 'no reason given'}; try another --decoder"
    )


def main() -> int:
    """What the child does; its standard input is a pipe that closes when the parent is gone."""
    source, target, file_type, threads = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from llama_cpp import llama_cpp as llama

    def log(level: int, text: bytes, _: object) -> None:
        if level in (_WARN, _ERROR):
            _tell(b" ".join(text.split()))
        elif _TENSOR.match(text):
            _tell(_BEGUN)

    callback = llama.llama_log_callback(log)  # must outlive the calls of llama.cpp
    llama.llama_log_set(callback, ctypes.c_void_p())
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.max_buf_size = int(file_type), int(threads), BUFFER_BYTES
    return int(llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.pointer(parameters)))


def _tell(line: bytes) -> None:
    with suppress(OSError):  # the parent is gone, and so is this process in a moment
        os.write(1, line + b"\n")


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
