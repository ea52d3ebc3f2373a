"""The operators that graphs of a bundle may use, in one table.

They are those that `export.graphs` and `quant.encoder` write, with the inputs and attributes that they write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from . import graph_shapes as shapes
from .graph_file import BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, Attribute, GraphError, Node
from .graph_shapes import Given, Law, Value


class Operator(NamedTuple):
    """How many inputs an operator has, its attributes with the values that each may have, and its law of shapes.

    In `attributes` a tuple lists values, a type allows all of it; those without "?" behind their name must be there.
    """

    law: Law
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, type | tuple[Attribute, ...]] = {}


_KINDS: tuple[Attribute, ...] = (FLOAT, INT32, INT64, BOOL, FLOAT16, DOUBLE)
_TWO = (2, 2)
OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(shapes.arithmetic_law, _TWO),
    "Attention": Operator(
        shapes.attention_law, (3, 4),
        {"q_num_heads?": int, "kv_num_heads?": int, "is_causal?": (0,), "softcap?": (0.0,),
         "qk_matmul_output_mode?": (0,)},
    ),
    "BatchNormalization": Operator(shapes.batch_norm_law, (5, 5), {"epsilon": float, "momentum?": float}),
    "Cast": Operator(shapes.cast_law, attributes={"to": _KINDS}),
    "Concat": Operator(shapes.concat_law, (1, 16), {"axis": int}),
    "Conv": Operator(
        shapes.conv_law, (2, 3),
        {"auto_pad?": ("NOTSET",), "dilations": tuple, "group?": (1,), "kernel_shape": tuple, "pads": tuple,
         "strides": tuple},
    ),
    "Div": Operator(shapes.arithmetic_law, _TWO),
    "DynamicQuantizeLinear": Operator(shapes.quantize_law),
    "Expand": Operator(shapes.expand_law, _TWO),
    "Gather": Operator(shapes.gather_law, _TWO, {"axis?": int}),
    "Gelu": Operator(shapes.same_law, attributes={"approximate?": ("none",)}),
    "LayerNormalization": Operator(
        shapes.layer_norm_law, (3, 3), {"axis?": int, "epsilon?": float, "stash_type?": (1,)}
    ),
    "Less": Operator(shapes.arithmetic_law, _TWO),
    "Log": Operator(shapes.same_law),
    "MatMul": Operator(shapes.matmul_law, _TWO),
    "MatMulInteger": Operator(shapes.matmul_integer_law, (3, 3)),
    "Max": Operator(shapes.arithmetic_law, _TWO),
    "Mul": Operator(shapes.arithmetic_law, _TWO),
    "Not": Operator(shapes.same_law),
    "Or": Operator(shapes.arithmetic_law, _TWO),
    "Pad": Operator(shapes.pad_law, _TWO, {"mode": ("constant", "reflect")}),
    "Range": Operator(shapes.range_law, (3, 3)),
    "ReduceMax": Operator(shapes.reduce_law, (1, 1), {"keepdims?": (0, 1)}),
    "ReduceSum": Operator(shapes.reduce_law, _TWO, {"keepdims?": (0, 1)}),
    "Reshape": Operator(shapes.reshape_law, _TWO, {"allowzero?": (0, 1)}),
    "STFT": Operator(shapes.stft_law, (4, 4), {"onesided?": (1,)}),
    "Shape": Operator(shapes.shape_law, attributes={"start?": int, "end?": int}),
    "Slice": Operator(shapes.slice_law, (4, 5)),
    "Split": Operator(shapes.split_law, attributes={"axis?": int, "num_outputs": int}),
    "Sqrt": Operator(shapes.same_law),
    "Squeeze": Operator(shapes.squeeze_law, (1, 2)),
    "Sub": Operator(shapes.arithmetic_law, _TWO),
    "Transpose": Operator(shapes.transpose_law, attributes={"perm": tuple}),
    "Unsqueeze": Operator(shapes.unsqueeze_law, _TWO),
    "com.microsoft.MatMulNBits": Operator(
        shapes.matmul_blocks_law,
        (4, 4),
        {"K": int, "N": int, "bits": (4, 8), "block_size": (16, 32, 64, 128, 256), "accuracy_level?": (0, 1, 2, 3, 4)},
    ),
}  # fmt: skip


def outputs_of(node: Node, given: Given) -> list[Value]:
    """Kinds and shapes of what a node gives.

    Raises:
        GraphError: the operator is none of the table, or its inputs and attributes do not go together.
    """
    operator = OPERATORS.get(node.operator)
    if operator is None:
        raise GraphError(f"it uses the operator {node.operator!r}, which no graph of a bundle has")
    if not operator.inputs[0] <= len(given) <= operator.inputs[1]:
        raise GraphError(f"{len(given)} inputs, expected {operator.inputs[0]} to {operator.inputs[1]}")
    names = {name.rstrip("?"): allowed for name, allowed in operator.attributes.items()}
    if missing := [name for name in operator.attributes if not name.endswith("?") and name not in node.attributes]:
        raise GraphError(f"attributes {', '.join(missing)} are missing")
    for name, value in node.attributes.items():
        allowed = names.get(name, ())
        if not _allows(allowed, value):
            raise GraphError(f"attribute {name} = {value!r} is not among those that graphs of a bundle have")
    outputs = operator.law(node, given)
    if len(outputs) != len(node.outputs):
        raise GraphError(f"{len(node.outputs)} outputs, expected {len(outputs)}")
    return outputs


def work_of(node: Node, given: Given, outputs: Given) -> int:
    """About how many numbers are multiplied or written."""
    written = sum(math.prod(value.shape) for value in outputs)
    if node.operator.startswith(("MatMul", "com.microsoft.MatMul")):
        return written * given[0].shape[-1]
    if node.operator == "Conv":
        return written * math.prod(given[1].shape[1:])
    if node.operator == "Attention":
        return math.prod(given[0].shape) * (given[1].shape[-2]) * 2
    return written * (32 if node.operator == "STFT" else 1)


def _allows(allowed: type | tuple[Attribute, ...], value: Attribute) -> bool:
    if isinstance(allowed, type):
        return isinstance(value, allowed)
    return any(value == one and type(value) is type(one) for one in allowed)
