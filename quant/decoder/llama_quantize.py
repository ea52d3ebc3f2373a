"""llama.cpp's quantizer as a process: `python -m dasheng_edge.quant.decoder.llama_quantize`, a request on stdin.

It is one C call that takes ten minutes for a 7B decoder and cannot be told to stop: Python would see Ctrl-C or
a termination only when it returns. A process can be ended at any time, and a failed assertion of llama.cpp ends
only that process. The child needs no PyTorch, and what it mapped is given back when it is done.

A request has the fields of `Request`.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from gguf import LlamaFileType

from dasheng_edge.runtime.child import Child, ChildError, Tell, serve
from dasheng_edge.runtime.errors import LlamaQuantizeError, OutputWriteError
from dasheng_edge.runtime.progress import Advance, no_advance

from .imatrix_file import Imatrix, read_imatrix
from .types import DecoderOptions, DecoderType

FILE_TYPES: Mapping[str, LlamaFileType] = {
    name: LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"] for name in get_args(DecoderType)
}
BUFFER_BYTES = 256 << 20  # of rows that the quantizer holds in float32 and in the new type; its own default is 8 GiB
_TENSOR = re.compile(rb"\[ *\d+/ *\d+\] ")  # how a line of its log about a tensor begins: "[   3/  27] blk.0 ..."
_WARN, _ERROR = 3, 4  # enum ggml_log_level
_TAG_INT, _TAG_STRING = 0, 3  # enum llama_model_kv_override_type
_VALUE_BYTES = 127  # of a string in the metadata that is set while quantizing


@dataclass(frozen=True)
class Request:
    """What the child is asked for."""

    source: str
    target: str
    file_type: int
    threads: int = 0  # 0: one per core
    imatrix: str = ""  # a GGUF file, if there is one
    tensor_types: tuple[tuple[str, int], ...] = ()  # regular expression, enum ggml_type; the first that matches


def quantize(
    source: Path, target: Path, options: DecoderOptions, threads: int = 0, advance: Advance = no_advance
) -> None:
    """Quantize a GGUF file; `advance` is told of each tensor that is begun, 0 threads means one per core.

    Raises:
        OutputWriteError: llama.cpp could not write the file.
        LlamaQuantizeError: llama.cpp refused for another reason, with its own words, or its process ended.
    """
    tensor_types = tuple((pattern, int(stored)) for pattern, stored in options.tensor_types.items())
    file_type, imatrix = int(FILE_TYPES[options.kind]), str(options.imatrix or "")
    request = Request(str(source), str(target), file_type, threads, imatrix, tensor_types)
    said: list[str] = []  # llama.cpp's warnings and errors
    whole = False
    try:
        with Child(__name__) as child:
            code = child.ask(asdict(request), lambda told: advance(1) if told is None else said.append(told))
        if code:
            raise _refused(target, options.kind, " ".join(said))
        whole = True
    except ChildError as error:
        raise _refused(
            target, options.kind, f"its process ended with {error.status}: {' '.join(said) or error.said}"
        ) from error
    finally:
        if not whole:
            target.unlink(missing_ok=True)


def _refused(target: Path, kind: str, said: str) -> LlamaQuantizeError | OutputWriteError:
    if "iostream" in said:  # the C++ library's word for a failed write
        return OutputWriteError(
            f"cannot write {target.name}: llama.cpp says {said!r}; free some space or choose another --out"
        )
    return LlamaQuantizeError(
        f"llama.cpp could not quantize the decoder to {kind}: {said or 'no reason given'}; try another --decoder"
    )


def run(wanted: Mapping[str, Any], tell: Tell) -> int:
    """What the child does; it tells None of each tensor that is begun, and what llama.cpp warns of. 0 is success."""
    request = Request(**wanted)
    from llama_cpp import llama_cpp as llama

    def log(level: int, text: bytes, _: object) -> None:
        if level in (_WARN, _ERROR):
            tell(" ".join(text.decode("utf-8", "replace").split()))
        elif _TENSOR.match(text):
            tell(None)

    callback = llama.llama_log_callback(log)  # must outlive the calls of llama.cpp
    llama.llama_log_set(callback, ctypes.c_void_p())
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.max_buf_size = request.file_type, request.threads, BUFFER_BYTES
    if request.tensor_types:
        parameters.tt_overrides = _tensor_overrides(llama, request.tensor_types)
    if request.imatrix:
        imatrix = read_imatrix(Path(request.imatrix))
        parameters.imatrix = _importances(llama, imatrix)
        parameters.kv_overrides = _notes(llama, request.imatrix, imatrix)
    paths = os.fsencode(request.source), os.fsencode(request.target)
    return int(llama.llama_model_quantize(*paths, ctypes.pointer(parameters)))


def _importances(llama: Any, imatrix: Imatrix) -> Any:
    """A null-terminated array of `llama_model_imatrix_data`; ctypes keeps alive what it points to."""
    array = (llama.llama_model_imatrix_data * (len(imatrix.entries) + 1))()
    for place, name in zip(array, imatrix.entries, strict=False):
        values = imatrix.importance(name)
        place.name, place.size = name.encode(), values.size
        place.data = (ctypes.c_float * values.size)(*values.tolist())
    return array


def _tensor_overrides(llama: Any, tensor_types: tuple[tuple[str, int], ...]) -> Any:
    array = (llama.llama_model_tensor_override * (len(tensor_types) + 1))()
    for place, (pattern, kind) in zip(array, tensor_types, strict=False):
        place.pattern, place.type = pattern.lower().encode(), kind  # as llama-quantize lowers them
    return array


def _notes(llama: Any, path: str, imatrix: Imatrix) -> Any:
    """What llama-quantize writes into the metadata about an importance matrix, in its order.

    Of the file only its name: folders of whoever made a bundle are nobody's business, and differ each time.
    """
    notes: dict[str, str | int] = {"quantize.imatrix.file": Path(path).name}
    if imatrix.datasets:
        notes["quantize.imatrix.dataset"] = imatrix.datasets[0]
    notes["quantize.imatrix.entries_count"] = len(imatrix.entries)
    if imatrix.chunks > 0:
        notes["quantize.imatrix.chunks_count"] = imatrix.chunks
    array = (llama.llama_model_kv_override * (len(notes) + 1))()  # one with an empty key ends it
    for place, (key, value) in zip(array, notes.items(), strict=False):
        place.key = key.encode()
        if isinstance(value, int):
            place.tag, place.value.val_i64 = _TAG_INT, value
        else:
            whole_characters = value.encode()[:_VALUE_BYTES].decode(errors="ignore")
            place.tag, place.value.val_str = _TAG_STRING, whole_characters.encode()
    return array


if __name__ == "__main__":
    serve(run)
