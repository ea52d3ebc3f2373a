"""The GEMMs of an encoder and nothing else, in int8 or float32: as fast as ONNX Runtime can be with them on a machine.

One MatMulInteger or MatMul for each matrix of the encoder, of the same shape, with random values. Each gets the
activations as they come, so there is nothing to quantize, and of each result all but one number is thrown away at once:
memory is used again, as in the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dasheng_edge.quant.encoder.graphs import load_graph, matrix_nodes

Shape = tuple[int, int]  # inner dimension and columns
Kind: TypeAlias = Literal["int8", "fp32"]
OPSET, IR_VERSION = 20, 10
_CORNER = {"start": [0, 0], "end": [1, 1], "axes": [1, 2]}


def matrix_shapes(encoder: Path) -> list[Shape]:
    """Shapes of the matrices of an encoder's graph in float32, in their order."""
    shapes = []
    for node in matrix_nodes(load_graph(encoder)).values():
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        inner, columns = (int(size) for size in weight.const_value.shape.numpy())
        shapes.append((inner, columns))
    return shapes


def operations(shapes: Sequence[Shape], rows: int) -> int:
    """Multiplications and additions of the GEMMs."""
    return 2 * rows * sum(inner * columns for inner, columns in shapes)


def write_gemms(path: Path, shapes: Sequence[Shape], rows: int, kind: Kind = "int8", seed: int = 0) -> None:
    """Write the graph: inputs `x<inner>` [1, rows, inner], an output for each matrix [1, 1, 1].

    In int8, inputs are uint8 and outputs int32; in fp32, all are float32.

    Weights stand beside it, in `<name>.data`.
    """
    generator = np.random.default_rng(seed)
    nodes: list[Any] = []
    outputs: list[Any] = []
    constants = [numpy_helper.from_array(np.array(128, np.uint8), "zero")]
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in _CORNER.items()]
    product, zero = ("MatMulInteger", ["zero"]) if kind == "int8" else ("MatMul", [])
    input_type, output_type = TensorProto.FLOAT, TensorProto.FLOAT
    if kind == "int8":
        input_type, output_type = TensorProto.UINT8, TensorProto.INT32
    for index, (inner, columns) in enumerate(shapes):
        weight: NDArray[Any] = np.frombuffer(generator.bytes(inner * columns), np.int8).reshape(inner, columns)
        if kind == "fp32":
            weight = weight.astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node(product, [f"x{inner}", f"w{index}", *zero], [f"y{index}"]))
        nodes.append(helper.make_node("Slice", [f"y{index}", *_CORNER], [f"corner{index}"]))
        outputs.append(helper.make_tensor_value_info(f"corner{index}", output_type, [1, 1, 1]))
    inputs = [
        helper.make_tensor_value_info(f"x{inner}", input_type, [1, rows, inner])
        for inner in dict.fromkeys(inner for inner, _ in shapes)
    ]
    graph = helper.make_graph(nodes, "gemms", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


def gemm_feed(shapes: Sequence[Shape], rows: int, kind: Kind = "int8", seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random activations, [1, rows, inner] for each inner dimension, uint8 or float32."""
    generator, dtype = np.random.default_rng(seed), np.uint8 if kind == "int8" else np.float32
    return {
        f"x{inner}": generator.integers(0, 256, (1, rows, inner), np.uint8).astype(dtype)
        for inner in dict.fromkeys(inner for inner, _ in shapes)
    }
