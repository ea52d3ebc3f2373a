"""A graph that was just written, in ONNX Runtime, and what comparing it with its source gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import weights_file


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


def graph_session(path: Path) -> Any:
    """A graph in ONNX Runtime, in as little memory as it takes.

    Measured with the 2.5 GB encoder of MiDashengLM-7B: 0.1 GiB of its own, and 2.4 of the file, which is mapped.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Packed copies of the weights are faster, but would be in memory all at once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
