"""Graphs in other precisions against ONNX Runtime's own quantizer, its fused kernels and products by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from dasheng_edge.quant.encoder.graphs import (
    convert,
    load_graph,
    matrix_nodes,
    save_graph,
    to_cuda,
)
from dasheng_edge.quant.encoder.precisions import MatrixPrecision
from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import (
    CUDA_GRAPHS,
    ENCODER,
    EXTERNAL_BYTES,
    PAGE_BYTES,
    PROJECTOR,
    weights_file,
)
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.errors import QuantizeError

INPUTS, OUTPUTS = 96, 40
PRECISIONS: tuple[MatrixPrecision, ...] = get_args(MatrixPrecision)


@pytest.fixture
def matrix() -> NDArray[np.float32]:
    """Columns of very different sizes, one of them zero."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(INPUTS, OUTPUTS)) * np.logspace(-3, 1, OUTPUTS)
    matrix[:, 7] = 0
    return matrix.astype(np.float32)


def write_graph(path: Path, matrix: NDArray[np.float32]) -> Path:
    """product = x @ matrix, y = product + bias, and a product of two activations."""
    weights = {"head.net.0.weight.transposed": matrix, "bias": np.ones(matrix.shape[1], np.float32)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "head.net.0.weight.transposed"], ["product"]),
        onnx.helper.make_node("Add", ["product", "bias"], ["y"]),
        onnx.helper.make_node("MatMul", ["x", "x2"], ["square"]),  # of two activations: no matrix
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", matrix.shape[0]]),
         value("x2", onnx.TensorProto.FLOAT, [matrix.shape[0], "n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n", matrix.shape[1]]),
         value("square", onnx.TensorProto.FLOAT, ["n", "n"]),
         value("product", onnx.TensorProto.FLOAT, ["n", matrix.shape[1]])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def converted(source: Path, target: Path, precisions: Mapping[str, MatrixPrecision]) -> Path:
    model = load_graph(source)
    convert(model, precisions)
    save_graph(model, target)
    return target


def weights_of(path: Path) -> dict[str, NDArray[Any]]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def product(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """y of a graph."""
    session = load_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x, "x2": np.ascontiguousarray(x.T)})[0])


def by_library(source: Path, target: Path) -> Path:
    """What ONNX Runtime's dynamic quantization makes of a graph."""
    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return target


def relative(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_int8_values_are_those_of_onnx_runtimes_quantizer(matrix: NDArray[np.float32], tmp_path: Path) -> None:
    source = write_graph(tmp_path / "g.onnx", matrix)
    ours = weights_of(converted(source, tmp_path / "ours.onnx", {"head.net.0": "int8"}))
    theirs = weights_of(by_library(source, tmp_path / "theirs.onnx"))
    (want,) = [value for value in theirs.values() if value.dtype == np.int8 and value.ndim == 2]
    (scales,) = [value for name, value in theirs.items() if name.endswith("_scale") and value.shape == (OUTPUTS,)]
    kept = np.arange(OUTPUTS) != 7  # of the column of zeros only the values are given
    np.testing.assert_allclose(ours["head.net.0.scales"][kept], scales[kept], rtol=1e-6)
    np.testing.assert_array_equal(ours["head.net.0.int8"], want)


def test_int8_is_as_near_as_that_of_onnx_runtimes_quantizer(matrix: NDArray[np.float32], tmp_path: Path) -> None:
    source = write_graph(tmp_path / "g.onnx", matrix)
    x = np.random.default_rng(1).normal(size=(50, INPUTS)).astype(np.float32)
    want = product(source, x)
    ours = product(converted(source, tmp_path / "ours.onnx", {"head.net.0": "int8"}), x)
    theirs = product(by_library(source, tmp_path / "theirs.onnx"), x)
    assert relative(ours, want) <= 1.05 * relative(theirs, want)
    assert relative(ours, want) < 0.02
    assert relative(ours, theirs) < 0.02


def test_int8_by_hand(matrix: NDArray[np.float32], tmp_path: Path) -> None:
    """DynamicQuantizeLinear as ONNX defines it: activations to uint8 over the range of all, zero included."""
    x = np.random.default_rng(1).normal(size=(5, INPUTS)).astype(np.float32)
    path = converted(write_graph(tmp_path / "g.onnx", matrix), tmp_path / "q.onnx", {"head.net.0": "int8"})
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    seen = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    stored = weights_of(path)
    want = seen @ (stored["head.net.0.int8"] * stored["head.net.0.scales"].astype(np.float64)) + 1
    # A value halfway between two steps may be rounded to either.
    assert relative(product(path, x), want) < 2e-3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 100])
