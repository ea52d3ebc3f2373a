"""The shapes that operators of a graph give, computed before the run: a law for each kind of operator.

ONNX Runtime checks types. What it does not survive is refused here: a division by zero, numbers that do not go
together, shapes that take memory without end. Operators: onnx.ai/onnx/operators, ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .graph_file import BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT32, INT64, MAX_KNOWN, UINT8, GraphError, Node

Shape: TypeAlias = tuple[int, ...]


class Value(NamedTuple):
    """What is known of a value in one run; `known` are whole numbers that shapes may be made of."""

    kind: int
    shape: Shape
    known: NDArray[np.int64] | None = None
    constant: bool = False  # a weight, and so the same in each run


Given: TypeAlias = Sequence[Value]
Law: TypeAlias = Callable[[Node, Given], list[Value]]


def _need(fine: bool, problem: str) -> None:
    if not fine:
        raise GraphError(problem)


def _int(node: Node, name: str, default: int = 0) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attributes[name]
    return value if isinstance(value, tuple) else ()


def _axis(axis: int, rank: int) -> int:
    _need(-rank <= axis < rank, f"axis {axis} of {rank}")
    return axis % rank


def _axes(value: Value, rank: int) -> list[int]:
    axes = [_axis(axis, rank) for axis in _numbers(value)]
    _need(len(set(axes)) == len(axes), "an axis is named twice")
    return axes


def _named_axes(given: Given, default: list[int]) -> list[int]:
    """Axes of the first value that the second names; by the standard, an empty list of them names none or all."""
    if len(given) == 1:
        return default
    _need(given[1].shape != (0,), "an empty list of axes")
    return _axes(given[1], len(given[0].shape))


def _numbers(value: Value) -> list[int]:
    """Whole numbers [n] that a shape is made of."""
    _need(
        value.known is not None and len(value.shape) == 1,
        "a shape is made of numbers that are not known before the run",
    )
    return [int(number) for number in value.known] if value.known is not None else []


def _scalar(value: Value) -> int:
    _need(
        value.known is not None and value.shape in ((), (1,)), "a number is not known before the run, or is no scalar"
    )
    return int(value.known.reshape(-1)[0]) if value.known is not None else 0


def _broadcast(*shapes: Shape) -> Shape:
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise GraphError(f"shapes {shapes} do not go together") from error


def _known(array: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    return None if array is None or array.size > MAX_KNOWN else array


def same_law(_: Node, given: Given) -> list[Value]:
    return [Value(given[0].kind, given[0].shape)]


def arithmetic_law(node: Node, given: Given) -> list[Value]:
    one, other = given
    _need(one.kind == other.kind, f"types {one.kind} and {other.kind} in one {node.operator}")
    shape, known = _broadcast(one.shape, other.shape), None
    if node.operator == "Div" and one.kind not in (FLOAT, FLOAT16, DOUBLE):
        divides = other.constant and other.known is not None and bool((other.known > 0).all())
        _need(divides, "whole numbers are divided by something else than positive constants")
    if one.known is not None and other.known is not None and math.prod(shape) <= MAX_KNOWN and node.operator in _EXACT:
        known = np.asarray(_EXACT[node.operator](np.atleast_1d(one.known), np.atleast_1d(other.known))).reshape(shape)
    return [Value(BOOL if node.operator == "Less" else one.kind, shape, known)]


_EXACT: Mapping[str, Callable[..., NDArray[np.int64]]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply,
    "Div": lambda one, other: one // other + ((one < 0) & (one % other != 0)),  # towards zero
}  # fmt: skip


def cast_law(node: Node, given: Given) -> list[Value]:
    kind = _int(node, "to")
    return [Value(kind, given[0].shape, given[0].known if kind == INT64 else None)]


def shape_law(node: Node, given: Given) -> list[Value]:
    rank = len(given[0].shape)
    sizes = np.array(given[0].shape, np.int64)[_int(node, "start") : _int(node, "end", rank)]
    return [Value(INT64, sizes.shape, sizes)]


def _reshaped(value: Value, shape: Shape) -> list[Value]:
    return [Value(value.kind, shape, None if value.known is None else value.known.reshape(shape))]


def squeeze_law(_: Node, given: Given) -> list[Value]:
    shape = given[0].shape
    axes = _named_axes(given, [axis for axis, size in enumerate(shape) if size == 1])
    _need(all(shape[axis] == 1 for axis in axes), f"axes {axes} of shape {shape} are not 1")
    return _reshaped(given[0], tuple(size for axis, size in enumerate(shape) if axis not in axes))


def unsqueeze_law(_: Node, given: Given) -> list[Value]:
    sizes = iter(given[0].shape)
    rank = len(given[0].shape) + len(_numbers(given[1]))
    axes = _axes(given[1], rank)
    return _reshaped(given[0], tuple(1 if axis in axes else next(sizes) for axis in range(rank)))


def reshape_law(node: Node, given: Given) -> list[Value]:
    shape, wanted = given[0].shape, _numbers(given[1])
    if not _int(node, "allowzero"):
        _need(all(size or axis < len(shape) for axis, size in enumerate(wanted)), f"{shape} cannot become {wanted}")
        wanted = [size or shape[axis] for axis, size in enumerate(wanted)]
    _need(min(wanted, default=0) >= -1 and wanted.count(-1) <= 1, f"{shape} cannot become {wanted}")
    count, rest = math.prod(shape), math.prod(size for size in wanted if size != -1)
    if -1 in wanted:
        _need(rest > 0 and count % rest == 0, f"{shape} cannot become {wanted}")
        wanted[wanted.index(-1)] = count // rest
    _need(math.prod(wanted) == count, f"{shape} cannot become {wanted}")
    return _reshaped(given[0], tuple(wanted))


def slice_law(_: Node, given: Given) -> list[Value]:
    data = given[0]
    starts, ends, axes = _numbers(given[1]), _numbers(given[2]), _axes(given[3], len(data.shape))
    steps = _numbers(given[4]) if len(given) > 4 else [1] * len(axes)
    _need(len(starts) == len(ends) == len(axes) == len(steps) and min(steps, default=1) > 0, "a Slice's numbers differ")
    place = [slice(None)] * len(data.shape)
    for axis, *numbers in zip(axes, starts, ends, steps, strict=True):
        place[axis] = slice(*numbers)
    shape = tuple(len(range(*part.indices(size))) for part, size in zip(place, data.shape, strict=True))
    return [Value(data.kind, shape, None if data.known is None else data.known[tuple(place)])]


def gather_law(node: Node, given: Given) -> list[Value]:
    data, places = given
    axis = _axis(_int(node, "axis"), len(data.shape))
    _need(places.known is not None, "a Gather's places are not known before the run")
    assert places.known is not None
    size = data.shape[axis]
    _need(bool(((places.known >= -size) & (places.known < size)).all()), f"a Gather takes places beyond {size}")
    known = None if data.known is None else np.asarray(np.take(data.known, places.known, axis))
    return [Value(data.kind, data.shape[:axis] + places.shape + data.shape[axis + 1 :], _known(known))]


def concat_law(node: Node, given: Given) -> list[Value]:
    first = given[0]
    axis = _axis(_int(node, "axis"), len(first.shape))
    for value in given:
        rest = value.shape[:axis] + value.shape[axis + 1 :]
        same = len(value.shape) == len(first.shape) and rest == first.shape[:axis] + first.shape[axis + 1 :]
        _need(same and value.kind == first.kind, f"shapes {first.shape} and {value.shape} do not go together")
    size = sum(value.shape[axis] for value in given)
    parts = [value.known for value in given if value.known is not None]
    known = np.concatenate(parts, axis) if len(parts) == len(given) else None
    return [Value(first.kind, (*first.shape[:axis], size, *first.shape[axis + 1 :]), _known(known))]


def expand_law(_: Node, given: Given) -> list[Value]:
    wanted = tuple(_numbers(given[1]))
    _need(min(wanted, default=0) >= 0, f"an Expand to {wanted}")
    return [Value(given[0].kind, _broadcast(given[0].shape, wanted))]


def range_law(_: Node, given: Given) -> list[Value]:
    start, limit, step = (_scalar(value) for value in given)
    _need(step > 0 and all(value.kind == INT64 for value in given), f"a Range in steps of {step}")
    return [Value(INT64, (max(0, -(-(limit - start) // step)),))]


def pad_law(node: Node, given: Given) -> list[Value]:
    shape, pads = given[0].shape, _numbers(given[1])
    reflected = node.attributes["mode"] == "reflect"
    _need(len(pads) == 2 * len(shape), f"pads {pads} for shape {shape}")
    for pad, size in zip(pads, shape * 2, strict=True):  # below 0: that much is cut off
        _need(0 <= pad < max(size, 1) if reflected else pad >= -size, f"pads {pads} for shape {shape}")
    sides = zip(shape, pads, pads[len(shape) :], strict=False)
    sizes = tuple(size + before + behind for size, before, behind in sides)
    _need(min(sizes, default=0) >= 0, f"pads {pads} for shape {shape}")
    return [Value(given[0].kind, sizes)]


def transpose_law(node: Node, given: Given) -> list[Value]:
    order, shape = _ints(node, "perm"), given[0].shape
    _need(sorted(order) == list(range(len(shape))), f"perm {order} for shape {shape}")
    return [Value(given[0].kind, tuple(shape[axis] for axis in order))]


def reduce_law(node: Node, given: Given) -> list[Value]:
    shape = given[0].shape
    axes = _named_axes(given, list(range(len(shape))))
    _need(all(shape[axis] for axis in axes), f"nothing to reduce in {shape}")
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    kept = [size for axis, size in enumerate(sizes) if _int(node, "keepdims", 1) or axis not in axes]
    return [Value(given[0].kind, tuple(kept))]


def split_law(node: Node, given: Given) -> list[Value]:
    shape, count = given[0].shape, _int(node, "num_outputs")
    axis = _axis(_int(node, "axis"), len(shape))
    fits = 0 < count == len(node.outputs) and shape[axis] % count == 0
    _need(fits, f"{shape} split into {count} of {len(node.outputs)}")
    return [Value(given[0].kind, (*shape[:axis], shape[axis] // count, *shape[axis + 1 :]))] * count


def _matrices(one: Shape, other: Shape) -> Shape:
    _need(min(len(one), len(other)) >= 2 and one[-1] == other[-2], f"shapes {one} and {other} cannot be multiplied")
    return (*_broadcast(one[:-2], other[:-2]), one[-2], other[-1])


def matmul_law(_: Node, given: Given) -> list[Value]:
    _need(given[0].kind == given[1].kind, "a MatMul of two types")
    return [Value(given[0].kind, _matrices(given[0].shape, given[1].shape))]


def matmul_integer_law(_: Node, given: Given) -> list[Value]:
    _need([value.kind for value in given] == [UINT8, INT8, UINT8] and given[2].shape == (), "types of a MatMulInteger")
    return [Value(INT32, _matrices(given[0].shape, given[1].shape))]


def quantize_law(_: Node, given: Given) -> list[Value]:
    _need(given[0].kind == FLOAT and bool(math.prod(given[0].shape)), "a DynamicQuantizeLinear of no float32")
    return [Value(UINT8, given[0].shape), Value(FLOAT, ()), Value(UINT8, ())]


def matmul_blocks_law(node: Node, given: Given) -> list[Value]:
    inputs, outputs, bits, size = (_int(node, name) for name in ("K", "N", "bits", "block_size"))
    blocks = -(-inputs // size)
    shapes = (outputs, blocks, size * bits // 8), (outputs * blocks,), (outputs * -(-blocks * bits // 8),)
    fine = [value.shape for value in given[1:]] == list(shapes) and given[0].shape[-1:] == (inputs,) and inputs > 0
    _need(fine and [value.kind for value in given] == [FLOAT, UINT8, FLOAT, UINT8], f"MatMulNBits needs {shapes}")
    return [Value(FLOAT, (*given[0].shape[:-1], outputs))]


def layer_norm_law(node: Node, given: Given) -> list[Value]:
    shape = given[0].shape
    wanted = shape[_axis(_int(node, "axis", -1), len(shape)) :]
    _need(all(value.shape == wanted and value.kind == given[0].kind for value in given[1:]), f"a norm over {wanted}")
    return same_law(node, given)


def batch_norm_law(node: Node, given: Given) -> list[Value]:
    shape = given[0].shape
    _need(len(shape) > 1 and all(value.shape == shape[1:2] for value in given[1:]), f"a batch norm of {shape}")
    return same_law(node, given)


def conv_law(node: Node, given: Given) -> list[Value]:
    shape, weights = given[0].shape, given[1].shape
    kernel, strides, dilations, pads = (_ints(node, name) for name in ("kernel_shape", "strides", "dilations", "pads"))
    rank = len(shape) - 2
    fits = len(weights) == len(shape) == rank + 2 and weights[1] == shape[1] and weights[2:] == kernel and rank == 2
    numbers = len(strides) == len(dilations) == rank and len(pads) == 2 * rank and min(pads) == max(pads) == 0
    _need(fits and numbers and min(*strides, *dilations, *kernel, *shape) > 0, f"a Conv of {shape} by {weights}")
    _need(len(given) < 3 or given[2].shape == weights[:1], "a Conv's bias has another size")
    sizes = zip(shape[2:], kernel, strides, dilations, strict=True)
    after = tuple((size - dilation * (width - 1) - 1) // stride + 1 for size, width, stride, dilation in sizes)
    _need(min(after) > 0, f"a Conv of {shape} by {weights}")
    return [Value(given[0].kind, (shape[0], weights[0], *after))]


def stft_law(_: Node, given: Given) -> list[Value]:
    (rows, samples), window = given[0].shape if len(given[0].shape) == 2 else (0, 0), given[2].shape
    step, size = _scalar(given[1]), _scalar(given[3])
    _need(rows == 1 and step > 0 and 0 < size <= samples and window == (size,), f"an STFT of {size} by {step}")
    return [Value(given[0].kind, (1, 1 + (samples - size) // step, size // 2 + 1, 2))]


def attention_law(node: Node, given: Given) -> list[Value]:
    """Of [batch, rows, heads * width] with the numbers of heads as attributes, or of [batch, heads, rows, width]."""
    query, key, value = (one.shape for one in given[:3])
    _need(len(query) == len(key) == len(value) in (3, 4) and query == key == value, "an Attention of several shapes")
    if len(query) == 3:
        heads = _int(node, "q_num_heads")
        _need(0 < heads == _int(node, "kv_num_heads") and query[2] % heads == 0, f"{heads} heads of {query}")
    else:
        heads = query[1]
        _need("q_num_heads" not in node.attributes, "heads are stated twice")
    scores = (query[0], heads, query[-2], key[-2])
    if len(given) > 3:
        mask = given[3]
        fits = 2 <= len(mask.shape) <= 4 and mask.shape[-2:] == scores[-2:] and mask.kind == BOOL
        _need(fits and _broadcast(scores, mask.shape) == scores, f"a mask {mask.shape} for {scores}")
    _need(math.prod(scores) <= MAX_SCORES, f"an Attention with {math.prod(scores)} scores")
    return [Value(given[0].kind, query)]


MAX_SCORES = 1 << 26  # of one Attention: 252 patches and 48 heads have 3 million, and there may be 16 chunks
