"""The reference with one block in memory at a time, against the reference as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.encoder import (
    load_encoder,
    load_projector,
    meta_encoder,
    reference_features,
    stream_chunks,
    stream_patches,
)
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.watched_tensors import WatchedTensors

BLOCK_BYTES = 4 * (12 * 64 * 64 + 13 * 64)  # of the tiny model: four matrices, their biases, two norms


@pytest.fixture(scope="module", params=["midashenglm", "midashenglm-tokenizer", "dasheng"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WatchedTensors:
    variant: str = request.param
    folder = tmp_path_factory.mktemp("reference") / variant
    return WatchedTensors(open_checkpoint(write_tiny_checkpoint(folder, variant=variant)))


def waveform(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


def test_streamed_patches_are_those_of_the_whole_encoder(merged: WatchedTensors) -> None:
    lengths = (3_200, 163_680, 323_040)
    clips = [reference_features(merged.checkpoint.front_end, waveform(samples)) for samples in lengths]
    encoder = load_encoder(merged)
    streamed = stream_patches(merged, clips)

    for clip, got in zip(clips, streamed, strict=True):
        acoustic = None if clip.acoustic is None else torch.from_numpy(clip.acoustic)[None]
        want = encoder(torch.from_numpy(clip.log_mel)[None], clip.samples, acoustic)[0].numpy()
        assert got.shape == (merged.checkpoint.front_end.patches_of(clip.samples), 64)
        assert np.array_equal(got, want)


def test_no_more_than_one_block_is_held_beside_the_embedding(merged: WatchedTensors) -> None:
    spec = merged.checkpoint.front_end
    ends = sum(
        4 * torch.Size(merged.shape(name)).numel() for name in merged.names("audio_encoder.") if ".blocks." not in name
    )
    acoustic = torch.zeros(1, spec.acoustic.n_mels, 8) if spec.acoustic else None
    (chunk,) = meta_encoder(merged, depth=0).chunks_of(torch.zeros(1, 64, 8), 1280, acoustic)
    merged.peak[0] = 0
    stream_chunks(merged, [chunk, chunk])

    assert merged.peak[0] <= ends + 2 * BLOCK_BYTES  # a block goes when the next one is complete
    assert not merged.held


def test_features_have_the_spectrograms_that_the_encoder_takes(merged: WatchedTensors) -> None:
    spec = merged.checkpoint.front_end
    features = reference_features(spec, waveform(4_000))

    assert features.log_mel.shape == (64, 26)
    assert features.samples == 4_000
    assert (None if features.acoustic is None else features.acoustic.shape) == (
        (spec.acoustic.n_mels, 26) if spec.acoustic else None
    )


def test_the_projector_has_the_merged_weights(merged: WatchedTensors) -> None:
    if merged.checkpoint.decoder:
        weight = load_projector(merged).state_dict()["net.2.weight"]
        assert torch.equal(weight, merged.tensor("audio_projector.net.2.weight"))
    else:
        assert merged.names("audio_projector.") == []
