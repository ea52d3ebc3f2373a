"""Smoothing: the float32 model stays what it is, and outliers cost less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.quant.calibration import golden_features
from dasheng_edge.quant.encoder.graphs import load_graph, matrix_nodes, save_graph
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.quant.encoder.quantize import EncoderOptions, clip_outputs, quantize_encoder, trials
from dasheng_edge.quant.encoder.smoothing import EXPONENTS, fold, smoothable, smoothing_scales
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.engine_options import EngineSettings
from tests.fixtures.outliers import add_outliers

BLOCKS = 2  # of the tiny model


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def clips(source: Bundle) -> tuple[Features, ...]:
    return golden_features(read_golden(source), AudioParts.open(source, EngineSettings())).features


@pytest.fixture
def with_outliers(bundle_copy: Path) -> Bundle:
    """The tiny bundle with channels that stand out; its files' hashes are those of before."""
    source = Bundle.open(bundle_copy)
    model = load_graph(source.path(ENCODER))
    add_outliers(model)
    ir.external_data.load_to_model(model)
    save_graph(model, source.path(ENCODER))
    return source


def test_the_matrices_behind_norms_can_be_smoothed(source: Bundle) -> None:
    names = [f"audio_encoder.blocks.{block}.{part}" for block in range(BLOCKS) for part in ("attn.qkv", "mlp.fc1")]
    assert list(smoothable(load_graph(source.path(ENCODER)))) == names
    assert smoothable(load_graph(source.path(PROJECTOR))) == {}


def test_a_norm_that_others_read_is_left(source: Bundle) -> None:
    model = load_graph(source.path(ENCODER))
    name, norm = next(iter(smoothable(model).items()))
    model.graph.outputs.append(norm.outputs[0])
    model.graph.append(ir.node("Identity", [norm.outputs[0]]))
    assert name not in smoothable(model)


def test_the_float32_model_stays_the_same(with_outliers: Bundle, source: Bundle, clips: tuple[Features, ...]) -> None:
    spec = source.manifest.front_end
    wanted = list(clip_outputs(spec, source.path, clips, 1, (ENCODER, PROJECTOR)))
    got = Deviation.of(
        zip(clip_outputs(spec, with_outliers.path, clips, 1, (ENCODER, PROJECTOR)), wanted, strict=True)
    ).snr_db
    assert got is None or got > 100  # dB


def test_folding_back_restores_the_weights(source: Bundle) -> None:
    model = load_graph(source.path(ENCODER))
    before = {name: weight_of(node) for name, node in matrix_nodes(model).items()}
    folded = add_outliers(model)
    assert not np.allclose(weight_of(matrix_nodes(model)[next(iter(folded))]), before[next(iter(folded))])
    fold(model, {name: type(one)(one.exponent, np.reciprocal(one.scales)) for name, one in folded.items()})
    for name, node in matrix_nodes(model).items():
        np.testing.assert_allclose(weight_of(node), before[name], rtol=1e-6)


def weight_of(node: ir.Node) -> np.ndarray:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value.numpy()


@pytest.mark.parametrize(("precision", "gain_db"), [("int8", 10.0), ("int8-block", 3.0), ("int4-block", 1.0)])
def test_outliers_cost_less(
    with_outliers: Bundle, clips: tuple[Features, ...], tmp_path: Path, precision: EncoderPrecision, gain_db: float
) -> None:
    got = {}
    for smooth in (False, True):
        options = EncoderOptions(precision, smooth=smooth)
        told: list[int] = []
        folder = tmp_path / str(smooth)
        folder.mkdir()
        report = quantize_encoder(with_outliers, folder.joinpath, options, clips, 1, told.append)
        assert report.snr_db is not None
        assert sum(told) == trials(with_outliers, options)
        assert bool(report.smoothed) == smooth
        assert set(report.smoothed.values()) <= set(EXPONENTS)
        got[smooth] = report.snr_db
    assert got[True] >= got[False] + gain_db


@pytest.mark.parametrize("precision", ["int8", "int4-block"])
def test_smoothing_never_loses(
    source: Bundle, clips: tuple[Features, ...], tmp_path: Path, precision: EncoderPrecision
) -> None:
    got = []
    for smooth in (False, True):
        folder = tmp_path / str(smooth)
        folder.mkdir()
        report = quantize_encoder(source, folder.joinpath, EncoderOptions(precision, smooth=smooth), clips, 1)
        assert report.snr_db is not None
        got.append(report.snr_db)
    assert got[1] >= got[0]


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e2)), min_size=1, max_size=20), st.sampled_from(EXPONENTS))
def test_scales_are_positive_finite_and_centred(pairs: list[tuple[float, float]], exponent: float) -> None:
    channels, rows = np.array(pairs, np.float32).T
    scales = smoothing_scales(channels, rows, exponent)
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    assert np.isclose(float(scales.max()) * float(scales.min()), 1, rtol=1e-3)


def test_half_the_exponent_makes_both_sides_alike() -> None:
    channels, rows = np.array([1, 100, 4], np.float32), np.array([2, 0.5, 1], np.float32)
    scales = smoothing_scales(channels, rows, 0.5)
    ratio = (channels / scales) / (rows * scales)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
