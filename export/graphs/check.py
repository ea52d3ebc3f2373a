"""A graph that was just written, in ONNX Runtime, and what comparing it with its source gave."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import weights_file

from .residency import few_mapped_pages


@dataclass(frozen=True)
class GraphReport:
    """A graph's largest error against its source: dB for the log-mel, relative RMS for patches and embeddings."""

    bytes: int
    error: float
    cases: int
    acoustic_error: float | None = None  # of the front end's second output, in nepers


def graph_bytes(path: Path) -> int:
    """Size of a graph with its weights."""
    return sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())


@contextmanager
def graph_session(path: Path) -> Generator[Any]:
    """A graph in ONNX Runtime, in as little memory as it can do with.

    Measured with the 2.5 GB encoder of MiDashengLM-7B: 0.2 to 0.5 GiB, and 2.4 where ONNX Runtime maps the weights.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Packed copies of the weights are faster, but would be in memory all at once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with ExitStack() as stack:
        values = []
        if weights_file(path).exists():
            weights = _mapped_weights(path)  # mapped until the caller is done with the session, and longer
            size = weights_file(path).stat().st_size
            stack.enter_context(few_mapped_pages(weights_file(path), 0, size))
            for name, weight in weights.items():
                values.append(onnxruntime.OrtValue.ortvalue_from_numpy(weight))  # which does not copy it
                options.add_initializer(name, values[-1])
        yield onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _mapped_weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The weights in the file beside a graph, mapped read-only.

    ONNX Runtime would map them itself, but as private pages, of which nobody can tell whether they may be dropped.
    """
    data = np.memmap(weights_file(path), np.uint8, "r")
    weights = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert tensor.data_type == onnx.TensorProto.FLOAT
            place = {entry.key: entry.value for entry in tensor.external_data}
            start = int(place["offset"])
            weights[tensor.name] = data[start : start + int(place["length"])].view(np.float32).reshape(tensor.dims)
    return weights
