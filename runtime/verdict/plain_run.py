"""A graph run once more, as plainly as ONNX Runtime can, with some of its products held against NumPy's.

Kernels that fuse operators, share threads or repack weights are left out so. It is for graphs that gave wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.graph_file import GraphFile, Node, read_graph_file
from dasheng_edge.runtime.deviation import relative_rms

_PRODUCTS = ("MatMul", "MatMulInteger", "com.microsoft.MatMulNBits")
# Float32 sums of 10,000 products differ from NumPy's in float64 by 1e-6; `MatMulNBits` may round what it multiplies to
# int8 and then differs by 1e-2. Sums of integers differ by nothing.
_ROUNDED: Mapping[str, float] = {"MatMul": 1e-4, "MatMulInteger": 0.0, "com.microsoft.MatMulNBits": 5e-2}
_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # numbers of fields in onnx.proto
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PlainRun:
    """What a graph gives without optimisation on one thread of the CPU."""

    outputs: dict[str, NDArray[Any]]
    wrong: tuple[str, ...]  # operators whose products are not NumPy's


def plain_run(path: Path, feed: Feed) -> PlainRun:
    """Run a graph so, with the first product of each operator and size of weights as further outputs.

    Raises what ONNX Runtime raises, and what `load_onnxruntime` does.
    """
    onnxruntime = load_onnxruntime()
    graph = read_graph_file(path)
    products = _products(graph)
    names = {name for node in products for name in (*node.inputs, *node.outputs)} - {*graph.inputs, *graph.outputs}
    outputs = b"".join(_field(_OUTPUT, _field(_NAME, name.encode())) for name in sorted(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    # Messages of protocol buffers that lie behind each other are read as one, so this adds to the graph.
    session = onnxruntime.InferenceSession(
        path.read_bytes() + _field(_GRAPH, outputs), options, providers=["CPUExecutionProvider"]
    )
    given = [value.name for value in session.get_outputs()]
    values = {**feed, **dict(zip(given, session.run(None, dict(feed)), strict=True))}
    wrong = dict.fromkeys(node.operator for node in products if not _is_product(node, values))
    return PlainRun({name: values[name] for name in graph.outputs}, tuple(wrong))


def _products(graph: GraphFile) -> list[Node]:
    """A node of each operator and size of weights."""
    nodes: dict[tuple[object, ...], Node] = {}
    for node in graph.nodes:
        if node.operator in _PRODUCTS and node.inputs[1] in graph.weights:
            nodes.setdefault((node.operator, graph.weights[node.inputs[1]].shape, *node.attributes.items()), node)
    return list(nodes.values())


def _is_product(node: Node, values: Feed) -> bool:
    """Whether a node gave what NumPy computes of the same numbers; what is not finite says nothing."""
    left, weights, *others = (values[name] for name in node.inputs)
    got = values[node.outputs[0]]
    want: NDArray[Any]
    if node.operator == "MatMulInteger":  # by int64, which NumPy multiplies without a library's kernels
        want = (left.astype(np.int64) - others[0].astype(np.int64)) @ weights.astype(np.int64)
    elif node.operator == "MatMul":
        want = left.astype(np.float64) @ weights.astype(np.float64)
    else:
        want = left.astype(np.float64) @ _unpacked(node, weights, *others).T
    return not np.isfinite(want).all() or relative_rms(got, want) <= _ROUNDED[node.operator]


def _unpacked(node: Node, packed: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any]) -> NDArray[np.float64]:
    """Weights [N, K] of MatMulNBits: blocks of a row share a scale and a zero; two numbers of 4 bits are in a byte."""
    size, rows, bits = node.attributes["K"], node.attributes["N"], node.attributes["bits"]
    assert isinstance(size, int)
    assert isinstance(rows, int)

    def numbers(values: NDArray[Any]) -> NDArray[np.float64]:
        if bits == 4:
            values = np.stack([values & 15, values >> 4], axis=-1)
        return values.reshape(rows, -1).astype(np.float64)

    blocks = packed.shape[1]
    centred = numbers(packed).reshape(rows, blocks, -1) - numbers(zeros.reshape(rows, -1))[:, :blocks, None]
    weights: NDArray[np.float64] = (centred * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :size]
    return weights


def _field(number: int, value: bytes) -> bytes:
    """A field that holds bytes, as protocol buffers write it."""
    size, head = len(value), [number << 3 | 2]
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + value
