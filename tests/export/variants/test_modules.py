"""The reference itself: sizes of the published model, and the physics and the traps of its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dasheng_edge.export.variants.midashenglm import MiDashengLMEncoder
from dasheng_edge.export.variants.modules import AudioProjector
from dasheng_edge.export.variants.specs import EncoderSpec
from dasheng_edge.export.variants.spectrograms import LogMel, mel_filterbank
from dasheng_edge.runtime.audio.front_end import mel_filters
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec

SPEC = FrontEndSpec()


@pytest.fixture(scope="module")
def encoder() -> MiDashengLMEncoder:
    torch.manual_seed(0)
    return (
        MiDashengLMEncoder(EncoderSpec(embed_dim=32, depth=2, num_heads=2)).eval().requires_grad_(requires_grad=False)
    )


def mel(waveform: np.ndarray) -> np.ndarray:
    return np.asarray(LogMel()(torch.from_numpy(waveform.astype(np.float32))[None])[0])


def test_sizes_are_those_of_the_published_7b() -> None:
    with torch.device("meta"):
        encoder, projector = MiDashengLMEncoder(EncoderSpec()), AudioProjector(1280, 3584)

    assert sum(p.numel() for p in encoder.parameters()) == 630_333_568
    assert len(encoder.state_dict()) == 395
    assert sum(p.numel() for p in projector.parameters()) == 35_789_824
    assert len(projector.state_dict()) == 4


def test_filters_are_triangles_that_sum_to_one() -> None:
    filters = mel_filterbank(SPEC).numpy()
    peaks = filters.argmax(axis=0)

    assert filters.shape == (257, 64)
    assert (filters.max(axis=0) > 0).all()  # none is empty
    assert filters.max() <= 1
    assert (np.diff(peaks) > 0).all()
    # Between the first and the last peak, the falling side of a filter is one minus the rising side of the next.
    inner = filters[peaks[0] + 1 : peaks[-1]]
    assert np.allclose(inner.sum(axis=1), 1)
    assert max(filters[0].max(), filters[-1].max()) < 1e-12  # 0 Hz and 8000 Hz are the outer corners


@pytest.mark.parametrize("spec", [SPEC, AcousticSpec(n_mels=100), FrontEndSpec(f_min_hz=50, f_max_hz=7000, n_mels=80)])
def test_filters_are_those_of_the_runtime(spec: FrontEndSpec | AcousticSpec) -> None:
    assert np.abs(mel_filters(spec, 16_000) - mel_filterbank(spec).numpy()).max() <= 1e-12


def test_filters_sit_on_the_htk_mel_scale() -> None:
    peak_hz = mel_filterbank(SPEC).numpy().argmax(axis=0) * 8000 / 256
    step = 2595 * np.log10(1 + 8000 / 700) / 65
    wanted_hz = 700 * (10 ** (step * np.arange(1, 65) / 2595) - 1)

    assert np.abs(peak_hz - wanted_hz).max() <= 8000 / 256 / 2 + 1e-9  # half a bin


@pytest.mark.parametrize("hz", [250, 1000, 4000])
def test_a_tone_is_loudest_in_its_own_band(hz: int) -> None:
    tone = mel(0.5 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000))
    weights = mel_filterbank(SPEC).numpy()[round(hz * 256 / 8000)]

    assert weights[tone[:, 50].argmax()] >= 0.5


def test_ten_times_the_amplitude_is_20_db() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.01, 16_000)

    assert np.allclose(mel(10 * waveform) - mel(waveform), 20, atol=1e-3)


def test_silence_is_the_floor_and_nothing_is_120_db_below_the_loudest() -> None:
    silence = mel(np.zeros(16_000))
    click = np.zeros(16_000)
    click[:100] = 1
    loud = mel(click)

    assert np.all(silence == -100)
    assert loud.min() == pytest.approx(max(loud.max() - 120, -100))


def test_the_floor_is_relative_to_each_clip_not_to_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    quiet, loud = torch.randn(2, 1, 16_000, generator=generator) * torch.tensor([1e-6, 1.0])[:, None, None]
    together = LogMel()(torch.cat([quiet, loud]))

    assert torch.equal(together[:1], LogMel()(quiet))


def test_frames_and_patches_follow_the_counting_law(encoder: MiDashengLMEncoder) -> None:
    for samples in (3040, 3200, 16_000, 161_280, 163_200):
        log_mel = LogMel()(torch.zeros(1, samples))
        assert log_mel.shape[-1] == SPEC.frames_of(samples)
        assert encoder(log_mel, samples).shape[1] == SPEC.patches_of(samples)


def test_a_chunk_without_keys_attends_to_nothing_and_is_no_nan(encoder: MiDashengLMEncoder) -> None:
    log_mel = torch.randn(1, 64, 40, generator=torch.Generator().manual_seed(0))
    out = encoder.forward_chunk({"log_mel": log_mel, "valid_patches": torch.tensor([0])})
    # Patches that attend to nothing cannot know their neighbours.
    changed = log_mel.clone()
    changed[..., 20:] += 10
    other = encoder.forward_chunk({"log_mel": changed, "valid_patches": torch.tensor([0])})

    assert torch.isfinite(out).all()
    assert torch.equal(out[:, :5], other[:, :5])
    assert not torch.equal(out[:, 5:], other[:, 5:])


def test_the_last_patch_is_no_key_when_the_clip_ends_within_it(encoder: MiDashengLMEncoder) -> None:
    samples = 3040  # 20 frames, 5 patches, of which floor(3040 / 640) = 4 are keys
    log_mel = torch.randn(1, 64, 20, generator=torch.Generator().manual_seed(0))
    changed = log_mel.clone()
    changed[..., 16:] += 10
    out, other = encoder(log_mel, samples), encoder(changed, samples)

    assert torch.equal(out[:, :4], other[:, :4])
    assert not torch.equal(out[:, 4:], other[:, 4:])
    assert not torch.equal(encoder(log_mel), encoder(changed))  # without a mask all patches are keys


def test_chunks_do_not_see_each_other(encoder: MiDashengLMEncoder) -> None:
    log_mel = torch.randn(1, 64, 1100, generator=torch.Generator().manual_seed(0))
    changed = log_mel.clone()
    changed[..., 1008:] += 10
    out, other = encoder(log_mel), encoder(changed)
    alone = encoder.forward_chunk({"log_mel": log_mel[..., 1008:]})

    assert torch.equal(out[:, :252], other[:, :252])
    assert torch.equal(out[:, 252:], alone)  # positions begin again in each chunk


def test_an_audio_token_straddles_the_border_of_chunks() -> None:
    torch.manual_seed(0)
    projector = AudioProjector(8, 16)
    patches = torch.randn(1, 255, 8)
    changed = patches.clone()
    changed[:, 252:] += 1  # the first patches of the second chunk
    out, other = projector(patches), projector(changed)

    assert out.shape == (1, 51, 16)
    assert torch.equal(out[:, :50], other[:, :50])
    assert not torch.equal(out[:, 50], other[:, 50])  # made of patches 250 and 251 of the first, 0 to 2 of the second


def test_the_projector_drops_what_fills_no_token() -> None:
    projector = AudioProjector(8, 16)
    patches = torch.randn(1, 13, 8)

    assert torch.equal(projector(patches), projector(patches[:, :10]))
