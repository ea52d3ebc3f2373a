"""The largest activations of an encoder, against those of the whole graph, and what float16 cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dasheng_edge.quant.calibration import golden_features
from dasheng_edge.quant.encoder import activations
from dasheng_edge.quant.encoder.activations import check_float16, largest_activations
from dasheng_edge.quant.encoder.graphs import load_graph, matrix_nodes, save_graph
from dasheng_edge.quant.encoder.stages import Chain
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import chunk_feeds
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import QuantizeError


def test_they_are_those_of_the_whole_graph(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Bundle.open(tiny_bundle)
    features = golden_features(read_golden(source), AudioParts.open(source, EngineSettings())).features
    chain = Chain(source, features, 1)
    largest = largest_activations(chain)
    assert set(largest) == {
        name for graph in (ENCODER, PROJECTOR) for name in matrix_nodes(load_graph(source.path(graph)))
    }

    model = load_graph(source.path(ENCODER))
    node = matrix_nodes(model)["audio_encoder.blocks.1.mlp.fc2"]
    model.graph.outputs.extend(value for value in (node.inputs[0], node.outputs[0]) if value is not None)
    save_graph(model, tmp_path / "shown.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "shown.onnx", providers=["CPUExecutionProvider"])
    feeds = [feed for clip in features for feed in chunk_feeds(source.manifest.front_end, clip)]
    want = max(
        np.abs(array).max() for feed in feeds if feed["log_mel"].shape[2] >= 20 for array in session.run(None, feed)[1:]
    )
    assert largest["audio_encoder.blocks.1.mlp.fc2"] == pytest.approx(want, rel=1e-5)

    assert check_float16(chain) == max(largest.values()) < 100
    monkeypatch.setattr(activations, "FLOAT16_MAX", want * 0.99)
    with pytest.raises(
        QuantizeError, match=r"audio_encoder\.blocks\.\d\.\S+ sees or gives \S+ .* Choose --encoder fp32"
    ):
        check_float16(chain)