def test_blocks_by_hand(tmp_path: Path, bits: int, inputs: int) -> None:
    """Weights come back from the stored bytes; accuracy level 4 rounds activations to int8 in blocks of 32, too."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(inputs, OUTPUTS)).astype(np.float32)
    precision: MatrixPrecision = "int4-block" if bits == 4 else "int8-block"
    path = converted(write_graph(tmp_path / "g.onnx", matrix), tmp_path / "q.onnx", {"head.net.0": precision})
    stored = weights_of(path)
    blocks = -(-inputs // 32)
    values, zeros = (stored[f"head.net.0.{name}"] for name in (f"int{bits}", "zeros"))
    if bits == 4:
        values = np.stack([values % 16, values // 16], axis=-1)
        zeros = np.stack([zeros % 16, zeros // 16], axis=-1).reshape(OUTPUTS, -1)[:, :blocks]
    values = values.reshape(OUTPUTS, blocks, 32).astype(np.float32) - zeros.reshape(OUTPUTS, blocks, 1)
    values *= stored["head.net.0.scales"].reshape(OUTPUTS, blocks, 1)
    whole = values.reshape(OUTPUTS, -1)[:, :inputs].T
    assert relative(whole, matrix) < (0.1 if bits == 4 else 0.006)
    x = generator.normal(size=(20, inputs)).astype(np.float32)
    assert relative(product(path, x), x @ whole + 1) < 0.01
    one_hot = np.eye(inputs, dtype=np.float32)  # of which int8 loses nothing
    np.testing.assert_allclose(product(path, one_hot), whole + 1, atol=2e-4)


def test_half_precision_by_hand(matrix: NDArray[np.float32], tmp_path: Path) -> None:
    path = converted(write_graph(tmp_path / "g.onnx", matrix), tmp_path / "q.onnx", {"head.net.0": "fp16"})
    x = np.random.default_rng(1).normal(size=(5, INPUTS)).astype(np.float32)
    np.testing.assert_allclose(product(path, x), x @ matrix.astype(np.float16).astype(np.float32) + 1, rtol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_names_of_inputs_and_outputs_stay(matrix: NDArray[np.float32], tmp_path: Path, precision: str) -> None:
    """Also where what a matrix gives is an output of the graph itself."""
    source = write_graph(tmp_path / "g.onnx", matrix)
    path = converted(source, tmp_path / "q.onnx", {"head.net.0": precision})  # type: ignore[dict-item]
    onnx.checker.check_model(path, full_check=precision in ("fp32", "fp16", "int8"))
    before, after = onnx.load(source).graph, onnx.load(path).graph
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)
    assert sum(node.op_type == "MatMul" and node.input[1] == "x2" for node in after.node) == 1
    session = load_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(3, INPUTS)).astype(np.float32)
    got = session.run(["product", "y"], {"x": x, "x2": np.ascontiguousarray(x.T)})
    np.testing.assert_array_equal(got[0] + np.float32(1), got[1])


def test_nothing_named_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in (ENCODER, PROJECTOR):
        path = converted(tiny_bundle / name, tmp_path / name, {})
        before, after = onnx.load(tiny_bundle / name), onnx.load(path)
        assert [str(node) for node in before.graph.node] == [str(node) for node in after.graph.node]
        wanted, got = weights_of(tiny_bundle / name), weights_of(path)
        assert wanted.keys() == got.keys()
        assert all(wanted[key].tobytes() == got[key].tobytes() for key in wanted)
        assert before.opset_import == after.opset_import


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_all_but_the_matrices_is_bit_identical(tiny_bundle: Path, tmp_path: Path, precision: MatrixPrecision) -> None:
    for name in (ENCODER, PROJECTOR):
        matrices = matrix_nodes(load_graph(tiny_bundle / name))
        wanted = weights_of(tiny_bundle / name)
        got = weights_of(converted(tiny_bundle / name, tmp_path / name, dict.fromkeys(matrices, precision)))
        kept = wanted.keys() - {f"{matrix}.weight.transposed" for matrix in matrices}
        assert len(kept) == len(wanted) - len(matrices)
        assert all(wanted[key].tobytes() == got[key].tobytes() for key in kept)
        assert all(key in kept or key.startswith(tuple(matrices)) for key in got)
    projector = matrix_nodes(load_graph(tiny_bundle / PROJECTOR))
    assert projector.keys() == {"audio_projector.net.0", "audio_projector.net.2"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_written_may_be_in_a_bundle(
    tiny_bundle: Path, tmp_path: Path, precision: MatrixPrecision, beside: bool
) -> None:
    """The runtime refuses operators, attributes and places of weights that are not in its own table."""
    for name, open_graph in ((ENCODER, Encoder), (PROJECTOR, Projector)):
        model = load_graph(tiny_bundle / name)
        convert(model, dict.fromkeys(matrix_nodes(model), precision))
        save_graph(model, tmp_path / name, beside=beside)
        assert weights_file(tmp_path / name).exists() == beside
        open_graph(tmp_path / name, FrontEndSpec())
        if precision == "fp16":
            to_cuda(model)
            save_graph(model, tmp_path / CUDA_GRAPHS[name])
            open_graph(tmp_path / CUDA_GRAPHS[name], FrontEndSpec())


def test_one_matrix_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    name = "audio_encoder.blocks.1.mlp.fc1"
    got = weights_of(converted(tiny_bundle / ENCODER, tmp_path / ENCODER, {name: "int8"}))
    wanted = weights_of(tiny_bundle / ENCODER)
    assert got.keys() - wanted.keys() == {f"{name}.int8", f"{name}.scales"}
    assert wanted.keys() - got.keys() == {f"{name}.weight.transposed"}


@pytest.mark.parametrize(("name", "matrices"), [(ENCODER, 8), (PROJECTOR, 2)])
def test_onnx_runtime_computes_each_int8_matrix_in_one_kernel(
    tiny_bundle: Path, tmp_path: Path, name: str, matrices: int
) -> None:
    nodes = matrix_nodes(load_graph(tiny_bundle / name))
    path = converted(tiny_bundle / name, tmp_path / name, dict.fromkeys(nodes, "int8"))
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine alone
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"] == matrices
    assert kinds["MatMulInteger"] == 0


@pytest.mark.parametrize("wrong", [65_520.0, -70_000.0, np.inf, np.nan])
def test_what_no_half_can_hold_is_refused(tmp_path: Path, matrix: NDArray[np.float32], wrong: float) -> None:
    matrix[3, 5] = wrong
    source = write_graph(tmp_path / "g.onnx", matrix)
    with pytest.raises(QuantizeError, match=r"head\.net\.0 holds .*, float16 reaches 65504; choose int8 or fp32"):
        converted(source, tmp_path / "q.onnx", {"head.net.0": "fp16"})
    assert not (tmp_path / "q.onnx").exists()


def test_the_largest_half_is_taken(tmp_path: Path, matrix: NDArray[np.float32]) -> None:
    matrix[3, 5] = 65_519.0  # is rounded to 65504
    path = converted(write_graph(tmp_path / "g.onnx", matrix), tmp_path / "q.onnx", {"head.net.0": "fp16"})
    assert weights_of(path)["head.net.0.fp16"][3, 5] == 65_504


def test_weights_beside_the_graph_are_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    model = load_graph(tiny_bundle / ENCODER)
    convert(model, dict.fromkeys(matrix_nodes(model), "fp16"))
    size = save_graph(model, tmp_path / ENCODER, beside=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ENCODER, f"{ENCODER}.data"]
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    inside = tmp_path / "inside"
    inside.mkdir()
    assert size > save_graph(load_graph(tmp_path / ENCODER), inside / ENCODER) < EXTERNAL_BYTES
    assert [path.name for path in inside.iterdir()] == [ENCODER]
    again, before = weights_of(inside / ENCODER), weights_of(tmp_path / ENCODER)
    assert all(again[name].tobytes() == before[name].tobytes() for name in before)


def test_large_weights_beside_the_graph_begin_at_pages(tmp_path: Path) -> None:
    """So that they can be mapped."""
    matrix = np.random.default_rng(0).normal(size=(1000, 2000)).astype(np.float32)
    model = load_graph(write_graph(tmp_path / "g.onnx", matrix))
    convert(model, {"head.net.0": "fp16"})
    save_graph(model, tmp_path / "q.onnx", beside=True)
    stored = onnx.load(tmp_path / "q.onnx", load_external_data=False).graph.initializer
    (large,) = [one for one in stored if one.name == "head.net.0.fp16"]
    facts = {entry.key: entry.value for entry in large.external_data}
    assert facts["location"] == "q.onnx.data"
    assert int(facts["offset"]) % PAGE_BYTES == 0
    data = (tmp_path / "q.onnx.data").read_bytes()[int(facts["offset"]) :][: int(facts["length"])]
    assert data == matrix.astype(np.float16).tobytes()
