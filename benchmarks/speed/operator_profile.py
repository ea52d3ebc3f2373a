"""Where the time of a graph goes: ONNX Runtime's own profile, by operator."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dasheng_edge.runtime.machine.devices import load_onnxruntime, spinning

Profile = dict[str, dict[str, float]]


def profile_graph(path: Path, feed: Mapping[str, NDArray[Any]], threads: int, runs: int) -> Profile:
    """Milliseconds and calls per run of each operator, the costliest first; a run before is not counted.

    The session has the options of `dasheng_edge.runtime.machine.devices.onnx_session`. Profiling itself costs some
    time, so these are shares rather than speeds.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    for key, value in spinning(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return by_operator(events, runs)


def by_operator(events: Iterable[Mapping[str, Any]], runs: int) -> Profile:
    """Events of ONNX Runtime's trace, in microseconds -> milliseconds and calls per run; the first run is left out."""
    kernels = [
        (str(event["args"]["op_name"]), float(event["dur"]))
        for event in sorted(events, key=lambda event: float(event.get("ts", 0)))
        if event.get("cat") == "Node" and str(event["name"]).endswith("kernel_time")
    ]
    kept = kernels[len(kernels) // (1 + runs) :]  # every run calls the same kernels
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, microseconds in kept:
        spent[name] += microseconds  # type: ignore[assignment]  # Counter is typed for int, and adds floats as well
        calls[name] += 1
    return {name: {"ms": spent[name] / runs / 1000, "calls": calls[name] / runs} for name, _ in spent.most_common()}
