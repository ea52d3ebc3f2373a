"""A graph at one shape: what follows from shapes alone is computed here, and no value keeps a free dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from dasheng_edge.runtime.errors import QuantizeError


def fix_shapes(
    model: ir.Model, inputs: Mapping[str, tuple[int, ...]], constants: Mapping[str, NDArray[np.int64]]
) -> None:
    """Give each input its one shape, or its one value.

    Raises:
        QuantizeError: a value is left whose shape depends on what the graph is given.
    """
    graph = model.graph
    for value in list(graph.inputs):
        assert value.name is not None
        if value.name in constants:
            graph.inputs.remove(value)
            value.const_value = ir.Tensor(constants[value.name], name=value.name)
            graph.register_initializer(value)
        else:
            value.shape = ir.Shape(inputs[value.name])
    infer(model)
    while _fold(graph):
        infer(model)
    RemoveUnusedNodesPass()(model)
    check_fixed(model)


def cut_frames(model: ir.Model, frames: int) -> None:
    """Let a front end give so many frames of its spectrograms, [1, bands, frames], and drop what comes behind."""
    graph = model.graph
    bounds = [
        constant(graph, f"cut.{name}", np.array([at])) for name, at in (("start", 0), ("end", frames), ("axis", 2))
    ]
    for place, output in enumerate(list(graph.outputs)):
        cut = ir.node("Slice", [output, *bounds])
        cut.outputs[0].name, output.name = output.name, f"{output.name}.whole"
        cut.outputs[0].type = output.type
        graph.append(cut)
        graph.outputs[place] = cut.outputs[0]


def infer(model: ir.Model) -> None:
    """Note the shape of each value, as far as it is known."""
    for output in [output for node in model.graph for output in node.outputs if not is_fixed(output)]:
        output.shape = None  # names of dimensions, which would stay
    ShapeInferencePass()(model)


def check_fixed(model: ir.Model) -> None:
    """Whether every value has one shape.

    Raises:
        QuantizeError: one has not.
    """
    free = [output.name for node in model.graph for output in node.outputs if output.name and not is_fixed(output)]
    if free:
        raise QuantizeError(
            f"{len(free)} values of the graph keep a free dimension, the first is {free[0]!r}, expected none; report "
            "this with the bundle"
        )


def is_fixed(value: ir.Value) -> bool:
    """Whether all dimensions of a value are known."""
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """A new weight of a graph."""
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _fold(graph: ir.Graph) -> bool:
    """Compute nodes whose inputs are known; whether there were any."""
    any_was = False
    for node in list(graph):
        values = _known(graph, node)
        for output, known in zip(node.outputs, values or (), strict=False):
            assert output.name is not None
            output.replace_all_uses_with(constant(graph, f"{output.name}.known", np.asarray(known)))
        if values:
            graph.remove(node, safe=True)
            any_was = True
    return any_was


def _known(graph: ir.Graph, node: ir.Node) -> list[NDArray[Any]] | None:
    """What a node gives whatever the graph is given; None if that is not so."""
    given = [value for value in node.inputs if value is not None]
    if node.op_type == "Shape" and is_fixed(given[0]):
        start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
        assert given[0].shape is not None
        return [np.array(given[0].shape.numpy()[start:end], np.int64)]
    if any(value.const_value is None for value in given) or (not given and node.op_type != "Constant"):
        return None
    feed = {value.name: value.const_value.numpy() for value in given if value.const_value is not None}
    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets=dict(graph.opset_imports))
    return list(evaluator.run(None, feed))  # type: ignore[arg-type]
