"""Reading checkpoints: sizes from tensors, and one clear refusal for everything that cannot be exported."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.files.json_files import read_json
from dasheng_edge.export.files.tensor_files import row_blocks
from dasheng_edge.export.variants.specs import EncoderSpec
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointNotFoundError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import tiny_shapes, write_tiny_checkpoint

Tensors = dict[str, Any]
SHARDS = 3


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "sharded", shards=SHARDS)


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, section: str | None = None, **values: object) -> None:
    content = json.loads(path.read_text())
    (content[section] if section else content).update(values)
    path.write_text(json.dumps(content))


def test_sizes_are_read_from_the_tensors(tiny_checkpoint: Path) -> None:
    opened = open_checkpoint(tiny_checkpoint)

    assert opened.encoder == EncoderSpec(embed_dim=64, depth=2, num_heads=2)
    assert (opened.front_end.chunk_patches, opened.front_end.tokens_patches) == (252, 5)
    assert opened.decoder is not None
    assert (opened.decoder.hidden_size, opened.decoder.layers, opened.decoder.vocab_size) == (256, 2, 448)
    assert (opened.decoder.kv_heads, opened.decoder.head_dim) == (2, 64)
    assert set(opened.sources) == set(tiny_shapes()) - {"audio_encoder.init_bn.num_batches_tracked"}


def test_sizes_are_found_where_config_json_is_silent(checkpoint: Path) -> None:
    # transformers stores only what differs from its defaults, which are not the tensors' sizes.
    config = json.loads((checkpoint / "config.json").read_text())
    config["audio_encoder_config"] = {"num_heads": 2}
    config["text_config"] = {"num_attention_heads": 4, "rope_parameters": {"rope_theta": 5e5}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(checkpoint)

    assert (opened.encoder.embed_dim, opened.front_end.n_fft) == (64, 512)
    assert opened.decoder is not None
    assert (opened.decoder.rope_theta, opened.decoder.context_length) == (5e5, 32768)


def test_shards_hold_the_same_model_as_one_file(tiny_checkpoint: Path, sharded: Path) -> None:
    one, many = open_checkpoint(tiny_checkpoint), open_checkpoint(sharded)

    assert len(many.files) == SHARDS
    assert one.sources.keys() == many.sources.keys()
    assert all(torch.equal(one.rows(name, 0, 9), many.rows(name, 0, 9)) for name in one.sources)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_float32(tiny_checkpoint: Path, tmp_path: Path, dtype: Any) -> None:
    full, half = open_checkpoint(tiny_checkpoint), open_checkpoint(write_tiny_checkpoint(tmp_path / dtype, dtype=dtype))
    name = "decoder.model.layers.1.mlp.up_proj.weight"
    rows = half.rows(name, 5, 7)

    assert rows.dtype == torch.float32
    assert torch.equal(rows, full.rows(name, 5, 7).to(getattr(torch, dtype)).float())


def test_other_writers_names_are_known(checkpoint: Path) -> None:
    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".init_bn." in name]:
            tensors[name.replace("init_bn.", "init_bn.1.")] = tensors.pop(name)
        tensors["audio_encoder.front_end.0.mel_scale.fb"] = torch.zeros(257, 64)
        tensors["audio_encoder.front_end.0.spectrogram.window"] = torch.zeros(512)

    before = open_checkpoint(checkpoint).rows("audio_encoder.init_bn.weight", 0, 64)
    change_tensors(checkpoint, rename)

    assert torch.equal(open_checkpoint(checkpoint).rows("audio_encoder.init_bn.weight", 0, 64), before)


def test_hash_covers_the_tensor_files(sharded: Path) -> None:
    before = open_checkpoint(sharded).sha256()
    change_json(sharded / "generation_config.json", max_new_tokens=5)
    assert open_checkpoint(sharded).sha256() == before

    last = max(sharded.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    assert open_checkpoint(sharded).sha256() != before


def test_hash_covers_files_of_ignored_tensors(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    buffer = "audio_encoder.front_end.0.spectrogram.window"
    save_file({buffer: torch.zeros(512)}, sharded / "model-buffers.safetensors")
    content["weight_map"][buffer] = "model-buffers.safetensors"
    index.write_text(json.dumps(content))
    shards = sorted(sharded.glob("*.safetensors"))

    assert open_checkpoint(sharded).files == tuple(shards)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()
    assert open_checkpoint(sharded).sha256() == digest


def test_blocks_of_rows_cover_a_tensor_once() -> None:
    assert list(row_blocks((10, 4), block_bytes=64)) == [(0, 4), (4, 8), (8, 10)]
    assert list(row_blocks((2, 1000), block_bytes=64)) == [(0, 1), (1, 2)]
    assert list(row_blocks((5,), block_bytes=64)) == [(0, 5)]
    assert list(row_blocks((5, 0), block_bytes=64)) == [(0, 5)]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="it does not exist"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointNotFoundError, match="it is a file"):
        open_checkpoint(tiny_checkpoint / "config.json")
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"no model\.safetensors and no "):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"pytorch_model\.bin is a pickle, which is not opened"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read"), ("[1]", "a list, expected a JSON object"), ("[" * 100_000, r"cannot read .*config\.json")],
)
def test_a_broken_config_is_refused(checkpoint: Path, text: str, message: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(checkpoint)


def test_a_link_to_nothing_is_no_absent_file(checkpoint: Path) -> None:
    path = checkpoint / "generation_config.json"
    path.unlink()
    assert read_json(path, missing_ok=True) == {}
    path.symlink_to(checkpoint / "blobs" / "gone")
    with pytest.raises(CheckpointFileError, match=r"cannot read .*generation_config\.json: .*; download"):
        read_json(path, missing_ok=True)


@pytest.mark.parametrize("config", [{"quant_method": "fp8"}, "gptq"])
def test_a_quantized_repository_is_refused(checkpoint: Path, config: object) -> None:
    change_json(checkpoint / "config.json", quantization_config=config)
    scale = {"audio_encoder.blocks.0.attn.qkv.weight_scale": torch.ones(1)}
    change_tensors(checkpoint, lambda tensors: tensors.update(scale))
    with pytest.raises(
        CheckpointVariantError, match=r"is a quantized checkpoint \(quant_method '(fp8|gptq)'\).*export one"
    ):
        open_checkpoint(checkpoint)


def test_packed_weights_are_refused(checkpoint: Path) -> None:
    name = "audio_encoder.blocks.0.attn.qkv.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointVariantError, match="it holds F8_E4M3 weights"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("keep", [5, 1000, -100], ids=["in its first bytes", "in its header", "in its data"])
def test_a_truncated_shard_is_refused(sharded: Path, keep: int) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointFileError, match=rf"{shard.name} is truncated or not safetensors"):
        open_checkpoint(sharded)


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointFileError, match=rf"{shard.name} is missing"):
        open_checkpoint(sharded)


def test_a_tensor_is_read_from_the_shard_that_the_index_says(sharded: Path, tiny_checkpoint: Path) -> None:
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    name, file = next(item for item in weight_map.items() if item[0].endswith("up_proj.weight"))
    for shard in set(weight_map.values()) - {file}:  # of another revision, which cut the shards elsewhere
        tensors = load_file(sharded / shard)
        save_file(tensors | {name: torch.zeros(512, 256)}, sharded / shard)

    assert open_checkpoint(sharded).sources[name].file.name == file
    assert torch.equal(open_checkpoint(sharded).rows(name, 0, 512), open_checkpoint(tiny_checkpoint).rows(name, 0, 512))


def test_a_wrong_index_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    moved, file = next(iter(json.loads(index.read_text())["weight_map"].items()))
    other = next(path.name for path in sharded.glob("*.safetensors") if path.name != file)
    for weight_map, message in [
        ({}, "no weight_map"),
        ({"decoder.x": file}, r"holds decoder\.x, which it does not"),
        ({moved: other}, rf"{other} holds {moved}, which it does not"),
        ({"decoder.x": "../other.safetensors"}, "expected a file name inside the folder"),
        ({"decoder.x": 3}, "names 3, expected a file name"),
        ({"decoder.x": [file]}, r"names \[.*\], expected a file name"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointFileError, match=message):
            open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.model.layers.0.self_attn.q_norm.weight", r"both of q_proj\.bias \(Qwen2\) and q_norm\.weight"),
        ("audio_encoder.model.norm.weight", r"1 are unexpected \(audio_encoder\.model\.norm\.weight\)"),
        ("other.patch_embed.proj.weight", r"several tensors patch_embed\.proj\.weight \(audio_encoder\..*, other\."),
        ("audio_encoder.init_bn.1.bias", r"init_bn\.1\.bias and audio_encoder\.init_bn\.bias are one tensor"),
        ("decoder.extra", r"0 tensors are missing \(none\) and 1 are unexpected \(decoder\.extra\)"),
    ],
)
def test_tensors_of_another_variant_are_named(checkpoint: Path, name: str, message: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(64)}))
    with pytest.raises(CheckpointVariantError, match=message):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("audio_projector.net.0.weight", r"it has no net\.0\.weight, expected one, under any prefix"),
        ("audio_encoder.time_pos_embed", r"it has no audio_encoder\.time_pos_embed"),
        ("decoder.model.layers.0.self_attn.q_proj.bias", r"neither of q_proj\.bias"),
        ("audio_projector.net.2.bias", r"1 tensors are missing \(audio_projector\.net\.2\.bias\)"),
    ],
)
def test_missing_tensors_are_named(checkpoint: Path, name: str, message: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointVariantError, match=message):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("audio_encoder.patch_embed.proj.weight", (64, 256), "expected 4 dimensions"),
        ("audio_encoder.blocks.1.mlp.fc2.weight", (64, 255), r"\(64, 255\), expected \(64, 256\)"),
    ],
)
def test_wrong_shapes_are_named(checkpoint: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(CheckpointVariantError, match=message):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("audio_encoder_config", "embed_dim", 768),
        ("audio_encoder_config", "depth", 3),
        ("audio_encoder_config", "target_length", 1012),
        ("audio_encoder_config", "qkv_bias", False),
        ("audio_encoder_config", "sample_rate", 48_000),
        (None, "subsample_factor", 4),
        ("text_config", "num_hidden_layers", 28),
        ("text_config", "vocab_size", 152_064),
        ("text_config", "num_key_value_heads", 4),
        ("text_config", "hidden_act", "gelu"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    checkpoint: Path, section: str | None, key: str, value: object
) -> None:
    change_json(checkpoint / "config.json", section, **{key: value})
    with pytest.raises(CheckpointFileError, match=rf"{key} = {value!r}, but the tensors .* have"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            None,
            {"audio_encoder_config": None},
            r"config\.json: audio_encoder_config is None, expected a JSON object; take",
        ),
        (None, {"audio_encoder_config": [1]}, r"audio_encoder_config is \[1\], expected a JSON object"),
        (None, {"text_config": None}, r"config\.json: text_config is None, expected a JSON object; take config\.json"),
        (
            "audio_encoder_config",
            {"num_heads": 0},
            "audio_encoder_config: num_heads is 0, expected greater than 0; take",
        ),
        ("audio_encoder_config", {"num_heads": "4"}, "num_heads is '4', expected a valid integer"),
        ("audio_encoder_config", {"n_fft": "abc"}, "n_fft is 'abc', expected a valid integer"),
        ("audio_encoder_config", {"hop_length": 0}, "hop_length is 0, expected greater than 0"),
        (
            "audio_encoder_config",
            {"win_length": 513},
            "audio_encoder_config is .*, expected win_length 513 <= n_fft 512",
        ),
        ("audio_encoder_config", {"f_min": 8000}, "audio_encoder_config is .*, expected f_min 8000 < f_max 8000"),
        ("audio_encoder_config", {"f_max": 9000}, "f_max is 9000, expected less than or equal to 8000"),
        ("text_config", {"num_attention_heads": 0}, "text_config: num_attention_heads is 0, expected greater than 0"),
        ("text_config", {"rms_norm_eps": None}, "rms_norm_eps is None, expected a valid number"),
        ("text_config", {"rope_theta": "1e6"}, "rope_theta is '1e6', expected a valid number"),
        ("text_config", {"rope_theta": float("inf")}, "rope_theta is inf, expected a finite number"),
        ("text_config", {"rope_scaling": "yarn"}, "text_config: rope_scaling is 'yarn', expected a JSON object"),
        (
            "text_config",
            {"max_position_embeddings": 4096.5},
            r"max_position_embeddings is 4096\.5, expected a valid int",
        ),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(
    checkpoint: Path, section: str | None, values: dict[str, object], message: str
) -> None:
    change_json(checkpoint / "config.json", section, **values)
    with pytest.raises(CheckpointFileError, match=message):
        open_checkpoint(checkpoint)


def test_heads_that_do_not_divide_are_refused(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", "text_config", num_attention_heads=3)
    with pytest.raises(CheckpointFileError, match="3 attention heads"):
        open_checkpoint(checkpoint)
    change_json(checkpoint / "config.json", "audio_encoder_config", num_heads=3)
    with pytest.raises(CheckpointFileError, match=r"config\.json: 3 heads do not divide embed_dim 64"):
        open_checkpoint(checkpoint)


def test_scaled_rotation_is_refused(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", "text_config", rope_scaling={"rope_type": "yarn", "factor": 4})
    with pytest.raises(CheckpointVariantError, match="rope_scaling 'yarn'"):
        open_checkpoint(checkpoint)
    change_json(checkpoint / "config.json", "text_config", rope_scaling=None, rope_parameters={"rope_type": "linear"})
    with pytest.raises(CheckpointVariantError, match="rope_scaling 'linear'"):
        open_checkpoint(checkpoint)
