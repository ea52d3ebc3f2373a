"""The front end's graph: its seams, what it computes, and that a second spectrogram changes nothing in the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dasheng_edge.export.graphs import front_end as front_end_onnx
from dasheng_edge.export.graphs.front_end import export_front_end
from dasheng_edge.export.graphs.session import GraphReport, graph_session
from dasheng_edge.export.variants.spectrograms import AcousticMel
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec

TWO_BRANCHES = FrontEndSpec(acoustic=AcousticSpec(n_mels=100))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphReport, Path]:
    """A front end with an acoustic branch, and what its export reports."""
    path = tmp_path_factory.mktemp("two") / "two.onnx"
    return export_front_end(path, TWO_BRANCHES), path


def outputs(path: Path) -> dict[str, list[int | str]]:
    return {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.output
    }


def test_an_acoustic_branch_has_a_second_output(two: tuple[GraphReport, Path]) -> None:
    report, path = two

    assert outputs(path) == {"log_mel": [1, 64, "frames"], "acoustic_mel": [1, 100, "frames"]}
    assert report.acoustic_error is not None
    assert report.acoustic_error <= 1e-6  # nepers
    assert report.error <= 1e-4
    assert report.cases == 12
    assert report.bytes == path.stat().st_size


def test_the_log_mel_is_the_same_with_and_without(two: tuple[GraphReport, Path], tmp_path: Path) -> None:
    report = export_front_end(tmp_path / "one.onnx", FrontEndSpec())
    feed = {"waveform": np.random.default_rng(0).normal(0, 0.1, (1, 16_000)).astype(np.float32)}
    alone, both = graph_session(tmp_path / "one.onnx"), graph_session(two[1])
    assert np.array_equal(alone.run(["log_mel"], feed)[0], both.run(["log_mel"], feed)[0])

    assert report.acoustic_error is None
    assert outputs(tmp_path / "one.onnx") == {"log_mel": [1, 64, "frames"]}


@pytest.mark.parametrize(
    "spec",
    [FrontEndSpec(win_length=400), FrontEndSpec(acoustic=AcousticSpec(n_mels=20, win_length=640))],
    ids=["log-mel", "acoustic mel"],
)
def test_a_shorter_window_is_centred_in_the_transform(tmp_path: Path, spec: FrontEndSpec) -> None:
    report = export_front_end(tmp_path / "front_end.onnx", spec)

    assert report.error <= 1e-3
    assert (report.acoustic_error or 0) <= 1e-6


def test_another_formula_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = front_end_onnx.ACOUSTIC_MEL_TEXT.replace("Sqrt", "Identity")
    monkeypatch.setattr(front_end_onnx, "ACOUSTIC_MEL_TEXT", text)
    report = export_front_end(tmp_path / "front_end.onnx", TWO_BRANCHES)

    assert report.acoustic_error is not None
    assert report.acoustic_error > 1
    assert report.error <= 1e-4


@pytest.mark.parametrize("samples", [640, 3_200, 163_201])
def test_every_length_has_the_frames_of_the_counting_law(two: tuple[GraphReport, Path], samples: int) -> None:
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples)) * 0.1
    session = graph_session(two[1])
    log_mel, acoustic = session.run(None, {"waveform": waveform.numpy()})
    assert TWO_BRANCHES.acoustic is not None
    want = AcousticMel(TWO_BRANCHES.acoustic)(waveform).numpy()

    assert log_mel.shape[2] == acoustic.shape[2] == TWO_BRANCHES.frames_of(samples)
    assert np.abs(acoustic - want).max() <= 1e-6
