"""Sizes that a checkpoint states: what contradicts its tensors, or cannot be computed, is refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.variants.spectrograms import AcousticMel, LogMel
from dasheng_edge.export.variants.table import VARIANTS
from dasheng_edge.runtime.errors import CheckpointError, CheckpointFileError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

SECTIONS = {
    "midashenglm": "audio_encoder_config", "midashenglm-tokenizer": "audio_encoder_config", "dasheng": "encoder_kwargs",
}  # fmt: skip
ACOUSTIC = "audio_encoder.front_end.mel_spec."
LAYER = "decoder.model.layers.{}.self_attn."


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {name: write_tiny_checkpoint(folder / name, variant=name) for name in VARIANTS}


class Copies:
    """Copies of the tiny checkpoints, with other statements in them; the weights are linked, unless they change."""

    def __init__(self, originals: dict[str, Path], folder: Path) -> None:
        self._originals = originals
        self._folder = folder

    def __call__(self, variant: str, section: str = "", /, **stated: object) -> Path:
        copy = self._folder / f"{variant}-{len(list(self._folder.iterdir()))}"
        copy.mkdir()
        for path in self._originals[variant].iterdir():
            (copy / path.name).symlink_to(path)
        config = json.loads((copy / "config.json").read_text())
        config[section or SECTIONS[variant]].update(stated)
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps(config))
        return copy


@pytest.fixture
def copies(originals: dict[str, Path], tmp_path: Path) -> Copies:
    return Copies(originals, tmp_path)


def change_tensors(folder: Path, changed: dict[str, Any]) -> None:
    """Replace tensors by name; None takes one out."""
    tensors = load_file(folder / "model.safetensors") | changed
    (folder / "model.safetensors").unlink()
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


WITHOUT_BUFFERS = {f"{ACOUSTIC}mel_scale.fb": None, f"{ACOUSTIC}spectrogram.window": None}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"n_fft_patch": 2048}, "n_fft_patch = 2048, but .* have 1024"),
        ({"win_length_patch": 800}, "win_length_patch = 800, but .* have 1024"),
        ({"n_fft": 4096}, "n_fft is 4096, expected 512, which the log-mel has, or 1024, which the acoustic mel has"),
        ({"win_length": 400}, "win_length is 400, expected 512, which the log-mel has, or 1024"),
    ],
)
def test_a_statement_that_the_stored_filterbank_contradicts_is_refused(
    copies: Copies, stated: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(copies("midashenglm-tokenizer", **stated))


@pytest.mark.parametrize(
    ("stated", "windows"),
    [
        ({"n_fft": 1024, "win_length": 800}, (1024, 800)),
        ({"n_fft": 2048}, (2048, 2048)),
        ({"n_fft": 512, "win_length": 512}, (1024, 1024)),
        ({"n_fft_patch": 800, "win_length_patch": 640}, (800, 640)),
        ({"n_fft_patch": None, "win_length_patch": None}, (1024, 1024)),
    ],
)
def test_a_stated_window_is_the_acoustic_spectrograms(
    copies: Copies, stated: dict[str, object], windows: tuple[int, int]
) -> None:
    folder = copies("midashenglm-tokenizer", **stated)
    change_tensors(folder, WITHOUT_BUFFERS)
    spec = open_checkpoint(folder).front_end

    assert spec.acoustic is not None
    assert (spec.acoustic.n_fft, spec.acoustic.win_length) == windows
    assert (spec.n_fft, spec.win_length) == (512, 512)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"win_length": 400}, "win_length is 400, expected 512, which the log-mel has, or 1024"),
        ({"n_fft": 512, "win_length": 400}, "win_length is 400, expected 512"),
        ({"n_fft_patch": 2048, "n_fft": 1024}, "n_fft is 1024, expected 512, which the log-mel has, or 2048"),
        ({"f_min_patch": 7000.0, "f_max_patch": 100.0}, "expected f_min_patch 7000 < f_max_patch 100"),
        ({"f_min_patch": 8000.0}, "expected f_min_patch 8000 < f_max_patch 8000"),
        ({"n_fft_patch": 8, "win_length_patch": 1024}, "n_fft is 8, expected at least win_length, 1024"),
        ({"n_fft_patch": 801}, "acoustic spectrogram: n_fft is 801, expected a multiple of 2"),
        ({"n_fft_patch": 6400}, "acoustic mel has n_fft 6400 .*, and n_fft even and less than 6400"),
    ],
)
def test_acoustic_sizes_that_cannot_be_computed_are_refused(
    copies: Copies, stated: dict[str, object], message: str
) -> None:
    folder = copies("midashenglm-tokenizer", **stated)
    change_tensors(folder, WITHOUT_BUFFERS)
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("variant", "stated"),
    [
        ("dasheng", {"n_fft": 2048}),  # the shortest clip has 640 samples
        ("dasheng", {"n_fft": 1280}),
        ("dasheng", {"n_fft": 513}),
        ("midashenglm", {"n_fft": 6400}),
        ("midashenglm", {"hop_length": 10}),
    ],
)
def test_a_transform_that_some_clips_are_too_short_for_is_refused(
    copies: Copies, variant: str, stated: dict[str, object]
) -> None:
    with pytest.raises(CheckpointFileError, match=r"the log-mel has n_fft \d+ .* even and less than \d+, twice the"):
        open_checkpoint(copies(variant, **stated))


@pytest.mark.parametrize(
    ("variant", "stated"),
    [("dasheng", {"n_fft": 1278}), ("midashenglm", {"n_fft": 6398}), ("midashenglm-tokenizer", {"n_fft_patch": 6398})],
)
def test_the_largest_transform_has_a_frame_at_every_hop(
    copies: Copies, variant: str, stated: dict[str, object]
) -> None:
    folder = copies(variant, **stated)
    if variant == "midashenglm-tokenizer":
        change_tensors(folder, WITHOUT_BUFFERS)
    spec = open_checkpoint(folder).front_end
    waveform = torch.zeros(1, spec.min_samples)

    assert LogMel(spec)(waveform).shape[-1] == spec.frames_of(spec.min_samples)
    if spec.acoustic:
        assert AcousticMel(spec.acoustic, spec.hop_length)(waveform).shape[-1] == spec.frames_of(spec.min_samples)


@pytest.mark.parametrize(
    ("variant", "name", "shape"),
    [
        ("midashenglm-tokenizer", LAYER.format(0) + "q_norm.weight", ()),
        ("midashenglm-tokenizer", LAYER.format(0) + "q_norm.weight", (0,)),
        ("midashenglm-tokenizer", "audio_encoder.patch_embed.weight", (64, 1, 0, 4)),
        ("midashenglm-tokenizer", f"{ACOUSTIC}mel_scale.fb", (1, 20)),
        ("midashenglm", "audio_encoder.patch_embed.proj.weight", (0, 1, 64, 4)),
        ("midashenglm", "audio_encoder.patch_embed.proj.weight", (64, 1, 64, 0)),
        ("midashenglm", "audio_encoder.time_pos_embed", (1, 64, 1, 0)),
        ("midashenglm", "audio_encoder.blocks.0.mlp.fc1.weight", ()),
        ("midashenglm", LAYER.format(0) + "k_proj.weight", (0, 256)),
        ("dasheng", "encoder.blocks.0.mlp.fc1.weight", (0, 64)),
    ],
)
def test_tensors_without_values_are_refused(copies: Copies, variant: str, name: str, shape: tuple[int, ...]) -> None:
    folder = copies(variant)
    change_tensors(folder, {name: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=r"greater than 0"):
        open_checkpoint(folder)


def test_a_head_without_values_is_refused(copies: Copies) -> None:
    folder = copies("midashenglm-tokenizer")
    names = ("decoder.model.embed_tokens.weight", "decoder.lm_head.weight")
    change_tensors(folder, {name: torch.zeros(448, 0) for name in names})
    with pytest.raises(CheckpointVariantError, match=r"embed_tokens\.weight has shape \(448, 0\), expected 2 dim"):
        open_checkpoint(folder)


def test_key_heads_that_do_not_divide_the_heads_are_refused(copies: Copies) -> None:
    folder = copies("midashenglm", "text_config", num_key_value_heads=3)
    change_tensors(folder, {
        f"{LAYER.format(layer)}{name}.{leaf}": torch.zeros(shape)
        for layer in range(2) for name in ("k_proj", "v_proj")
        for leaf, shape in {"weight": (192, 256), "bias": (192,)}.items()
    })  # fmt: skip
    with pytest.raises(CheckpointFileError, match=r"4 attention heads of width 64 do not fit .*k_proj \(192 rows\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("place", [None, "rope_scaling", "rope_parameters"])
def test_a_rotation_of_parts_of_heads_is_refused(copies: Copies, place: str | None) -> None:
    def stated(factor: float | None) -> dict[str, object]:
        return {place: {"partial_rotary_factor": factor}} if place else {"partial_rotary_factor": factor}

    for whole in (1.0, 1, None):
        assert open_checkpoint(copies("midashenglm", "text_config", **stated(whole))).decoder is not None
    with pytest.raises(CheckpointVariantError, match=r"asks for partial_rotary_factor 0\.5, only the rotation of who"):
        open_checkpoint(copies("midashenglm", "text_config", **stated(0.5)))


def with_extractor(folder: Path, stated: dict[str, object]) -> Path:
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("dasheng", "center", False), ("dasheng", "sampling_rate", 8000), ("dasheng", "feature_size", 128),
        ("dasheng", "n_mels", 128), ("dasheng", "top_db", 80), ("dasheng", "do_normalize", True),
        ("midashenglm", "do_normalize", True), ("midashenglm", "sampling_rate", 8000),
        ("midashenglm-tokenizer", "do_normalize", True), ("midashenglm-tokenizer", "sampling_rate", 8000),
    ],
)  # fmt: skip
def test_a_feature_extractor_that_does_something_else_is_refused(
    copies: Copies, variant: str, key: str, value: object
) -> None:
    with pytest.raises(CheckpointFileError, match=rf"preprocessor_config\.json says {key} = {value}, but the tensors"):
        open_checkpoint(with_extractor(copies(variant), {key: value}))


@pytest.mark.parametrize(
    ("variant", "stated"),
    [
        ("dasheng", {}),
        ("midashenglm", {}),
        (  # what the extractor of Dasheng's Hugging Face code writes
            "dasheng",
            {
                "center": True, "f_max": 8000, "f_min": 0, "feature_extractor_type": "DashengFeatureExtractor",
                "feature_size": 64, "hop_size": 160, "n_fft": 512, "padding_side": "right", "padding_value": 0.0,
                "return_attention_mask": False, "sampling_rate": 16000, "win_size": 512,
            },
        ),
        (  # Wav2Vec2's takes samples, one at a time
            "midashenglm",
            {
                "do_normalize": False, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
                "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 16000,
            },
        ),
    ],
)  # fmt: skip
def test_the_published_feature_extractors_are_those(copies: Copies, variant: str, stated: dict[str, object]) -> None:
    spec = open_checkpoint(with_extractor(copies(variant), stated)).front_end

    assert (spec.n_fft, spec.win_length, spec.hop_length, spec.n_mels) == (512, 512, 160, 64)
