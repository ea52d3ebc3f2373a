"""Fixtures: the tiny model of each variant, and its encoder as a graph, which takes seconds to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.graphs.encoder import export_encoder
from dasheng_edge.runtime.bundle.bundle import ENCODER
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.watched_tensors import WatchedTensors


@pytest.fixture(scope="session")
def all_merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WatchedTensors]:
    folder = tmp_path_factory.mktemp("checkpoints")
    all_merged: dict[str, WatchedTensors] = {}
    for name in ("midashenglm", "midashenglm-tokenizer", "dasheng"):
        all_merged[name] = WatchedTensors(open_checkpoint(write_tiny_checkpoint(folder / name, variant=name)))
    return all_merged


@pytest.fixture(scope="session")
def encoders(all_merged: dict[str, WatchedTensors], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for name, merged in all_merged.items():
        paths[name] = tmp_path_factory.mktemp(name) / ENCODER
        assert export_encoder(paths[name], merged).error <= 2e-6
    return paths
