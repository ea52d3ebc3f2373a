"""Graphs in ONNX Runtime's own format, and the list of operators for a build of it that has no others.

ONNX Runtime optimizes a graph before it stores it, so a minimal build needs neither the optimizer nor a reader of ONNX:
see "Build ONNX Runtime for a reduced set of operators" in its documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import weights_file
from dasheng_edge.runtime.errors import QuantizeError

from .quiet import quiet

CONFIG = "required_operators_and_types.config"  # what build.py takes by --include_ops_by_config
MAX_BYTES = (1 << 31) - (1 << 20)  # a flatbuffer's offsets are signed 32-bit


def ort_name(graph: str) -> str:
    """The file of a graph in this format."""
    return str(Path(graph).with_suffix(".ort"))


def check_sizes(graphs: Sequence[Path]) -> None:
    """Whether the format can hold graphs.

    Raises:
        QuantizeError: one is too large.
    """
    for graph in graphs:
        size = sum(file.stat().st_size for file in (graph, weights_file(graph)) if file.exists())
        if size > MAX_BYTES:
            raise QuantizeError(
                f"{graph} has {size / 1e9:.1f} GB with its weights, and the ORT format holds 2.1; quantize the bundle "
                "first: dasheng-edge quantize BUNDLE --out BUNDLE2 --encoder int8"
            )


def convert_to_ort(graphs: Sequence[Path], out: Path) -> list[Path]:
    """Write graphs in ONNX Runtime's format and the operators that they need, with their types; the files written.

    They hold what any processor runs, x86 or ARM: no layout of this machine's.
    """
    load_onnxruntime()  # with its telemetry off
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
    from onnxruntime.tools.ort_format_model import create_config_from_models

    files, config = [out / ort_name(graph.name) for graph in graphs], out / CONFIG
    with quiet():
        for graph in graphs:
            convert_onnx_models_to_ort(graph, out, [OptimizationStyle.Fixed], target_platform="arm")
            (out / f"{graph.stem}.required_operators.config").unlink()
        create_config_from_models(files, config, enable_type_reduction=True)
    lines = config.read_text("utf-8").splitlines()
    config.write_text("".join(f"{line}\n" for line in lines if not line.startswith("# - ")), "utf-8")  # our paths
    return [*files, config]
