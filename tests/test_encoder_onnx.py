"""The graphs as files: what they take and give, how they are fused, and that they hold nothing of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dasheng_edge.export import encoder_onnx
from dasheng_edge.export.dasheng import AudioProjector, DashengEncoder, EncoderSpec
from dasheng_edge.export.encoder_onnx import export_encoder, export_front_end, export_projector
from dasheng_edge.runtime.bundle import ENCODER, FRONT_END, PROJECTOR
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.front_end import FrontEndSpec

pytestmark = pytest.mark.torch


def seam(values: object) -> list[tuple[str, list[int | str]]]:
    """Names and axes of a graph's inputs or outputs."""
    return [
        (value.name, [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim])
        for value in values  # type: ignore[attr-defined]  # protobuf's containers have no types
    ]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        (FRONT_END, [("waveform", [1, "samples"])], [("log_mel", [1, 64, "frames"])]),
        (ENCODER, [("log_mel", [1, 64, "frames"]), ("valid_patches", [1])], [("patches", [1, "patches", 64])]),
        (PROJECTOR, [("patches", [1, "5*tokens", 64])], [("embeddings", [1, "tokens", 256])]),
    ],
)
def test_seams_are_named_and_dynamic(
    tiny_bundle: Path, name: str, inputs: list[tuple[str, object]], outputs: list[tuple[str, object]]
) -> None:
    model = onnx.load(tiny_bundle / name)

    assert seam(model.graph.input) == inputs
    assert seam(model.graph.output) == outputs
    assert [entry.version for entry in model.opset_import if not entry.domain] == [23]
    assert {entry.domain for entry in model.opset_import} <= {""}  # nothing but standard operators


def test_each_block_is_one_attention_node(tiny_bundle: Path) -> None:
    kinds = [node.op_type for node in onnx.load(tiny_bundle / ENCODER).graph.node]

    assert kinds.count("Attention") == 2
    assert "Softmax" not in kinds
    assert kinds.count("LayerNormalization") == 2 * 2 + 1


@pytest.mark.parametrize("name", [FRONT_END, ENCODER, PROJECTOR])
def test_files_hold_nothing_of_the_machine(tiny_bundle: Path, name: str) -> None:
    content = (tiny_bundle / name).read_bytes()

    assert not onnx.load(tiny_bundle / name).metadata_props
    for trace in (".py", str(Path.cwd()), sys.prefix, "stack_trace", "pkg.torch"):
        assert trace.encode() not in content, trace


def test_a_shorter_window_is_centred_in_the_transform(tmp_path: Path) -> None:
    report = export_front_end(tmp_path / FRONT_END, FrontEndSpec(win_length=400))

    assert report.error <= 1e-3
    assert report.cases == 12


def test_large_weights_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_onnx, "EXTERNAL_BYTES", 1000)
    torch.manual_seed(0)
    report = export_projector(
        tmp_path / PROJECTOR, AudioProjector(16, 32).eval().requires_grad_(requires_grad=False), 16
    )

    assert sorted(path.name for path in tmp_path.iterdir()) == [PROJECTOR, f"{PROJECTOR}.data"]
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert report.error <= 1e-5


def test_an_exporter_that_fuses_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_onnx, "OPSET", 20)  # the operator came with 23
    encoder = DashengEncoder(EncoderSpec(embed_dim=16, depth=1, num_heads=2)).eval().requires_grad_(requires_grad=False)

    with pytest.raises(ExportError, match="0 Attention nodes for 1 blocks"):
        export_encoder(tmp_path / ENCODER, encoder)


def test_a_graph_that_yields_nan_has_no_error_within_any_tolerance(tmp_path: Path) -> None:
    projector = AudioProjector(16, 32).eval().requires_grad_(requires_grad=False)
    projector.state_dict()["net.2.bias"][0] = float("nan")

    assert np.isnan(export_projector(tmp_path / PROJECTOR, projector, 16).error)
