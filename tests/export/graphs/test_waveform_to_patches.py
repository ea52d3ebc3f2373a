"""The graphs of the other variants in the runtime, against the reference: from a waveform to patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.graphs.front_end import export_front_end
from dasheng_edge.export.reference.encoder import reference_features, stream_patches
from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.audio.front_end import FrontEnd
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END
from dasheng_edge.runtime.deviation import relative_rms
from tests.fixtures.watched_tensors import WatchedTensors


@pytest.mark.parametrize("variant", ["midashenglm-tokenizer", "dasheng"])
def test_waveform_to_patches_equals_the_reference(
    variant: str, encoders: dict[str, Path], all_merged: dict[str, WatchedTensors]
) -> None:
    merged, folder = all_merged[variant], encoders[variant].parent
    export_front_end(folder / FRONT_END, merged.checkpoint.front_end)
    assert_patches_agree(folder, merged)
    if variant == "dasheng":  # the same graph fills the last chunk up, where it is asked to
        padding = merged.checkpoint.front_end.model_copy(update={"pads_last_chunk": True})
        assert_patches_agree(folder, MergedTensors(replace(merged.checkpoint, front_end=padding)))


def assert_patches_agree(folder: Path, merged: MergedTensors) -> None:
    spec = merged.checkpoint.front_end
    front_end, encoder = FrontEnd(spec), Encoder(folder / ENCODER, spec)
    lengths = [1, 479, 480, 3_039, 3_040, 3_199, 3_200, 161_120, 161_280, 163_359, 323_040]
    clips = [np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32) for samples in lengths]
    clips += [np.zeros(48_000, np.float32), np.sign(np.sin(np.arange(48_000) / 7)).astype(np.float32)]
    padded = [np.pad(clip, (0, spec.padded_samples_of(len(clip)) - len(clip))) for clip in clips]
    wanted = stream_patches(merged, [reference_features(spec, clip) for clip in padded])
    for clip, want in zip(clips, wanted, strict=True):
        got = encoder.patches(front_end.features([clip]))
        assert np.isfinite(got).all()
        assert relative_rms(got, want) <= 1e-5, len(clip)
