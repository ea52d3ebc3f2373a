"""Encoders of every precision: what is changed, what stays, what ONNX Runtime makes of it, and what it costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from dasheng_edge.quant.calibration import golden_features
from dasheng_edge.quant.encoder.graphs import convert, load_graph, matrix_nodes, save_graph, to_cuda
from dasheng_edge.quant.encoder.precisions import PRECISIONS, EncoderPrecision, MatrixPrecision
from dasheng_edge.quant.encoder.quantize import EncoderOptions, clip_outputs, quantize_encoder
from dasheng_edge.runtime.audio import encoder as encoder_module
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.bundle.graph_check import Checked
from dasheng_edge.runtime.deviation import Deviation, relative_rms
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import QuantizeError
from tests.fixtures.bundle_kinds import write_encoder_bundle

MATRICES = 2 * 4 + 2  # of the tiny model: two blocks and the projector


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def clips(source: Bundle) -> tuple[Features, ...]:
    return golden_features(read_golden(source), AudioParts.open(source, EngineSettings())).features


def patch_products(path: Path) -> list[str]:
    """Nodes that make patches of frames, which stay as they are."""
    return [node.name for node in onnx.load(path).graph.node if node.input[1:2] and node.input[1].endswith(".matrix")]


def outputs(source: Bundle, folder: Path, clips: tuple[Features, ...]) -> list[np.ndarray]:
    return list(clip_outputs(source.manifest.front_end, folder.joinpath, clips, 1, (ENCODER, PROJECTOR)))


@pytest.mark.parametrize(
    ("precision", "at_most"), [("fp16", 0.65), ("int8", 0.45), ("int8-block", 0.5), ("int4-block", 0.4)]
)
def test_each_precision_is_smaller_and_near(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path, precision: MatrixPrecision, at_most: float
) -> None:
    report = quantize_encoder(source, tmp_path.joinpath, EncoderOptions(precision), clips, 1)
    assert report.snr_db is not None
    assert report.snr_db >= (PRECISIONS[precision].min_snr_db or 0)
    assert report.bytes <= at_most * report.source_bytes
    assert Counter(report.matrices.values()) == {precision: MATRICES}
    got = Deviation.of(zip(outputs(source, tmp_path, clips), outputs(source, source.folder, clips), strict=True)).snr_db
    assert got == pytest.approx(report.snr_db, abs=0.01)


@pytest.mark.parametrize("precision", ["int8", "int4-block"])
def test_what_is_no_matrix_stays(source: Bundle, tmp_path: Path, precision: EncoderPrecision) -> None:
    model = load_graph(source.path(ENCODER))
    convert(model, dict.fromkeys(matrix_nodes(model), precision))  # type: ignore[arg-type]
    save_graph(model, tmp_path / ENCODER)
    before = {one.name: numpy_helper.to_array(one) for one in onnx.load(source.path(ENCODER)).graph.initializer}
    after = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / ENCODER).graph.initializer}
    kept = {name for name in before if not name.endswith(".weight.transposed")}
    assert any("patch_embed" in name for name in kept)
    assert all((after[name] == before[name]).all() for name in kept)
    assert not any(name.endswith(".weight.transposed") for name in after)
    onnx.checker.check_model(tmp_path / ENCODER)


@pytest.mark.parametrize(("precision", "chunks"), [("fp16", 3), ("int8", 1), ("int8-block", 3), ("int4-block", 3)])
def test_chunks_share_a_run_only_where_none_changes_another(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path, precision: MatrixPrecision, chunks: int
) -> None:
    spec = source.manifest.front_end
    quantize_encoder(source, tmp_path.joinpath, EncoderOptions(precision), clips, 1)
    encoder = Encoder(tmp_path / ENCODER, spec, chunks=3)
    assert encoder.max_chunks == chunks  # all activations of a run share a scale in int8
    loud = replace(clips[0], log_mel=clips[0].log_mel + 40)
    quiet, loud_feed = (next(chunk_feeds(spec, clip)) for clip in (clips[0], loud))
    alone, shared = encoder.together([quiet])[0], encoder.together([quiet, loud_feed])[0]
    assert relative_rms(shared, alone) <= 1e-6


def test_int8_is_that_of_onnx_runtimes_quantizer(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    quantize_encoder(source, ours.joinpath, EncoderOptions("int8"), clips, 1)
    for name in (ENCODER, PROJECTOR):
        quantize_dynamic(
            source.path(name), theirs / name, per_channel=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"], nodes_to_exclude=patch_products(source.path(name)),
        )  # fmt: skip
    weights = [
        sorted(
            numpy_helper.to_array(one).tobytes()
            for one in onnx.load(folder / ENCODER).graph.initializer
            if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1
        )
        for folder in (ours, theirs)
    ]
    assert len(weights[0]) == MATRICES - 2
    assert weights[0] == weights[1]
    wanted = outputs(source, source.folder, clips)
    own = Deviation.of(zip(outputs(source, ours, clips), wanted, strict=True)).snr_db
    widths = {"patches": (1, 1, source.manifest.encoder.embed_dim), "embeddings": (1, 1, wanted[0].shape[1])}
    with monkeypatch.context() as unchecked:  # these are no graphs of a bundle
        unchecked.setattr(encoder_module, "check_graph", lambda *_: Checked(widths, separable=False))
        by_library = outputs(source, theirs, clips)
    library = Deviation.of(zip(by_library, wanted, strict=True)).snr_db
    assert own is not None
    assert library is not None
    assert own >= library - 0.5  # dB
    near = Deviation.of(zip(outputs(source, ours, clips), by_library, strict=True)).snr_db
    assert near is None or near > library  # nearer to each other than to what they stand for


def test_onnx_runtime_fuses_the_int8_pattern(source: Bundle, clips: tuple[Features, ...], tmp_path: Path) -> None:
    quantize_encoder(source, tmp_path.joinpath, EncoderOptions("int8"), clips, 1)
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / ENCODER, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"] == MATRICES - 2
    assert kinds["MatMulInteger"] == 0


def test_half_weights_are_rounded_once_and_shared_with_the_cuda_graph(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path
) -> None:
    quantize_encoder(source, tmp_path.joinpath, EncoderOptions("fp16"), clips, 1)
    rounded = load_graph(source.path(ENCODER))
    for node in matrix_nodes(rounded).values():
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = ir.Tensor(
            weight.const_value.numpy().astype(np.float16).astype(np.float32), name=weight.name
        )
    (tmp_path / "rounded").mkdir()
    ir.save(rounded, tmp_path / "rounded" / ENCODER)
    onnxruntime = load_onnxruntime()
    feed = {
        "log_mel": np.ascontiguousarray(clips[0].log_mel[None, :, :400]), "valid_patches": np.array([100]),
    }  # fmt: skip
    results = []
    for path in (tmp_path / "rounded" / ENCODER, tmp_path / ENCODER, tmp_path / "encoder.cuda.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feed)[0])
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=2e-2)
    cuda = onnx.load(tmp_path / "encoder.cuda.onnx", load_external_data=False)
    places = {entry.value for one in cuda.graph.initializer for entry in one.external_data if entry.key == "location"}
    assert places == {"encoder.onnx.data"}
    halves = [one for one in cuda.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == MATRICES - 2


def test_the_cuda_graph_multiplies_in_halves(source: Bundle, tmp_path: Path) -> None:
    model = load_graph(source.path(PROJECTOR))
    convert(model, dict.fromkeys(matrix_nodes(model), "fp16"))
    to_cuda(model)
    save_graph(model, tmp_path / PROJECTOR)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / PROJECTOR)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    assert all(kinds[node.output[0]] == onnx.TensorProto.FLOAT16 for node in products)


def test_between_two_matrices_the_cuda_graph_casts_nothing(source: Bundle, tmp_path: Path) -> None:
    model = load_graph(source.path(ENCODER))
    convert(model, dict.fromkeys(matrix_nodes(model), "fp16"))
    to_cuda(model)
    save_graph(model, tmp_path / ENCODER)
    onnx.checker.check_model(tmp_path / ENCODER, full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / ENCODER)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    halved = {"Attention": 2, "Gelu": 2, "Split": 2}
    found = Counter(node.op_type for node in graph.node if kinds.get(node.output[0]) == onnx.TensorProto.FLOAT16)
    assert halved.items() <= found.items()
    assert found["MatMul"] == MATRICES - 2
    sums = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert {kinds[node.input[0]] for node in sums} == {onnx.TensorProto.FLOAT}
    biases = 2 * 2  # of qkv and fc1
    casts = [node.output[0] for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == 2 * 2 + 2 * 2 + biases + 2  # into a half, out of it, and the mask of chunks without a key


@pytest.mark.parametrize("spoilt", ["another user", "another operator"])
def test_what_others_take_part_in_stays_float32(spoilt: str) -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) <float16[4, 4] w, float[4] b> {{
            c = Cast<to = 1>(w)
            p = MatMul(x, c)
            s = Add(p, b)
            g = {"Gelu" if spoilt == "another user" else "Sqrt"}(s)
            d = Cast<to = 1>(w)
            y = MatMul(g, d)
            z = Identity({"g" if spoilt == "another user" else "x"})
        }}"""
    proto = onnx.parser.parse_model(text.replace("<float16[4, 4] w, float[4] b>", ""))
    for name, kind, shape in (("w", np.float16, (4, 4)), ("b", np.float32, (4,))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, kind), name))
    model = ir.from_proto(proto)
    to_cuda(model)
    graph = ir.to_proto(model).graph
    assert [node.op_type for node in graph.node] == [
        "Cast", "MatMul", "Cast", "Add", "Gelu" if spoilt == "another user" else "Sqrt", "Cast", "MatMul", "Cast",
        "Identity",
    ]  # fmt: skip


