"""A chain of stages against the graphs that it was cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.quant.calibration import golden_features
from dasheng_edge.quant.encoder.graphs import load_graph, matrix_nodes, save_graph
from dasheng_edge.quant.encoder.plan import Plan
from dasheng_edge.quant.encoder.precisions import MatrixPrecision
from dasheng_edge.quant.encoder.quantize import clip_outputs
from dasheng_edge.quant.encoder.stages import MAX_AUDIO_S, Chain, group_of
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.engine_options import EngineSettings
from tests.fixtures.bundle_kinds import write_encoder_bundle, write_two_branch_bundle


def features_of(bundle: Bundle) -> tuple[Features, ...]:
    return golden_features(read_golden(bundle), AudioParts.open(bundle, EngineSettings())).features


@pytest.fixture(scope="module", params=["whole", "encoder", "two branches"])
def source(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("kinds") / "bundle"
    if request.param == "encoder":
        return Bundle.open(write_encoder_bundle(tiny_bundle, folder))
    return Bundle.open(write_two_branch_bundle(tiny_bundle, folder) if request.param != "whole" else tiny_bundle)


@pytest.fixture
def clip(source: Bundle) -> Features:
    """One chunk of whole audio tokens, so that a chain and the graphs see the same."""
    audio = AudioParts.open(source, EngineSettings())
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3200 * 12).astype(np.float32)  # 12 tokens
    return audio.front_end.features([noise])


def test_every_matrix_is_in_a_stage(source: Bundle, clip: Features) -> None:
    chain = Chain(source, [clip], 1)
    graphs = [name for name in (ENCODER, PROJECTOR) if name in source.manifest.files]
    wanted = [name for graph in graphs for name in matrix_nodes(load_graph(source.path(graph)))]
    assert sorted(name for stage in chain.stages for name in stage.matrices) == sorted(wanted)
    for stage in chain.stages:
        assert len({group_of(name) for name in stage.matrices}) <= 1
        assert set(matrix_nodes(chain.model(stage))) == set(stage.matrices)


@pytest.mark.parametrize("precision", ["int4-block", "int8", "fp16"])
def test_noise_of_a_stage_is_that_of_the_whole(
    source: Bundle, clip: Features, tmp_path: Path, precision: MatrixPrecision
) -> None:
    chain = Chain(source, [clip], 1)
    graphs = [name for name in (ENCODER, PROJECTOR) if name in source.manifest.files]
    spec = source.manifest.front_end
    wanted = list(clip_outputs(spec, source.path, [clip], 1, graphs))
    for index, stage in enumerate(chain.stages):
        if not stage.matrices:
            continue
        plan = Plan(dict.fromkeys(stage.matrices, precision), {})
        for name in graphs:
            model = load_graph(source.path(name))
            plan.apply(model)
            save_graph(model, tmp_path / name)
        whole = Deviation.of(zip(clip_outputs(spec, tmp_path.joinpath, [clip], 1, graphs), wanted, strict=True)).snr_db
        assert whole is not None
        got = -10 * np.log10(chain.noise(index, plan.apply, at_end=True))
        assert got == pytest.approx(whole, abs=0.3 if precision == "fp16" else 0.05)  # float32's own at the end of fp16


def test_what_is_not_changed_adds_no_noise(source: Bundle, clip: Features) -> None:
    chain = Chain(source, [clip], 1)
    for index in range(len(chain.stages)):
        assert chain.noise(index, lambda _: None, at_end=True) < 1e-10
        assert chain.noise(index, lambda _: None, at_end=False) < 1e-10


def test_chunks_come_from_all_over_the_clips(source: Bundle) -> None:
    clips = features_of(source)
    few, many = Chain(source, clips, 1), Chain(source, clips * 40, 1)
    assert len(few._feeds) > 0
    lengths = [feed["log_mel"].shape[-1] for feed in many._feeds]
    assert MAX_AUDIO_S <= sum(lengths) / 100 < MAX_AUDIO_S + 10.08
    assert len(set(lengths)) >= len({feed["log_mel"].shape[-1] for feed in few._feeds})


def test_clips_that_give_no_token_are_left_out(source: Bundle) -> None:
    audio = AudioParts.open(source, EngineSettings())
    short = audio.front_end.features([np.zeros(700, np.float32)])
    chain = Chain(source, [short], 1)
    assert chain.noise(1, lambda _: None, at_end=True) == 0.0
