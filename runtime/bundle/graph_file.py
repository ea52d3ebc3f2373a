"""An ONNX file as far as it has to be known before ONNX Runtime sees it: nodes, names, types and places of weights.

Protocol buffers are read here by hand, since the runtime has no onnx package: a field is a varint of its number and its
wire type, and then its value (protobuf.dev, "Encoding"; numbers of fields: onnx.proto of ONNX 1.18). The file is
mapped, and weights are passed over. Fields that are not in the tables below are refused, functions, subgraphs, training
information and sparse weights among them, as are fields that occur twice where one is meant.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

# What a message may hold, by field number: name and wire type. A "*" behind the name: any number of times.
_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_Fields: TypeAlias = Mapping[int, tuple[str, int]]
_MODEL: _Fields = {
    1: ("ir_version", 0), 2: ("producer_name", 2), 3: ("producer_version", 2), 4: ("domain", 2),
    5: ("model_version", 0), 6: ("doc_string", 2), 7: ("graph", 2), 8: ("opset_import*", 2), 14: ("metadata_props*", 2),
}  # fmt: skip
_GRAPH: _Fields = {
    1: ("node*", 2), 2: ("name", 2), 5: ("initializer*", 2), 10: ("doc_string", 2), 11: ("input*", 2),
    12: ("output*", 2), 13: ("value_info*", 2), 16: ("metadata_props*", 2),
}  # fmt: skip
_NODE: _Fields = {
    1: ("input*", 2), 2: ("output*", 2), 3: ("name", 2), 4: ("op_type", 2), 5: ("attribute*", 2), 6: ("doc_string", 2),
    7: ("domain", 2), 9: ("metadata_props*", 2),
}  # fmt: skip
_ATTRIBUTE: _Fields = {
    1: ("name", 2), 2: ("f", 5), 3: ("i", 0), 4: ("s", 2), 8: ("ints*", 0), 13: ("doc_string", 2), 20: ("type", 0),
}  # fmt: skip
_TENSOR: _Fields = {
    1: ("dims*", 0), 2: ("data_type", 0), 8: ("name", 2), 9: ("raw_data", 2), 12: ("doc_string", 2),
    13: ("external_data*", 2), 14: ("data_location", 0), 16: ("metadata_props*", 2),
}  # fmt: skip
_VALUE: _Fields = {1: ("name", 2), 2: ("type", 2), 3: ("doc_string", 2), 4: ("metadata_props*", 2)}
_TYPE: _Fields = {1: ("tensor_type", 2), 6: ("denotation", 2)}
_TENSOR_TYPE: _Fields = {1: ("elem_type", 0), 2: ("shape", 2)}
_SHAPE: _Fields = {1: ("dim*", 2)}
_DIMENSION: _Fields = {1: ("dim_value", 0), 2: ("dim_param", 2), 3: ("denotation", 2)}
_OPSET: _Fields = {1: ("domain", 2), 2: ("version", 0)}
_ENTRY: _Fields = {1: ("key", 2), 2: ("value", 2)}
_REFUSED = {  # fields that have a name worth telling
    ("a model", 20): "training information", ("a model", 25): "functions", ("a graph", 15): "sparse weights",
    ("an attribute", 5): "a tensor", ("an attribute", 6): "a subgraph", ("an attribute", 10): "tensors",
    ("an attribute", 11): "subgraphs", ("a type", 4): "a sequence", ("a type", 5): "a map",
    ("a type", 9): "an optional", ("a weight", 3): "a segment", ("a weight", 6): "texts",
}  # fmt: skip

MAX_FIELDS = 1_000_000  # of all messages together: an encoder of 40 blocks in int8 has 60,000
MAX_TEXT_BYTES = 1024  # of a name
MAX_KNOWN = 64  # values of a whole-number weight that shapes may be made of
MAX_RANK = 8
FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE = 1, 2, 3, 6, 7, 9, 10, 11
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, BOOL: 1, FLOAT16: 2, DOUBLE: 8}
_ATTRIBUTE_KINDS = {1: "f", 2: "i", 3: "s", 7: "ints"}  # AttributeProto.AttributeType

Attribute: TypeAlias = "int | float | str | tuple[int, ...]"
_Span: TypeAlias = tuple[int, int]  # bytes of the file, half open


class GraphError(ValueError):
    """What is wrong with a graph; `graph_check` tells which file it is in."""


class Weight(NamedTuple):
    """An initialiser without its values; `known` are those of a few whole numbers, int64 of its shape."""

    kind: int
    shape: tuple[int, ...]
    known: NDArray[np.int64] | None
    external: tuple[str, int, int] | None  # file, first byte, bytes


class Described(NamedTuple):
    """What a graph says about one of its values; None: a dimension that varies. No shape: nothing is said."""

    kind: int
    shape: tuple[int | None, ...] | None


class Node(NamedTuple):
    """An operator at work."""

    operator: str  # with its domain in front, where it is not ai.onnx: "com.microsoft.MatMulNBits"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class GraphFile:
    """A graph: opsets by domain, nodes in order, weights, inputs, outputs and other values by name."""

    ir_version: int
    opsets: Mapping[str, int]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight]
    inputs: Mapping[str, Described]
    outputs: Mapping[str, Described]
    described: Mapping[str, Described]


def read_graph_file(path: Path) -> GraphFile:
    """Read a graph; how long that takes depends on its nodes, and not on its weights.

    Raises:
        GraphError: it is no ONNX file, or holds what `docs/bundle.md` does not allow.
        OSError: it cannot be opened or mapped.
    """
    with path.open("rb") as file:
        if not (size := path.stat().st_size):
            raise GraphError("it is empty")
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            if hasattr(mmap, "MADV_RANDOM"):  # weights that are passed over are not read ahead
                data.madvise(mmap.MADV_RANDOM)
            return _Reader(data, size).model()


class _Reader:
    """Reads messages of one file; all of them together may have `MAX_FIELDS` fields."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._left = data, size, MAX_FIELDS

    def model(self) -> GraphFile:
        model = self._message((0, self._size), _MODEL, "a model")
        graph = self._message(self._one(model, "graph"), _GRAPH, "a graph")
        opsets = [self._message(span, _OPSET, "an opset") for span in model["opset_import"]]
        return GraphFile(
            ir_version=self._number(model, "ir_version"),
            opsets=_named([(self._text(opset, "domain"), self._number(opset, "version")) for opset in opsets], "opset"),
            nodes=tuple(self._node(span) for span in graph["node"]),
            weights=_named([self._weight(span) for span in graph["initializer"]], "weight"),
            inputs=_named([self._described(span) for span in graph["input"]], "input"),
            outputs=_named([self._described(span) for span in graph["output"]], "output"),
            described=_named([self._described(span) for span in graph["value_info"]], "value"),
        )

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1, at
            shift += 7
        raise GraphError(f"it breaks off, or is no ONNX file, at byte {at}")

    def _message(self, span: _Span, known: _Fields, what: str) -> dict[str, list[Any]]:
        """Values of each field by name: numbers, or the bytes where texts and messages lie."""
        fields: dict[str, list[Any]] = {name.rstrip("*"): [] for name, _ in known.values()}
        at, end = span
        while at < end:
            tag, at = self._varint(at, end)
            name, wire = known.get(tag >> 3, ("", -1))
            if not name:
                raise GraphError(f"{what} holds {_REFUSED.get((what, tag >> 3), f'field {tag >> 3}')}")
            value, at = self._value(tag & 7, wire, name, at, end)
            fields[name.rstrip("*")] += value
            if not name.endswith("*") and len(fields[name]) > 1:
                raise GraphError(f"{what} states its {name} twice")
            self._left -= len(value)
            if self._left < 0:
                raise GraphError(f"it has more than {MAX_FIELDS} fields")
        return fields

    def _value(self, got: int, wire: int, name: str, at: int, end: int) -> tuple[list[Any], int]:
        if got == wire == _VARINT:
            value, at = self._varint(at, end)
            return [_signed(value)], at
        if got == wire == _FIXED32 and at + 4 <= end:
            return [struct.unpack("<f", self._data[at : at + 4])[0]], at + 4
        if got == _BYTES and (wire == _BYTES or (wire == _VARINT and name.endswith("*"))):
            size, at = self._varint(at, end)
            if size <= end - at:
                return ([(at, at + size)] if wire == _BYTES else self._packed(at, at + size)), at + size
        raise GraphError(f"its field {name.rstrip('*')} breaks off or has another type, before byte {at}")

    def _packed(self, at: int, end: int) -> list[int]:
        values: list[int] = []
        while at < end and len(values) <= MAX_KNOWN:
            value, at = self._varint(at, end)
            values.append(_signed(value))
        return values

    def _node(self, span: _Span) -> Node:
        node = self._message(span, _NODE, "a node")
        domain, operator = self._text(node, "domain"), self._text(node, "op_type")
        return Node(
            f"{domain}.{operator}" if domain else operator,
            tuple(self._decoded(value) for value in node["input"]),
            tuple(self._decoded(value) for value in node["output"]),
            _named([self._attribute(value) for value in node["attribute"]], f"attribute of {operator}"),
        )

    def _attribute(self, span: _Span) -> tuple[str, Attribute]:
        attribute = self._message(span, _ATTRIBUTE, "an attribute")
        name, kind = self._text(attribute, "name"), _ATTRIBUTE_KINDS.get(self._number(attribute, "type"), "")
        if [field for field in _ATTRIBUTE_KINDS.values() if attribute[field]] not in (
            [kind],
            [] if kind == "ints" else [kind],
        ):
            raise GraphError(f"attribute {name!r} has no value, or one of another type")
        if kind == "ints":
            return name, tuple(attribute["ints"])
        return name, self._text(attribute, "s") if kind == "s" else attribute[kind][0]

    def _weight(self, span: _Span) -> tuple[str, Weight]:
        tensor = self._message(span, _TENSOR, "a weight")
        name, kind, shape = self._text(tensor, "name"), self._number(tensor, "data_type"), tuple(tensor["dims"])
        if kind not in ITEM_BYTES or len(shape) > MAX_RANK or any(size < 0 for size in shape):
            raise GraphError(f"weight {name!r} has type {kind} and shape {shape}, which no graph of a bundle has")
        size = ITEM_BYTES[kind] * math.prod(shape)
        external = self._external(tensor, name) if self._number(tensor, "data_location") else None
        if external is None and not tensor["external_data"] and tensor["raw_data"]:
            start, end = tensor["raw_data"][0]
            stored = end - start
        elif external is not None and not tensor["raw_data"]:
            start, stored = 0, external[2]
        else:
            raise GraphError(f"weight {name!r} has its values in no place, or in two")
        if stored != size:
            raise GraphError(f"weight {name!r} has {stored} bytes, expected {size} for type {kind} and shape {shape}")
        known = None
        if kind == INT64 and external is None and math.prod(shape) <= MAX_KNOWN:
            known = np.frombuffer(self._data[start : start + size], "<i8").reshape(shape)
        return name, Weight(kind, shape, known, external)

    def _external(self, tensor: dict[str, list[Any]], name: str) -> tuple[str, int, int]:
        entries = [self._message(span, _ENTRY, "an entry") for span in tensor["external_data"]]
        facts = _named(
            [(self._text(entry, "key"), self._text(entry, "value")) for entry in entries], f"entry of {name!r}"
        )
        numbers = {key: facts.get(key, "0") for key in ("offset", "length")}
        if (
            self._number(tensor, "data_location") != 1
            or not {"location"} <= facts.keys() <= {"location", "offset", "length", "checksum"}
            or not all(text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers.values())
        ):
            raise GraphError(f"weight {name!r} states {facts} for where its values are")
        return facts["location"], int(numbers["offset"]), int(numbers["length"])

    def _described(self, span: _Span) -> tuple[str, Described]:
        value = self._message(span, _VALUE, "a value")
        name = self._text(value, "name")
        if not value["type"]:
            return name, Described(0, None)
        tensor = self._one(self._message(value["type"][0], _TYPE, "a type"), "tensor_type")
        tensor_type = self._message(tensor, _TENSOR_TYPE, "a type")
        kind, shape = self._number(tensor_type, "elem_type"), None
        if tensor_type["shape"]:
            spans = self._message(tensor_type["shape"][0], _SHAPE, "a shape")["dim"]
            sizes = [self._message(one, _DIMENSION, "a dimension")["dim_value"] for one in spans]
            shape = tuple(size[0] if size else None for size in sizes)
            if len(shape) > MAX_RANK or any(size is not None and size < 0 for size in shape):
                raise GraphError(f"value {name!r} has shape {shape}")
        if kind not in ITEM_BYTES:
            raise GraphError(f"value {name!r} has type {kind}, which no graph of a bundle has")
        return name, Described(kind, shape)

    def _one(self, message: dict[str, list[Any]], name: str) -> _Span:
        if not message[name]:
            raise GraphError(f"it has no {name}, so it is no ONNX file, or another kind of one")
        span: _Span = message[name][0]
        return span

    def _number(self, message: dict[str, list[Any]], name: str) -> int:
        return int(message[name][0]) if message[name] else 0

    def _text(self, message: dict[str, list[Any]], name: str) -> str:
        return self._decoded(message[name][0]) if message[name] else ""

    def _decoded(self, span: _Span) -> str:
        start, end = span
        if end - start > MAX_TEXT_BYTES:
            raise GraphError(f"a name has {end - start} bytes, expected at most {MAX_TEXT_BYTES}")
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise GraphError(f"a name is no UTF-8: {error.reason}") from error


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _named(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise GraphError(f"it has two of one name: {what}")
    return named
