"""The two encoders that differ from MiDashengLM-7B's, against a plain restatement in float64 of what was published."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.encoder import load_encoder, reference_features
from dasheng_edge.export.variants.midashenglm_tokenizer import DashengTokenizerEncoder
from dasheng_edge.export.variants.spectrograms import AcousticMel, mel_filterbank
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec
from dasheng_edge.runtime.deviation import relative_rms
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

Array = NDArray[np.float64]
LENGTHS = [3_040, 3_200, 161_119, 161_120, 161_279, 161_280, 161_281, 163_200, 323_040, 323_199, 1_129_440]
HEADS = 2


class Model:
    """A checkpoint's weights, and the steps that both published encoders share."""

    def __init__(self, merged: MergedTensors) -> None:
        self.merged = merged
        names = merged.names("audio_encoder.")
        self.w: Mapping[str, Array] = {
            name.removeprefix("audio_encoder."): merged.tensor(name).double().numpy() for name in names
        }

    def batch_norm(self, log_mel: NDArray[np.float32]) -> Array:
        mean, variance, scale, shift = (
            self.w[f"init_bn.{name}"][:, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return np.asarray((log_mel - mean) / np.sqrt(variance + 1e-5) * scale + shift)

    def linear(self, name: str, x: Array) -> Array:
        return np.asarray(np.einsum("ni,oi->no", x, self.w[f"{name}.weight"]) + self.w[f"{name}.bias"])

    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + epsilon)
        return np.asarray(centred / spread * self.w[f"{name}.weight"] + self.w[f"{name}.bias"])

    def convolve(self, name: str, mel: Array) -> Array:
        """Each four frames of [mels, frames] -> one row."""
        kernel, bias = self.w[f"{name}.weight"][:, 0], self.w[f"{name}.bias"]
        starts = range(0, mel.shape[1] - 3, 4)
        return np.array([np.einsum("omt,mt->o", kernel, mel[:, start : start + 4]) + bias for start in starts])

    def attend(self, block: str, x: Array, masked: NDArray[np.bool_]) -> Array:
        dim, size = x.shape[1], x.shape[1] // HEADS
        packed = self.linear(f"{block}.attn.qkv", x)
        heads = []
        for head in range(HEADS):
            query, key, value = (packed[:, i * dim + head * size :][:, :size] for i in range(3))
            scores = query @ key.T / np.sqrt(size)
            scores[:, masked] = -np.inf
            with np.errstate(invalid="ignore"):
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights = np.nan_to_num(weights / weights.sum(axis=1, keepdims=True))  # no key at all
            heads.append(weights @ value)
        return self.linear(f"{block}.attn.proj", np.concatenate(heads, axis=1))

    def transform(self, frames: Array, masked: NDArray[np.bool_] | None = None) -> Array:
        """One chunk behind the batch norm -> what comes out of the last norm."""
        return self.blocks(self.convolve("patch_embed.proj", frames), masked)

    def blocks(self, x: Array, masked: NDArray[np.bool_] | None = None) -> Array:
        """The patches of one chunk -> what comes out of the last norm."""
        positions = self.w["time_pos_embed"][0, :, 0].T[: len(x)] + self.w["freq_pos_embed"][0, :, 0, 0]
        x = x + positions
        masked = np.zeros(len(x), bool) if masked is None else masked
        for index in range(2):
            block = f"blocks.{index}"
            x = x + self.attend(block, self.layer_norm(f"{block}.norm1", x, 1e-6), masked)
            hidden = self.linear(f"{block}.mlp.fc1", self.layer_norm(f"{block}.norm2", x, 1e-6))
            hidden = hidden / 2 * (1 + torch.erf(torch.from_numpy(hidden) / np.sqrt(2)).numpy())
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.layer_norm("norm", x, 1e-6)


def dasheng_tokenizer(model: Model, features: Features) -> Array:
    """Cut into 1008 frames; frames from samples // 160 on are masked; masked patches of later chunks become zero."""
    frames = model.batch_norm(features.log_mel)
    heard = np.arange(frames.shape[1]) < features.samples // 160
    semantic = []
    for start in range(0, frames.shape[1], 1008):
        chunk = frames[:, start : start + 1008]
        if chunk.shape[1] < 4:
            continue  # the published convolution fails on so few
        patches = chunk.shape[1] // 4
        masked = np.arange(patches) >= heard[start : start + 1008].sum() // 4
        rows = model.transform(chunk, masked)
        if start:
            rows[masked] = 0
        semantic.append(rows)
    assert features.acoustic is not None
    acoustic = model.convolve("acoustic.patch_embed", features.acoustic.astype(np.float64))
    return np.concatenate(semantic) + model.layer_norm("acoustic.norm", acoustic, 1e-5)


def dasheng_009(model: Model, features: Features) -> Array:
    """As dasheng 0.0.8 and 0.0.9: the convolution over the whole clip, then 252 patches at a time, without a mask."""
    rows = model.convolve("patch_embed.proj", model.batch_norm(features.log_mel))
    return np.concatenate([model.blocks(rows[start : start + 252]) for start in range(0, len(rows), 252)])


def dasheng_007(model: Model, features: Features) -> Array:
    """As dasheng 0.0.7: cut into 1008 frames; the last of several is filled up with zeros, its own patches are kept."""
    frames = model.batch_norm(features.log_mel)
    if frames.shape[1] <= 1008:
        return model.transform(frames)
    outputs = []
    for start in range(0, frames.shape[1], 1008):
        chunk = np.zeros((64, 1008))
        own = frames[:, start : start + 1008]
        chunk[:, : own.shape[1]] = own
        outputs.append(model.transform(chunk)[: own.shape[1] // 4])
    return np.concatenate(outputs)


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tokenizer") / "checkpoint"
    return Model(MergedTensors(open_checkpoint(write_tiny_checkpoint(folder, variant="midashenglm-tokenizer"))))


@pytest.fixture(scope="module")
def dasheng_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("dasheng") / "checkpoint"
    return Model(MergedTensors(open_checkpoint(write_tiny_checkpoint(folder, variant="dasheng"))))


@pytest.fixture(scope="module")
def padding_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same weights, with a configuration that asks for zeros in the last chunk."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("padding") / "checkpoint", variant="dasheng")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_last": True}))
    return Model(MergedTensors(open_checkpoint(folder)))