def test_weights_beyond_half_precision_are_refused(source: Bundle) -> None:
    model = load_graph(source.path(PROJECTOR))
    name, node = next(iter(matrix_nodes(model).items()))
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(1e7), name=weight.name)
    with pytest.raises(QuantizeError, match=rf"{name} holds .*float16 reaches 65504; choose int8"):
        convert(model, {name: "fp16"})


def test_mixed_keeps_what_was_asked_for(source: Bundle, clips: tuple[Features, ...], tmp_path: Path) -> None:
    trials: list[int] = []
    sizes = []
    for least in (25.0, 45.0):
        folder = tmp_path / str(least)
        folder.mkdir()
        options = EncoderOptions("mixed", least)
        report = quantize_encoder(source, folder.joinpath, options, clips, 1, trials.append)
        assert report.snr_db is not None
        assert report.snr_db >= least
        assert sorted(path.name for path in folder.iterdir()) == [ENCODER, PROJECTOR]  # no trial is left
        sizes.append(report.bytes)
    assert sizes[0] < sizes[1] < source.manifest.files[ENCODER].bytes + source.manifest.files[PROJECTOR].bytes
    assert len(trials) >= 2 * (3 * 4 + 1)


def test_a_precision_that_loses_too_much_is_refused(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], min_snr_db=90.0))
    with pytest.raises(
        QuantizeError, match=r"the int8 encoder keeps .* dB of signal to noise .*, expected at least 90"
    ):
        quantize_encoder(source, tmp_path.joinpath, EncoderOptions("int8"), clips, 1)


def test_an_encoder_without_a_projector(tiny_bundle: Path, clips: tuple[Features, ...], tmp_path: Path) -> None:
    alone = Bundle.open(write_encoder_bundle(tiny_bundle, tmp_path / "alone"))
    (tmp_path / "out").mkdir()
    report = quantize_encoder(alone, (tmp_path / "out").joinpath, EncoderOptions("int8"), clips, 1)
    assert len(report.matrices) == MATRICES - 2
    assert report.snr_db is not None
