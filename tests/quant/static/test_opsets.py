"""Operators that are newer than an opset, written out: the same numbers, of every shape that graphs have."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from dasheng_edge.quant.static.fixed import fix_shapes
from dasheng_edge.quant.static.forms import Opset
from dasheng_edge.quant.static.opsets import IR_VERSIONS, NEWER, lower
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.errors import QuantizeError

OPSETS: tuple[Opset, ...] = get_args(Opset)


def lowered(text: str, shapes: dict[str, tuple[int, ...]], opset: Opset) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A graph, and the same at fixed shapes in an older opset, which ONNX's checker takes for one of it."""
    source = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    model = ir.from_proto(source)
    fix_shapes(model, shapes, {})
    lower(model, opset)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert [(one.domain, one.version) for one in result.opset_import] == [("", opset)]
    assert result.ir_version == IR_VERSIONS[opset]
    assert all(node.name for node in result.graph.node)
    gone = {kind for kind, (since, _) in NEWER.items() if since > opset} - {"Split"}  # which was another one
    assert not gone & {node.op_type for node in result.graph.node}
    assert [one.name for one in result.graph.output] == [one.name for one in source.graph.output]
    return source, result


def same(source: onnx.ModelProto, result: onnx.ModelProto, feed: dict[str, np.ndarray]) -> bool:
    got, wanted = (list(map(np.asarray, ReferenceEvaluator(model).run(None, feed))) for model in (result, source))
    return all(relative_rms(one, want) < 1e-6 for one, want in zip(got, wanted, strict=True))


@settings(max_examples=10, deadline=None)
@given(
    heads=st.integers(1, 3), size=st.integers(1, 5), rows=st.integers(1, 6), keys=st.integers(1, 6),
    opset=st.sampled_from(OPSETS),
)  # fmt: skip
def test_attention_with_a_mask(heads: int, size: int, rows: int, keys: int, opset: Opset) -> None:
    text = f"""attend (float[1, n, {heads * size}] q, float[1, n, {heads * size}] k, float[1, n, {heads * size}] v,
        bool[1, 1, 1, n] keys) => (float[1, n, m] y) {{
        shape = Constant <value_ints = [1, 1, {rows}, {rows}]> ()
        mask = Expand (keys, shape)
        y = Attention <q_num_heads = {heads}, kv_num_heads = {heads}> (q, k, v, mask)
    }}"""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("qkv", (1, rows, heads * size)) | {"keys": (1, 1, 1, rows)}
    generator = np.random.default_rng(rows * 100 + keys)
    feed: dict[str, np.ndarray] = {
        name: (5 * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
    }
    feed["keys"] = (np.arange(rows) < keys).reshape(1, 1, 1, rows)
    assert same(*lowered(text, shapes, opset), feed)


@pytest.mark.parametrize("opset", OPSETS)
def test_attention_by_heads_and_without_a_mask(opset: Opset) -> None:
    text = """attend (float[1, 2, n, 4] q, float[1, 2, n, 4] k, float[1, 2, n, 4] v) => (float[1, 2, n, 4] y) {
        y = Attention (q, k, v)
    }"""
    shape = (1, 2, 5, 4)
    feed = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for name in "qkv"}
    assert same(*lowered(text, dict.fromkeys("qkv", shape), opset), feed)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("(float[n] x) => (float[n] y) { y = Gelu (x) }", (9,)),
        ("(float[n] x) => (float[m] a, float[k] b) { a, b = Split <num_outputs = 2> (x) }", (7,)),
        ("(float[n, 6] x) => (float[n, 3] a, float[n, 3] b) { a, b = Split <axis = 1, num_outputs = 2> (x) }", (4, 6)),
    ],
)
def test_others(text: str, shape: tuple[int, ...], opset: Opset) -> None:
    feed = {"x": np.linspace(-4, 4, int(np.prod(shape)), dtype=np.float32).reshape(shape)}
    assert same(*lowered(f"f {text}", {"x": shape}, opset), feed)


def test_the_mask_is_made_once() -> None:
    text = """attend (float[1, n, 4] q, bool[1, 1, n, n] mask) => (float[1, n, 4] y) {
        x = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, q, mask)
        y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x, mask)
    }"""
    _, result = lowered(text, {"q": (1, 3, 4), "mask": (1, 1, 3, 3)}, 17)
    assert sum(node.op_type == "Where" for node in result.graph.node) == 1


def test_what_follows_from_shapes_is_computed() -> None:
    text = """f (float[1, n, 4] x, int64[1] padded) => (float[a, b, c] y) {
        shape = Shape <start = 1, end = 2> (x)
        four = Constant <value_ints = [4]> ()
        half = Div (shape, four)
        both = Concat <axis = 0> (half, padded, four)
        y = Reshape (x, both)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}'))
    fix_shapes(model, {"x": (1, 8, 4)}, {"padded": np.array([4])})
    assert [node.op_type for node in model.graph] == ["Reshape"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.outputs[0].shape == (2, 4, 4)


def test_a_shape_that_depends_on_numbers_is_refused() -> None:
    text = "f (float[n] x) => (int64[1, m] y) { y = NonZero (x) }"
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}'))
    with pytest.raises(QuantizeError, match="keep a free dimension, the first is 'y'"):
        fix_shapes(model, {"x": (4,)}, {})
