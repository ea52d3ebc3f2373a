"""Attention on rows: the same bits as with an axis of heads, and no transposes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession

from dasheng_edge.export.graphs.attention_layout import join_heads
from dasheng_edge.runtime.errors import ExportError

DIM, HEADS, ROWS = 32, 4, 9


def exported(*, masked: bool, spoilt: str = "") -> ir.Model:
    """What torch's exporter makes of an attention block: x float32 [1, rows, 96] -> float32 [1, rows, 32]."""
    parts = [f"s{i} = Slice(t, i{i}, i{i + 1}, i0) h{i} = Squeeze(s{i}, i0)" for i in range(3)]
    mask = ", m" if masked else ""
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[1, r, 96] x, bool[1, 1, r, r] m, float[1, 1, 1] n) => (float[1, r, 32] y)
        <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64[1] i3 = {{3}},
         int64[5] five = {{1, -1, 3, {HEADS}, {DIM // HEADS}}}, int64[3] three = {{1, -1, {DIM}}}> {{
            r = Reshape(x, five)
            t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
            {" ".join(parts)}
            {"q = Identity(h0)" if spoilt == "before" else ""}
            a = Attention({"q" if spoilt == "before" else "h0"}, h1, h2{mask})
            {"z = Identity(a)" if spoilt == "behind" else ""}
            b = Transpose<perm = [0, 2, 1, 3]>({"z" if spoilt == "behind" else "a"})
            w = Reshape(b, three)
            y = {"Mul(w, n)" if masked else "Identity(w)"}
        }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    found: np.ndarray = session.run(None, {name: value for name, value in feed.items() if name in names})[0]
    return found


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.integers(1, 3 * ROWS), st.integers(0, 1000))
def test_the_numbers_stay_the_same_bits(masked: bool, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    open_keys = int(generator.integers(0, rows + 1))
    feed = {
        "x": generator.standard_normal((1, rows, 3 * DIM), np.float32),
        "m": np.broadcast_to(np.arange(rows) < max(open_keys, 1), (1, 1, rows, rows)).copy(),
        "n": np.full((1, 1, 1), open_keys > 0, np.float32),
    }
    joined = exported(masked=masked)
    join_heads(joined, HEADS)
    kinds = [node.op_type for node in joined.graph]
    assert "Transpose" not in kinds
    assert "Slice" not in kinds
    np.testing.assert_array_equal(outputs(joined, feed), outputs(exported(masked=masked), feed))


@pytest.mark.parametrize("spoilt", ["before", "behind"])
def test_other_operators_around_it_are_refused(spoilt: str) -> None:
    with pytest.raises(ExportError, match=r"the exporter put Identity beside Attention, expected (Squeeze|Transpose)"):
        join_heads(exported(masked=False, spoilt=spoilt), HEADS)


def test_two_users_are_refused() -> None:
    model = exported(masked=False)
    attention = next(node for node in model.graph if node.op_type == "Attention")
    model.graph.append(ir.node("Identity", [attention.outputs[0]]))
    with pytest.raises(ExportError, match="expected one operator"):
        join_heads(model, HEADS)


def test_a_graph_on_disk_passes_the_checker(tmp_path: Path) -> None:
    model = exported(masked=True)
    join_heads(model, HEADS)
    ir.save(model, tmp_path / "x.onnx")
    onnx.checker.check_model(tmp_path / "x.onnx", full_check=True)
