"""Graphs and decoders of zeros that rates are measured with: they take the time of real ones, and no disk."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.gguf.check import BLOCKS, F32, Sizes
from dasheng_edge.runtime.gguf.header import ALIGNMENT, ARRAY, FLOAT32, INT32, STRING, UINT32, VERSION

Compute: TypeAlias = Literal["fp32", "int8"]
_OPSET, _IR_VERSION = 23, 10  # as the exporter's graphs
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # enum TensorProto.DataType
_BATCH, _HEAD = 1, 64  # width of a head


def encoder_graph(compute: Compute, width: int, depth: int) -> bytes:
    """An ONNX graph of so many blocks of an encoder, as the exporter and the quantizer write them.

    x float32 [1, patches, width] -> y of the same shape.
    """
    graph = _Graph(compute)
    at = "x"
    for _ in range(depth):
        inner = graph.normalized(at, width)
        joined = graph.product(inner, width, 3 * width)
        parts = graph.node("Split", [joined], outputs=3, axis=-1, num_outputs=3)
        heard = graph.node("Attention", parts, q_num_heads=width // _HEAD, kv_num_heads=width // _HEAD)
        at = graph.sum(at, graph.product(heard[0], width, width))
        inner = graph.product(graph.normalized(at, width), width, 4 * width)
        (inner,) = graph.node("Gelu", [inner])
        at = graph.sum(at, graph.product(inner, 4 * width, width))
    return graph.model(at, width)


class _Graph:
    """Nodes and initializers of a graph, in protobuf."""

    def __init__(self, compute: Compute) -> None:
        self._compute, self._parts, self._count = compute, bytearray(), 0

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: int) -> list[str]:
        """The names of what a new node gives."""
        self._count += 1
        names = [f"n{self._count}.{index}" for index in range(outputs)]
        texts = [*((1, name) for name in inputs), *((2, name) for name in names), (4, kind)]
        body = b"".join(_field(number, text) for number, text in texts)
        for name, value in attributes.items():
            body += _field(5, _field(1, name) + _field(3, value) + _field(20, 2))  # of type INT
        self._parts += _field(1, body)
        return names

    def values(self, values: NDArray[Any]) -> str:
        """The name of a constant."""
        self._count += 1
        kinds = {"float32": _FLOAT, "uint8": _UINT8, "int8": _INT8}
        dims = b"".join(_field(1, size) for size in values.shape)
        name = f"c{self._count}"
        body = dims + _field(2, kinds[values.dtype.name]) + _field(8, name) + _field(9, values.tobytes())
        self._parts += _field(5, body)
        return name

    def sum(self, *inputs: str) -> str:
        return self.node("Add", inputs)[0]

    def normalized(self, at: str, width: int) -> str:
        ones, zeros = self.values(np.ones(width, np.float32)), self.values(np.zeros(width, np.float32))
        return self.node("LayerNormalization", [at, ones, zeros])[0]

    def product(self, at: str, inner: int, columns: int) -> str:
        """Of rows and a matrix, with a bias."""
        bias = self.values(np.zeros(columns, np.float32))
        if self._compute == "fp32":
            weight = self.values(np.zeros((inner, columns), np.float32))
            return self.sum(self.node("MatMul", [at, weight])[0], bias)
        weight, zero = self.values(np.zeros((inner, columns), np.int8)), self.values(np.zeros((), np.int8))
        steps = self.values(np.ones(columns, np.float32))
        whole, scale, point = self.node("DynamicQuantizeLinear", [at], outputs=3)
        (product,) = self.node("MatMulInteger", [whole, weight, point, zero])
        (product,) = self.node("Cast", [product], to=_FLOAT)
        (scales,) = self.node("Mul", [scale, steps])
        return self.sum(self.node("Mul", [product, scales])[0], bias)

    def model(self, last: str, width: int) -> bytes:
        """The whole, with input `x` and output `last`."""
        shape = b"".join(_field(1, _field(1, size) if size else _field(2, "n")) for size in (_BATCH, 0, width))
        kind = _field(1, _field(1, _FLOAT) + _field(2, shape))
        ends = _field(11, _field(1, "x") + _field(2, kind)) + _field(12, _field(1, last) + _field(2, kind))
        graph = bytes(self._parts) + _field(2, "rates") + ends
        return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(1, "") + _field(2, _OPSET))


def _field(number: int, value: bytes | str | int) -> bytes:
    """A field of protobuf: a whole number, or bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder of zeros, all of whose matrices are of one type."""

    kind: int  # enum ggml_type
    width: int
    layers: int
    tokens: int = 512

    @property
    def sizes(self) -> Sizes:
        """Shaped like Qwen3 0.6B."""
        return Sizes("qwen3", self.width, self.layers, 3 * self.width, self.width // 64, self.width // 128, 128,
                     self.tokens)  # fmt: skip

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors; the table of embeddings is the output's, too."""
        return {name: shape for name, shape in self.sizes.shapes().items() if name != "output.weight"}

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Of a tensor."""
        values, size = BLOCKS[self.kind if len(shape) > 1 else F32]
        return math.prod(shape) // values * size

    @property
    def matrices(self) -> list[tuple[int, ...]]:
        """Of the layers."""
        return [shape for name, shape in self.shapes.items() if len(shape) > 1 and name.startswith("blk")]


def write_decoder(path: Path, spec: DecoderSpec) -> None:
    """A GGUF file that llama.cpp loads; its tensors are a hole in the file, so that it takes no place on a disk."""
    sizes, arch = spec.sizes, spec.sizes.arch
    keys = [
        _key("general.architecture", arch),
        _key("tokenizer.ggml.model", "gpt2"),
        _key("tokenizer.ggml.pre", "qwen2"),
    ]
    numbers = {
        "context_length": 4096, "embedding_length": sizes.width, "block_count": sizes.layers,
        "feed_forward_length": sizes.inner, "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads, "attention.key_length": sizes.head_width,
        "attention.value_length": sizes.head_width,
    }  # fmt: skip
    keys += [_key(f"{arch}.{name}", number) for name, number in numbers.items()]
    keys += [_key(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6), _key(f"{arch}.rope.freq_base", 1e6)]
    keys.append(_text("tokenizer.ggml.tokens") + _array(STRING, [_text(f"t{i}") for i in range(spec.tokens)]))
    kinds = [struct.pack("<i", 3 if i == 0 else 1) for i in range(spec.tokens)]
    keys.append(_text("tokenizer.ggml.token_type") + _array(INT32, kinds))
    keys.append(_text("tokenizer.ggml.merges") + _array(STRING, [_text("t 1")]))
    infos, place = list[bytes](), 0
    for name, shape in spec.shapes.items():
        kind = spec.kind if len(shape) > 1 else F32
        infos.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place))
        place += -(-spec.bytes_of(shape) // ALIGNMENT) * ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", VERSION, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // ALIGNMENT) * ALIGNMENT + place)


def _key(name: str, value: str | int | float) -> bytes:  # noqa: PYI041  # which of the two decides
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", STRING) + _text(value)
    number = struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)
    return _text(name) + number


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)
