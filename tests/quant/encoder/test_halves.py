"""What float16 costs on a GPU is computed on the CPU, and becomes the tolerance of the graphs for GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from dasheng_edge.quant.bundle_quant import quantize_bundle, quantize_options
from dasheng_edge.quant.encoder.graphs import save_graph, to_cuda
from dasheng_edge.quant.encoder.halves import halves_errors
from dasheng_edge.quant.encoder.precisions import PRECISIONS
from dasheng_edge.quant.recipes import Recipe
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.deviation import relative_rms_of
from dasheng_edge.runtime.verify import HALVES_RELATIVE
from tests.fixtures.places import SMALLEST_BUNDLE


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("halves") / "fp16"
    return quantize_bundle(quantize_options(SMALLEST_BUNDLE, out, Recipe("fp16", None, None))).bundle


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def test_the_emulation_rounds_what_is_multiplied_and_what_comes_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((8, 8)))
    stored = ir.Value(name="w", const_value=ir.tensor(weight.astype(np.float16), name="w"))
    cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
    product = ir.node("MatMul", [given, cast.outputs[0]])
    product.outputs[0].name = "y"
    product.outputs[0].type, product.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((8, 8))
    graph = ir.Graph(
        [given], [product.outputs[0]], nodes=[cast, product], initializers=[stored], opset_imports={"": 23}
    )
    model = ir.Model(graph, ir_version=10)
    to_cuda(model, emulated=True)
    save_graph(model, tmp_path / "y.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "y.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x})
    assert np.abs(got - half(half(x) @ half(weight))).max() <= np.abs(got).max() * 2.0**-11  # sums in another order
    assert (got == half(got)).all()


def test_rounding_activations_costs_more_than_rounding_weights_alone(fp16: Bundle) -> None:
    limits, golden = fp16.manifest.tolerances, read_golden(fp16)
    errors = halves_errors(fp16.manifest.front_end, fp16.path, golden, 1)
    assert errors.keys() == {"patches", "embeddings"}
    assert limits.cuda_patches_relative == float(f"{2 * errors['patches']:.3g}")
    assert limits.cuda_embeddings_relative == float(f"{2 * errors['embeddings']:.3g}")
    assert limits.cuda_patches_relative is not None
    assert limits.patches_relative < limits.cuda_patches_relative < HALVES_RELATIVE


def test_other_precisions_have_none(tmp_path: Path, fp16: Bundle) -> None:
    made = quantize_bundle(quantize_options(SMALLEST_BUNDLE, tmp_path / "int8", Recipe("int8", None, None))).bundle
    assert made.manifest.tolerances.cuda_patches_relative is None
    assert "cuda_" not in made.path("manifest.json").read_text()


def test_a_copied_encoder_keeps_it(tmp_path: Path, fp16: Bundle) -> None:
    made = quantize_bundle(quantize_options(fp16.folder, tmp_path / "q8", Recipe(None, "Q8_0", None))).bundle
    assert made.manifest.tolerances.cuda_patches_relative == fp16.manifest.tolerances.cuda_patches_relative


def test_what_old_bundles_are_allowed_is_what_quantize_stores_at_most() -> None:
    limit = PRECISIONS["fp16"].min_snr_db
    assert limit is not None
    assert pytest.approx(relative_rms_of(limit)) == HALVES_RELATIVE
