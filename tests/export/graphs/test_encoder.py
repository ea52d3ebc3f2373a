"""The graphs with weights as files: what they take and give, where the weights are, and what must not be in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.graphs import encoder as encoder_onnx
from dasheng_edge.export.graphs.encoder import export_encoder, export_projector
from dasheng_edge.export.graphs.session import graph_bytes, graph_session
from dasheng_edge.export.reference.encoder import stream_chunks
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, weights_file
from dasheng_edge.runtime.errors import ExportError
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.watched_tensors import WatchedTensors

ENCODER_INPUTS: dict[str, list[tuple[str, list[object]]]] = {
    "midashenglm": [("log_mel", ["chunks", 64, "frames"]), ("valid_patches", ["chunks"])],
    "midashenglm-tokenizer": [
        ("log_mel", ["chunks", 64, "frames"]), ("acoustic_mel", ["chunks", 20, "frames"]),
        ("valid_patches", ["chunks"]), ("kept_patches", ["chunks"]),
    ],
    "dasheng": [("log_mel", ["chunks", 64, "frames"]), ("padded_patches", [1])],
}  # fmt: skip
VARIANTS = tuple(ENCODER_INPUTS)


def seam(values: object) -> list[tuple[str, list[int | str]]]:
    """Names and axes of a graph's inputs or outputs."""
    return [
        (value.name, [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim])
        for value in values  # type: ignore[attr-defined]  # protobuf's containers have no types
    ]


