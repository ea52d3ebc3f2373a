"""A graph in an older set of operators: those that are newer are written out in older ones.

RKNN takes opset 19 at most, converters for QNN and Core ML know few operators beyond 17. Attention is of opset 23, Gelu
of 20, a Split into equal parts of 18. The graph has fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .fixed import check_fixed, constant, infer
from .forms import Opset

IR_VERSIONS: Mapping[int, int] = {17: 8, 19: 9, 23: 10}  # of the ONNX release that brought the opset; 10 is a bundle's
# What a key that is masked gets added to its score. Its share is 0 then in float32 as in float16, which holds 65504.
MASKED = -1e4


class _Written:
    """Nodes that take the place of one, in order."""

    def __init__(self, node: ir.Node) -> None:
        assert node.graph is not None
        assert isinstance(node.graph, ir.Graph)
        self.graph, self._node, self.nodes = node.graph, node, list[ir.Node]()
        self._name = node.outputs[0].name

    def add(self, kind: str, *inputs: ir.Value, **attributes: int | tuple[int, ...]) -> ir.Value:
        """One more node -> what it gives."""
        node = ir.node(kind, inputs, attributes)
        node.outputs[0].name = f"{self._name}.{kind}{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def number(self, value: float) -> ir.Value:
        """A float32."""
        return self._constant(np.array(value, np.float32))

    def sizes(self, *sizes: int) -> ir.Value:
        """A shape."""
        return self._constant(np.array(sizes, np.int64))

    def _constant(self, values: np.ndarray) -> ir.Value:
        name = f"constant.{values.dtype}.{'x'.join(map(str, values.reshape(-1).tolist()))}"
        return self.graph.initializers.get(name) or constant(self.graph, name, values)

    def replace(self, result: ir.Value) -> None:
        """Put the nodes where the old one is; `result` is what it gave."""
        self.graph.insert_before(self._node, self.nodes)
        _take_over(self._node, [result])


def _take_over(node: ir.Node, results: Sequence[ir.Value]) -> None:
    """Let values take the place and the names of what a node gives, and remove it."""
    names = [output.name for output in node.outputs]
    for old, result in zip(node.outputs, results, strict=True):
        result.type, result.shape = old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)
    for name, result in zip(names, results, strict=True):
        result.name = name


def _attention(node: ir.Node) -> None:
    """softmax(query key^T / sqrt(size) + mask) value, of each head.

    On [1, rows, dim] with q_num_heads, or on [1, heads, rows, size]; the mask is true where a key counts.
    """
    query, key, value = node.inputs[:3]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    assert query is not None
    assert key is not None
    assert value is not None
    assert query.shape is not None
    written = _Written(node)
    _, *_, rows, dim = query.shape.numpy()
    heads = node.attributes["q_num_heads"].as_int() if "q_num_heads" in node.attributes else 0
    size = dim // (heads or 1)

    def apart(values: ir.Value, *order: int) -> ir.Value:
        if not heads:
            return values if order == (0, 2, 1, 3) else written.add("Transpose", values, perm=(0, 1, 3, 2))
        split = written.add("Reshape", values, written.sizes(1, rows, heads, size))
        return written.add("Transpose", split, perm=order)

    scaled = written.add("Mul", apart(query, 0, 2, 1, 3), written.number(size**-0.5))
    scores = written.add("MatMul", scaled, apart(key, 0, 2, 3, 1))
    if mask is not None:
        scores = written.add("Add", scores, _added(written, mask))
    result = written.add("MatMul", written.add("Softmax", scores, axis=-1), apart(value, 0, 2, 1, 3))
    if heads:
        rows_first = written.add("Transpose", result, perm=(0, 2, 1, 3))
        result = written.add("Reshape", rows_first, written.sizes(1, rows, dim))
    written.replace(result)


def _takes_all(mask: ir.Value | None) -> bool:
    """Whether a mask is known and leaves nothing out."""
    return mask is not None and mask.const_value is not None and bool(mask.const_value.numpy().all())


def _added(written: _Written, mask: ir.Value) -> ir.Value:
    """What is added to scores for a mask of booleans; written once, though every block takes it."""
    producer = mask.producer()
    if producer is not None and producer.op_type == "Expand" and producer.inputs[0] is not None:
        mask = producer.inputs[0]  # of one row, which an addition repeats by itself
    for user, _ in mask.uses():
        if user.op_type == "Where":
            return user.outputs[0]
    return written.add("Where", mask, written.number(0.0), written.number(MASKED))


def _gelu(node: ir.Node) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, as PyTorch's exporter wrote it, so that tool chains know it again."""
    x = node.inputs[0]
    assert x is not None
    written = _Written(node)
    erf = written.add("Erf", written.add("Div", x, written.number(2**0.5)))
    twice = written.add("Mul", x, written.add("Add", erf, written.number(1.0)))
    written.replace(written.add("Mul", twice, written.number(0.5)))


def _split(node: ir.Node) -> None:
    """Equal parts, whose sizes are an input here."""
    written = _Written(node)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sizes = [output.shape.numpy()[axis] for output in node.outputs if output.shape is not None]
    older = ir.node("Split", [node.inputs[0], written.sizes(*sizes)], {"axis": axis}, num_outputs=len(sizes))
    written.graph.insert_before(node, older)
    _take_over(node, older.outputs)


# Operator -> the opset that brought what graphs of a bundle use of it, and how older ones say it.
NEWER: Mapping[str, tuple[int, Callable[[ir.Node], None]]] = {
    "Attention": (23, _attention),
    "Gelu": (20, _gelu),
    "Split": (18, _split),
}


def lower(model: ir.Model, opset: Opset) -> None:
    """Write a graph of fixed shapes in the operators of an opset, and name its nodes, which tool chains ask for.

    Raises:
        QuantizeError: a value has got a free dimension.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention" and len(node.inputs) > 3 and _takes_all(node.inputs[3]):
            node.resize_inputs(3)
        since, write = NEWER.get(node.op_type, (0, _gelu))
        if since > opset:
            write(node)
    graph.opset_imports[""] = opset
    model.ir_version = IR_VERSIONS[opset]
    RemoveUnusedNodesPass()(model)
    infer(model)
    check_fixed(model)
    for index, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{index}"