def clip(model: Model, samples: int) -> Features:
    waveform = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    return reference_features(model.merged.checkpoint.front_end, waveform)


def run(model: Model, features: Features) -> NDArray[np.float32]:
    acoustic = None if features.acoustic is None else torch.from_numpy(features.acoustic)[None]
    encoder = load_encoder(model.merged)
    return np.asarray(encoder(torch.from_numpy(features.log_mel)[None], features.samples, acoustic)[0])


@pytest.mark.parametrize("samples", LENGTHS)
def test_dasheng_tokenizer_at_every_length(samples: int, tokenizer_model: Model) -> None:
    features = clip(tokenizer_model, samples)
    want = dasheng_tokenizer(tokenizer_model, features)

    assert len(want) == (1 + samples // 160) // 4
    assert relative_rms(run(tokenizer_model, features), want.astype(np.float32)) <= 2e-6


@pytest.mark.parametrize("samples", [480, 640, 800, *LENGTHS, 163_519, 322_559])
def test_dasheng_at_every_length(samples: int, dasheng_model: Model) -> None:
    features = clip(dasheng_model, samples)
    want = dasheng_009(dasheng_model, features)

    assert len(want) == (1 + samples // 160) // 4
    assert relative_rms(run(dasheng_model, features), want.astype(np.float32)) <= 2e-6


@pytest.mark.parametrize("samples", [480, 161_120, 161_280, 163_200, 163_519, 322_559, 323_199])
def test_dasheng_with_its_last_chunk_filled_up(samples: int, padding_model: Model, dasheng_model: Model) -> None:
    features = clip(padding_model, samples)
    got, want = run(padding_model, features), dasheng_007(padding_model, features)

    assert relative_rms(got, want.astype(np.float32)) <= 2e-6
    # ... which is another model's where there is a last chunk to fill
    assert (relative_rms(got, run(dasheng_model, features)) > 0.01) == (len(want) > 252 and len(want) % 252 > 0)


def test_padding_is_attended_to_and_so_are_frames_that_fill_no_patch(padding_model: Model) -> None:
    whole = clip(padding_model, 163_359)  # 1021 frames: 12 and one more in the second chunk
    assert whole.log_mel.shape[1] == 1021
    short = Features(whole.log_mel[:, :1020], None, whole.samples)
    alone = Features(whole.log_mel[:, 1008:], None, 2_080)
    full, trimmed, first = run(padding_model, whole), run(padding_model, short), run(padding_model, alone)

    assert full.shape == trimmed.shape == (255, 64)
    assert np.array_equal(full[:252], trimmed[:252])
    assert relative_rms(full[252:], trimmed[252:]) > 1e-4
    assert relative_rms(full[252:], first) > 0.01


def test_a_masked_patch_keeps_its_semantic_part_in_the_first_chunk_only(tokenizer_model: Model) -> None:
    encoder = load_encoder(tokenizer_model.merged)
    assert isinstance(encoder, DashengTokenizerEncoder)

    def semantic(samples: int) -> NDArray[np.float32]:
        features = clip(tokenizer_model, samples)
        assert features.acoustic is not None
        acoustic = encoder.acoustic(torch.from_numpy(features.acoustic)[None])[0].numpy()
        part: NDArray[np.float32] = run(tokenizer_model, features) - acoustic
        return part

    first, later = semantic(3_040), semantic(161_280 + 3_040)
    assert np.abs(first[4]).max() > 0.1  # patch 4 of 5, of which 4 are keys
    assert np.abs(later[252:256]).max() > 0.1
    assert np.abs(later[256]).max() < 1e-5  # the same patch of the second chunk; what is left is rounding


def own_filterbank(bins: int, mels: int, top_hz: float) -> NDArray[np.float32]:
    """HTK's triangles, each by linear interpolation between its three corners."""
    corners_hz = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + top_hz / 700), mels + 2) / 2595) - 1)
    bins_hz = np.linspace(0, 8000, bins)
    triangles = [np.interp(bins_hz, corners_hz[i : i + 3], [0, 1, 0]) for i in range(mels)]
    return np.array(triangles, np.float32)