def assert_standard(model: onnx.ModelProto) -> None:
    assert [entry.version for entry in model.opset_import if not entry.domain] == [23]
    assert {entry.domain for entry in model.opset_import} <= {""}  # nothing but standard operators


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        (FRONT_END, [("waveform", [1, "samples"])], [("log_mel", [1, 64, "frames"])]),
        (PROJECTOR, [("patches", [1, "5*tokens", 64])], [("embeddings", [1, "tokens", 256])]),
    ],
)
def test_seams_are_named_and_dynamic(
    tiny_bundle: Path, name: str, inputs: list[tuple[str, object]], outputs: list[tuple[str, object]]
) -> None:
    model = onnx.load(tiny_bundle / name)

    assert seam(model.graph.input) == inputs
    assert seam(model.graph.output) == outputs
    assert_standard(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoder_of_each_variant_asks_for_what_it_needs(variant: str, encoders: dict[str, Path]) -> None:
    model = onnx.load(encoders[variant])

    assert seam(model.graph.input) == ENCODER_INPUTS[variant]
    assert seam(model.graph.output) == [("patches", ["chunks", "patches", 64])]
    assert_standard(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_block_is_one_attention_node(variant: str, encoders: dict[str, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(encoders[variant]).graph.node]

    assert kinds.count("Attention") == 2
    assert kinds.count("Split") == 2
    assert kinds.count("Transpose") == 1 + (variant == "midashenglm-tokenizer")  # a patch's frames before its bands
    assert "Conv" not in kinds
    assert "Softmax" not in kinds
    assert kinds.count("LayerNormalization") == 2 * 2 + 1 + (variant == "midashenglm-tokenizer")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_stands_in_the_file_as_it_is_multiplied(
    variant: str, encoders: dict[str, Path], all_merged: dict[str, WatchedTensors]
) -> None:
    merged, stored = all_merged[variant], initializers(encoders[variant])
    weights = {name: value for name, value in stored.items() if name.startswith("audio_encoder.")}

    def name_of(weight: str) -> str:
        return weight.removesuffix(".transposed").removesuffix(".matrix")

    assert {name_of(name) for name in weights} == set(merged.names("audio_encoder."))
    for name, value in weights.items():
        want = merged.tensor(name_of(name)).numpy()
        if name.endswith(".matrix"):
            want = want.transpose(3, 2, 1, 0).reshape(-1, 64)
        elif name.endswith(".transposed"):
            want = want.T if want.ndim == 2 else want.transpose(0, 2, 3, 1)
        assert np.array_equal(value, want), name
    matrices = {name for name, value in weights.items() if value.ndim == 2}
    assert len(matrices) == 2 * 4 + 1 + (variant == "midashenglm-tokenizer")
    assert all(name.endswith((".transposed", ".matrix")) for name in matrices)  # none is transposed on loading
    constants = [value for name, value in stored.items() if name not in weights]
    assert sum(value.size for value in constants) < 100  # axes and sizes


def initializers(path: Path) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", [FRONT_END, ENCODER, PROJECTOR])
def test_files_hold_nothing_of_the_machine(tiny_bundle: Path, name: str) -> None:
    assert_clean(tiny_bundle / name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoders_hold_nothing_of_the_machine(variant: str, encoders: dict[str, Path]) -> None:
    assert_clean(encoders[variant])


def assert_clean(path: Path) -> None:
    content = path.read_bytes()
    assert not onnx.load(path).metadata_props
    for trace in (".py", str(Path.cwd()), sys.prefix, str(path.parent), "stack_trace", "pkg.torch"):
        assert trace.encode() not in content, trace


@pytest.mark.slow
def test_the_same_weights_give_the_same_file(
    encoders: dict[str, Path], all_merged: dict[str, WatchedTensors], tmp_path: Path
) -> None:
    export_encoder(tmp_path / ENCODER, all_merged["midashenglm"])

    assert (tmp_path / ENCODER).read_bytes() == encoders["midashenglm"].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_many_weights_go_beside_the_graph_one_by_one(
    variant: str,
    encoders: dict[str, Path],
    all_merged: dict[str, WatchedTensors],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_onnx, "EXTERNAL_BYTES", 1000)
    monkeypatch.setattr(encoder_onnx, "stream_chunks", lambda _, chunks: [torch.zeros(1)] * len(chunks))
    merged, path = all_merged[variant], tmp_path / ENCODER
    merged.peak[0] = 0
    report = export_encoder(path, merged)
    largest = max(4 * torch.Size(merged.shape(name)).numel() for name in merged.names("audio_encoder."))

    assert merged.peak[0] == largest
    assert sorted(path.name for path in tmp_path.iterdir()) == [ENCODER, f"{ENCODER}.data"]
    assert report.bytes == graph_bytes(path) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert path.stat().st_size < 100_000 < weights_file(path).stat().st_size
    inside, beside = initializers(encoders[variant]), initializers(path)
    assert inside.keys() == beside.keys()
    assert all(np.array_equal(inside[name], beside[name]) for name in inside)
    assert_clean(path)


def test_a_mapped_graph_computes_what_the_runtime_computes(
    all_merged: dict[str, WatchedTensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(encoder_onnx, "EXTERNAL_BYTES", 1000)
    path = tmp_path / ENCODER
    report = export_encoder(path, all_merged["midashenglm"])
    feed = {"log_mel": np.full((1, 64, 400), -40, np.float32), "valid_patches": np.array([99])}
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    session = graph_session(path)
    got = session.run(None, feed)[0]

    assert report.error <= 2e-6
    assert np.abs(got - want).max() <= 1e-5
    with weights_file(path).open("r+b") as file:  # what is checked is what stands in the file
        file.seek(weights_file(path).stat().st_size // 2)
        file.write(b"\x00\x00\x80\x7f" * 64)  # infinity
    session = graph_session(path)
    assert not np.isfinite(session.run(None, feed)[0]).all()


def test_an_exporter_that_fuses_nothing_is_refused(
    all_merged: dict[str, WatchedTensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_onnx, "OPSET", 20)  # the operator came with 23

    with pytest.raises(ExportError, match="0 Attention nodes for 2 blocks"):
        export_encoder(tmp_path / ENCODER, all_merged["midashenglm"])
    assert not list(tmp_path.iterdir())


class Changed(MergedTensors):
    """The weights of a checkpoint, but for one of the projector that is not finite."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        rows = super().rows(name, start, stop)
        if name == "audio_projector.net.2.bias":
            rows[0] = float("nan")
        return rows


def test_a_graph_that_yields_nan_has_no_error_within_any_tolerance(tiny_checkpoint: Path, tmp_path: Path) -> None:
    merged = Changed(open_checkpoint(tiny_checkpoint))

    assert np.isnan(export_projector(tmp_path / PROJECTOR, merged).error)


def test_a_graph_with_other_weights_is_found_out(
    all_merged: dict[str, WatchedTensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MergedTensors(open_checkpoint(write_tiny_checkpoint(tmp_path / "other", seed=1)))
    monkeypatch.setattr(encoder_onnx, "stream_chunks", lambda _, chunks: stream_chunks(other, chunks))

    assert export_encoder(tmp_path / ENCODER, all_merged["midashenglm"]).error > 0.1
