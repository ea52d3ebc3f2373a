"""Chunks of several clips in one run of the encoder: each gets what it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.audio.encoder import Encoder, Feed, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.deviation import relative_rms
from tests.fixtures.watched_tensors import WatchedTensors

# Of clips whose chunks are: without a key, with a last patch that is none, full, and all that.
LENGTHS = (3_040, 161_120, 163_200, 323_040, 40_000, 41_119, 161_280, 100_000)


def chunks_of(spec: FrontEndSpec, seed: int) -> list[Feed]:
    """All chunks of clips of `LENGTHS`, in any order."""
    generator = np.random.default_rng(seed)
    feeds: list[Feed] = []
    for samples in LENGTHS:
        frames = spec.frames_of(samples)
        log_mel = generator.normal(-40, 20, (spec.n_mels, frames)).astype(np.float32)
        acoustic = None
        if spec.acoustic:
            acoustic = generator.normal(-5, 3, (spec.acoustic.n_mels, frames)).astype(np.float32)
        feeds += chunk_feeds(spec, Features(log_mel, acoustic, samples))
    return [feeds[place] for place in generator.permutation(len(feeds))]


@pytest.mark.parametrize("chunks", [2, 5, 8])
@pytest.mark.parametrize("variant", ["midashenglm", "midashenglm-tokenizer", "dasheng", "dasheng, padded"])
def test_chunks_that_share_a_run_get_what_they_get_alone(
    variant: str, chunks: int, encoders: dict[str, Path], all_merged: dict[str, WatchedTensors]
) -> None:
    name = variant.removesuffix(", padded")
    spec = all_merged[name].checkpoint.front_end
    spec = spec.model_copy(update={"pads_last_chunk": name != variant}) if name == "dasheng" else spec
    alone, shared = Encoder(encoders[name], spec, chunks=1), Encoder(encoders[name], spec, chunks=chunks)
    assert (alone.max_chunks, shared.max_chunks) == (1, chunks)
    feeds = chunks_of(spec, chunks)
    apart = [shared.together([feed])[0] for feed in feeds]  # filled up, too
    for feed, got, one, want in zip(feeds, shared.together(feeds), apart, alone.together(feeds), strict=True):
        assert got.shape == one.shape == want.shape == (feed["log_mel"].shape[2] // 4, 64)
        assert relative_rms(got, want) <= 1e-6
        assert relative_rms(one, want) <= 1e-6