@pytest.mark.parametrize("mels", [20, 100, 128])
def test_acoustic_mel_equals_a_plain_float32_stft(mels: int) -> None:
    # As the published model computes it: float32 throughout. Its rounding noise is what the tolerance allows.
    rng = np.random.default_rng(mels)
    waveform = (rng.normal(0, 0.1, 32_000) * np.linspace(1e-3, 1, 32_000)).astype(np.float32)
    window = torch.hann_window(1024, periodic=True)
    spectrum = torch.stft(torch.from_numpy(waveform), 1024, 160, 1024, window, center=True, return_complex=True)
    magnitudes = own_filterbank(513, mels, 8000) @ spectrum.abs().numpy()
    got = AcousticMel(AcousticSpec(n_mels=mels))(torch.from_numpy(waveform)[None])[0].numpy()

    assert got.shape == (mels, 201)
    assert np.abs(got - np.log(np.maximum(magnitudes, 1e-7))).max() <= 1e-4  # nepers


def test_acoustic_filters_follow_their_own_spectrum() -> None:
    spec = AcousticSpec(n_mels=40, f_max_hz=4000)

    assert np.abs(mel_filterbank(spec).numpy().T - own_filterbank(513, 40, 4000)).max() <= 1e-6


def test_ten_times_the_amplitude_is_ln_10_and_silence_is_the_floor() -> None:
    mel = AcousticMel(AcousticSpec(n_mels=100))
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 0.01

    assert torch.allclose(mel(10 * noise) - mel(noise), torch.tensor(10.0).log(), atol=1e-5)
    assert torch.all(mel(torch.zeros(1, 16_000)) == torch.tensor(1e-7).log())


def test_a_loud_moment_changes_nothing_elsewhere() -> None:
    # Unlike the log-mel, whose floor depends on the loudest bin of the clip.
    quiet = torch.zeros(1, 16_000)
    loud = quiet.clone()
    loud[:, 8_000] = 1
    mel = AcousticMel(AcousticSpec(n_mels=100))
    changed = (mel(loud) != mel(quiet)).any(dim=1)[0].nonzero().flatten()

    assert changed.tolist() == list(range(47, 54))  # frames whose window has the click in it, but not at its edge
