"""Turns the weight matrices of a graph into another precision; everything else of it stays float32.

A matrix is what a MatMul multiplies by: qkv, proj, fc1 and fc2 of each encoder block, and the projector's two. What
makes patches, norms, biases and position embeddings are left as they are. Weights are read and converted one at
a time, while the file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dasheng_edge.runtime.bundle.bundle import EXTERNAL_BYTES, PAGE_BYTES, weights_file
from dasheng_edge.runtime.errors import QuantizeError

from .block_weights import block_parameters, block_values, channel_int8, channel_scales, pack
from .precisions import BLOCK_SIZE, PRECISIONS, Bits, MatrixPrecision

MICROSOFT = "com.microsoft"
# Levels of accuracy of MatMulNBits: 4 multiplies in int8, 1 in float32.
ACCURACY_LEVEL = 4
_ENDING = ".weight.transposed"
HALF = ir.DataType.FLOAT16


def load_graph(path: Path) -> ir.Model:
    """A graph; weights in a file beside it are mapped when they are read."""
    return ir.load(path)


def matrix_nodes(model: ir.Model) -> dict[str, ir.Node]:
    """The MatMul of each matrix, by its name without ending: "audio_encoder.blocks.0.attn.qkv"."""
    nodes = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        name = weight.name if weight is not None else None
        if name is not None and name.endswith(_ENDING) and name in model.graph.initializers:
            nodes[name.removesuffix(_ENDING)] = node
    return nodes


def weight_of(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol]:
    """What a MatMul multiplies by, and its numbers."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight, weight.const_value


def convert(model: ir.Model, precisions: Mapping[str, MatrixPrecision]) -> None:
    """Give each matrix its precision; those that are not named stay float32.

    Raises:
        QuantizeError: a weight does not fit into float16.
    """
    for name, node in matrix_nodes(model).items():
        precision = PRECISIONS[precisions.get(name, "fp32")]
        if precision.bits == 32:
            continue
        weight, _ = weight_of(node)
        assert weight.name is not None
        if precision.scales == "block":
            _to_blocks(model.graph, node, name, precision.bits)
        elif precision.scales == "channel":
            _to_int8(model.graph, node, name)
        else:
            _to_fp16(model.graph, node, name)
        if not weight.uses():
            model.graph.initializers.pop(weight.name)
    if any(PRECISIONS[precision].scales == "block" for precision in precisions.values()):
        model.opset_imports[MICROSOFT] = 1


def to_cuda(model: ir.Model, *, emulated: bool = False) -> None:
    """Let a graph with float16 weights multiply in float16, instead of casting the weights.

    What lies between two matrices, which is attention or a GELU, is float16, too; sums that a matrix is added to and
    norms stay float32. A matrix's inputs and products are known to fit (`activations.check_float16`). `emulated` is for
    a CPU, where ONNX Runtime would compute in float32 and drop the casts: what goes into each operator and what comes
    out is rounded to float16.
    """
    graph = model.graph
    for node in list(graph):
        cast = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
            continue
        halved = _cast(node.inputs[0], HALF)
        product = ir.node("MatMul", [halved.outputs[0], cast.inputs[0]])
        product.outputs[0].type = ir.TensorType(HALF)
        _replace(graph, node, [halved, product, _cast(product.outputs[0], ir.DataType.FLOAT)])
        graph.remove(cast, safe=True)
    halves: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == HALF:
            for between in (inner := _between(node)):
                _compute_in_half(between, halves)
            if inner:
                node.outputs[0].replace_all_uses_with(inner[0].outputs[0])
    RemoveUnusedNodesPass()(model)
    for node in list(graph) if emulated else ():
        if node.op_type not in ("Cast", "Split") and node.outputs[0].dtype == HALF:
            _emulate_half(graph, node)


def _cast(value: ir.Value | None, kind: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(kind)})
    node.outputs[0].type = ir.TensorType(kind)
    return node


def _emulate_half(graph: ir.Graph, node: ir.Node) -> None:
    """Compute in float32 on what is float16, and round what comes out."""
    (output,) = node.outputs
    rounded = _cast(output, HALF)
    output.replace_all_uses_with(rounded.outputs[0])
    rounded.replace_input_with(0, output)
    output.type, rounded.outputs[0].name = ir.TensorType(ir.DataType.FLOAT), f"{output.name}.rounded"
    graph.insert_after(node, rounded)
    for place, value in enumerate(node.inputs):
        stored = value.const_value if value is not None else None
        if value is not None and HALF in (value.dtype, stored.dtype if stored is not None else None):
            widened = _cast(value, ir.DataType.FLOAT)
            widened.outputs[0].name = f"{output.name}.{place}"
            graph.insert_before(node, widened)
            node.replace_input_with(place, widened.outputs[0])


# What may lie between two matrices, and how many of its inputs are what they compute: biases and masks are not.
_BETWEEN = {"Add": 1, "Attention": 3, "Gelu": 1, "Mul": 1, "Split": 1}


def _between(cast: ir.Node) -> list[ir.Node]:
    """The nodes from products of matrices to a cast, the last first; none if others lie there, or take part."""
    nodes = [cast]
    for node in nodes:
        for value in node.inputs[: _BETWEEN.get(node.op_type, 1)]:
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in (*_BETWEEN, "Cast"):
                return []
            if producer.op_type != "Cast" and producer not in nodes:
                nodes.append(producer)
    apart = any(use.node not in nodes for node in nodes[1:] for output in node.outputs for use in output.uses())
    return [] if apart else nodes[1:]


