"""What a bundle is compared with in speed computes what the reference does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.reference import bench as bench_transformers
from dasheng_edge.export.reference.bench import STAGES, check_sizes, measure
from dasheng_edge.export.reference.encoder import load_encoder, load_projector
from dasheng_edge.runtime.child import Child
from dasheng_edge.runtime.errors import CheckpointError
from dasheng_edge.runtime.speed.bench import PEER_MODULE
from tests.fixtures.whole_decoder import whole_decoder


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


def sizes(checkpoint: Checkpoint) -> dict[str, int]:
    assert checkpoint.decoder is not None
    return {
        "embed_dim": checkpoint.encoder.embed_dim, "depth": checkpoint.encoder.depth,
        "hidden_size": checkpoint.decoder.hidden_size, "layers": checkpoint.decoder.layers,
        "vocab_size": checkpoint.decoder.vocab_size,
    }  # fmt: skip


@pytest.fixture
def request_of(checkpoint: Checkpoint, tmp_path: Path) -> dict[str, object]:
    waveforms = [np.zeros(800, np.float32), np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)]
    np.savez(tmp_path / "clips.npz", *waveforms)
    return {
        "checkpoint": str(checkpoint.folder), "sizes": sizes(checkpoint), "clips": str(tmp_path / "clips.npz"),
        "prompt": [[1, 2, 3], None, [4]], "new_tokens": [1, 3], "rounds": 2, "threads": torch.get_num_threads(),
        "dtype": "float32",
    }  # fmt: skip


def test_all_parts_are_the_references(checkpoint: Checkpoint) -> None:
    model, merged = bench_transformers.TransformersModel(checkpoint, torch.float32), MergedTensors(checkpoint)
    log_mel = torch.randn(1, 64, 400, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        patches = model.encoder(log_mel)
        torch.testing.assert_close(patches, load_encoder(merged)(log_mel))
        torch.testing.assert_close(model.projector(patches), load_projector(merged)(patches))
        tokens = torch.tensor([[5, 6, 7, 8]])
        torch.testing.assert_close(model.decoder(tokens).logits, whole_decoder(merged)(tokens).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_round_of_each_clip_is_measured(request_of: dict[str, object], dtype: str) -> None:
    found = measure(request_of | {"dtype": dtype})
    stages = found["stages_ms"]
    assert {name: len(values) for name, values in stages.items()} == dict.fromkeys(STAGES, 4)
    parts = sum(np.array(stages[name]) for name in STAGES if name != "total")
    np.testing.assert_allclose(parts, stages["total"])
    assert stages["decode"][0] < stages["decode"][1]  # no token but the first against two more


def test_another_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"has .*, the bundle .*'depth': 99.*; pass the checkpoint that it was"):
        check_sizes(checkpoint, sizes(checkpoint) | {"depth": 99})


def test_the_child_answers_or_raises_what_is_wrong(request_of: dict[str, object]) -> None:
    with Child(PEER_MODULE) as child:
        assert set(child.ask(request_of)) == {"load_ms", "stages_ms", "peak_rss_bytes"}
        with pytest.raises(CheckpointError, match="pass the checkpoint"):
            child.ask(request_of | {"sizes": {}})
