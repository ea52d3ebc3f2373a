"""Patches that stay where they were computed, for the projector: the same numbers as through the host's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.audio import encoder as encoder_module
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.encoder import Feed, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import OnDevice
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import BundleFileError, DeviceError
from tests.fixtures.fake_gpu import FakeCuda, fake_cuda

__all__ = ["fake_cuda"]


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> AudioInputParts:
    """Each chunk and clip by itself, through the host's memory."""
    return AudioInputParts.open(Bundle.open(tiny_bundle), EngineSettings())


@pytest.fixture
def shared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> AudioInputParts:
    """As on a GPU, in the CPU's memory."""
    monkeypatch.setattr(encoder_module, "CHUNKS", {"cpu": 8, "cuda": 8})
    parts = AudioInputParts.open(Bundle.open(tiny_bundle), EngineSettings())
    parts.encoder.stays = True
    return parts


def clip(parts: AudioInputParts, seconds: float, seed: int = 0) -> list[Feed]:
    spec, samples = parts.encoder.spec, round(16_000 * seconds)
    log_mel = np.random.default_rng(seed).normal(-40, 20, (spec.n_mels, spec.frames_of(samples))).astype(np.float32)
    return list(chunk_feeds(spec, Features(log_mel, None, samples)))


# Of one chunk and several, of all of a run, of more than a run; full, and with a last patch that is none.
LENGTHS_S = (0.2, 10.0, 10.08, 30.0, 20.2, 80.6, 10.11, 5.0, 95.0, 2.0, 41.119)


@pytest.mark.parametrize("lengths", [LENGTHS_S, LENGTHS_S[::-1], (30.0,) * 5, (0.2,), (10.0,) * 9, ()])
def test_clips_get_what_they_get_through_the_host(
    alone: AudioInputParts, shared: AudioInputParts, lengths: tuple[float, ...]
) -> None:
    clips = [clip(alone, seconds, seed) for seed, seconds in enumerate(lengths)]
    patches = shared.encoder.clips(clips)
    assert [isinstance(one, OnDevice) for one in patches] == [len(one) <= 8 for one in clips]
    for feeds, got in zip(clips, shared.projector.together(patches), strict=True):
        want = alone.projector.embeddings(np.concatenate(alone.encoder.together(feeds)))
        assert got.shape == want.shape
        assert relative_rms(got, want) <= 2e-6


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("seconds", [0.2, 10.08, 30.0, 95.0])
def test_a_clip_alone(alone: AudioInputParts, shared: AudioInputParts, seconds: float, live: bool) -> None:
    feeds = clip(alone, seconds)
    want = alone.projector.embeddings(np.concatenate(alone.encoder.together(feeds)))
    groups = list(shared.groups(iter(feeds), live=live))
    assert isinstance(groups[0], OnDevice) == (not live and len(feeds) <= 8)
    got = np.concatenate([shared.projector.embeddings(group) for group in groups])
    assert relative_rms(got, want) <= 2e-6


def test_what_is_wrong_is_seen_there_too(shared: AudioInputParts, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = clip(shared, 3)
    feeds[0]["log_mel"][:] = np.nan
    with pytest.raises(DeviceError, match="NaN or infinity"):
        shared.projector.embeddings(shared.encoder.clips([feeds])[0])
    with pytest.raises(DeviceError, match="ONNX Runtime failed on CPUExecutionProvider with log_mel"):
        shared.encoder.clips([[{**feeds[0], "valid_patches": np.zeros(1, np.float32)}]])
    monkeypatch.setattr(shared.encoder, "width", 3)
    with pytest.raises(BundleFileError, match=r"gives tensor\(float\) .*expected float32 \(1, 126, 3\)"):
        shared.encoder.clips([clip(shared, 3)])


def test_captions_of_a_gpu_are_those_of_the_cpu(tiny_bundle: Path, fake_cuda: FakeCuda) -> None:
    rng, rate = np.random.default_rng(0), 16_000
    clips = [(rng.normal(0, 0.1, round(rate * seconds)).astype(np.float32), rate) for seconds in (1, 12, 4, 31, 25)]
    with Captioner.open(tiny_bundle, options=EngineOptions(cache="off")) as cpu:
        want = [cpu.caption(one, max_new_tokens=6).tokens for one in clips]
    with Captioner.open(tiny_bundle, options=EngineOptions("cuda", decoder_device="cpu", cache="off")) as gpu:
        assert gpu.parts.audio.encoder.stays
        assert [gpu.caption(one, max_new_tokens=6).tokens for one in clips] == want
        assert [one.tokens for one in gpu.caption_batch(clips, max_new_tokens=6)] == want