def _compute_in_half(node: ir.Node, halves: dict[ir.Value, ir.Value]) -> None:
    """Of what is cast to float32 take what was there before, and cast a bias, once for all nodes that take it."""
    for place, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if place < _BETWEEN[node.op_type]:
            if producer is not None and producer.op_type == "Cast":
                node.replace_input_with(place, producer.inputs[0])
        elif value is not None and node.op_type != "Attention":
            node.replace_input_with(place, _half(node, value, halves))
    for output in node.outputs:
        output.type = ir.TensorType(HALF)


def _half(node: ir.Node, value: ir.Value, halves: dict[ir.Value, ir.Value]) -> ir.Value:
    """A bias or a mask in float16, cast once, before the first node that takes it."""
    if value not in halves:
        cast = _cast(value, HALF)
        cast.outputs[0].name = f"{value.name}.half"
        assert node.graph is not None
        node.graph.insert_before(node, cast)
        halves[value] = cast.outputs[0]
    return halves[value]


def save_graph(model: ir.Model, path: Path, *, beside: bool = False) -> int:
    """Write a graph, with its weights in NAME.data where they are many or `beside` asks for it; bytes written."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    external = weights_file(path) if beside or weights > EXTERNAL_BYTES else None
    if external is None:
        ir.external_data.load_to_model(model)  # what is in a file beside the source would be looked for beside this one
    ir.save(model, path, external_data=external.name if external else None, alignment=PAGE_BYTES)
    return sum(file.stat().st_size for file in (path, external) if file is not None)


def lazily(name: str, kind: ir.DataType, shape: tuple[int, ...], read: Callable[[], NDArray[Any]]) -> ir.LazyTensor:
    """A weight that is computed each time it is read, which is when the file is written."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(read()), name=name), dtype=kind, shape=ir.Shape(shape), name=name
    )


def _matrix(node: ir.Node) -> Callable[[], NDArray[np.float32]]:
    """Reads the matrix of a MatMul, each time anew."""
    _, tensor = weight_of(node)
    return lambda: np.asarray(tensor.numpy(), np.float32)


def _to_fp16(graph: ir.Graph, node: ir.Node, name: str) -> None:
    read = _matrix(node)
    with np.errstate(over="ignore"):  # refused here
        finite = np.isfinite(read().astype(np.float16)).all()
    if not finite:
        largest = float(np.abs(read()).max())
        raise QuantizeError(f"{name} holds {largest:g}, float16 reaches 65504; choose int8 or fp32 for the encoder")
    shape = read().shape
    half = _stored(graph, f"{name}.fp16", ir.DataType.FLOAT16, shape, lambda: read().astype(np.float16))
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)})
    _replace(graph, node, [cast, ir.node("MatMul", [node.inputs[0], cast.outputs[0]])])


def _to_int8(graph: ir.Graph, node: ir.Node, name: str) -> None:
    """What ONNX Runtime fuses to one kernel: activations to uint8, whole-number product, scales of both sides."""
    read = _matrix(node)
    scales = channel_scales(read())
    shape = read().shape
    whole = _stored(graph, f"{name}.int8", ir.DataType.INT8, shape, lambda: channel_int8(read(), scales))
    steps = _stored(graph, f"{name}.scales", ir.DataType.FLOAT, scales.shape, lambda: scales)
    quantized = ir.node("DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3)
    values, scale, zero = quantized.outputs
    product = ir.node("MatMulInteger", [values, whole, zero])
    cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    both = ir.node("Mul", [scale, steps])
    _replace(graph, node, [quantized, product, cast, both, ir.node("Mul", [cast.outputs[0], both.outputs[0]])])


def _to_blocks(graph: ir.Graph, node: ir.Node, name: str, bits: Bits) -> None:
    read = _matrix(node)
    inputs, outputs = read().shape
    scales, zeros = block_parameters(read(), bits)
    shape = (outputs, scales.shape[1], BLOCK_SIZE * bits // 8)
    values = _stored(
        graph, f"{name}.int{bits}", ir.DataType.UINT8, shape, lambda: block_values(read(), bits, scales, zeros)
    )
    steps = _stored(graph, f"{name}.scales", ir.DataType.FLOAT, (scales.size,), lambda: scales.reshape(-1))
    packed = pack(zeros, bits).reshape(-1)
    points = _stored(graph, f"{name}.zeros", ir.DataType.UINT8, packed.shape, lambda: packed)
    attributes = {
        "K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK_SIZE, "accuracy_level": ACCURACY_LEVEL,
    }  # fmt: skip
    product = ir.node("MatMulNBits", [node.inputs[0], values, steps, points], attributes, domain=MICROSOFT)
    _replace(graph, node, [product])


def _stored(
    graph: ir.Graph, name: str, kind: ir.DataType, shape: tuple[int, ...], read: Callable[[], NDArray[Any]]
) -> ir.Value:
    """A new weight, computed when the file is written."""
    tensor = lazily(name, kind, shape, read)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Replace a node by several; the last has its output."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    name = old.name
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, nodes)
    for index, each in enumerate(nodes):
        for place, output in enumerate(each.outputs):
            output.name = f"{name}.{each.op_type}{index}.{place}"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name
