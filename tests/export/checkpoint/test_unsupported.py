"""What is given as a checkpoint and is none: each is called by its name, and the message says what to give instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.checkpoint.unsupported import plain_repository
from dasheng_edge.export.files.pull_record import PULL_RECORD, Origin
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointNotFoundError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint, write_tiny_dasheng_torch


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "mine" / "checkpoint"))


def change_config(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(content))


def quantize(folder: Path) -> None:
    """Say so in the configuration, and store a scale beside a weight."""
    change_config(folder, quantization_config={"quant_method": "fp8"})
    scale = {"blocks.0.attn.qkv.weight_scale": torch.ones(1)}
    save_file(load_file(folder / "model.safetensors") | scale, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("midashenglm-7b-1021-fp8", "mispeech/midashenglm-7b-1021-bf16"),
        ("midashenglm-7b-1021-w4a16-gptq", "mispeech/midashenglm-7b-1021-bf16"),
        ("midashenglm-7b-fp8", "mispeech/midashenglm-7b-bf16"),
        ("MiDashengLM-7B-w4a16-gptq", "mispeech/midashenglm-7b-bf16"),
        ("midashenglm-7b-0804-awq", "mispeech/midashenglm-7b-0804-fp32"),
        ("midashenglm-0.6b-gguf", "mispeech/midashenglm-0.6b-fp32"),
        ("midashenglm-7b-1021-4bit", "mispeech/midashenglm-7b-1021-bf16"),
    ],
)
def test_a_quantized_repository_is_refused_with_the_one_to_use(checkpoint: Path, name: str, repository: str) -> None:
    assert plain_repository([name]) == repository
    folder = checkpoint.rename(checkpoint.with_name(name))
    quantize(folder)
    with pytest.raises(
        CheckpointVariantError, match=rf"\(quant_method 'fp8'\).*; export {repository}, and let --decoder"
    ):
        open_checkpoint(folder)
    renamed = folder.rename(folder.with_name("model"))
    change_config(renamed, _name_or_path=f"/home/somebody/{name}/")
    with pytest.raises(CheckpointVariantError, match=f"export {repository}, and let --decoder"):
        open_checkpoint(renamed)


def test_all_repositories_are_named_where_none_is_told() -> None:
    message = plain_repository(["checkpoint", "midashenglm-9b-fp8"])
    assert message.startswith("one of mispeech/midashenglm-7b-1021-bf16, ")
    assert "mispeech/dasheng-1.2B" in message


def test_a_quantized_encoder_is_refused_with_encoders_to_use(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "encoder", variant="dasheng")
    quantize(folder)
    with pytest.raises(CheckpointVariantError, match="is a quantized checkpoint") as refused:
        open_checkpoint(folder)
    assert str(refused.value).endswith(
        "export one of mispeech/dasheng-base, mispeech/dasheng-0.6B, mispeech/dasheng-1.2B"
    )


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float64, "F64"), (torch.int64, "I64")])
@pytest.mark.parametrize("torch_file", [False, True])
def test_other_types_are_no_quantization(tmp_path: Path, dtype: torch.dtype, stored: str, torch_file: bool) -> None:
    if torch_file:
        path = write_tiny_dasheng_torch(tmp_path / "dasheng.pt")
        content = torch.load(path, weights_only=True)
        content["model"] = {name: tensor.to(dtype) for name, tensor in content["model"].items()}
        torch.save(content, path)
    else:
        path = write_tiny_checkpoint(tmp_path / "mine", variant="dasheng")
        tensors = load_file(path / "model.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path / "model.safetensors")
    with pytest.raises(CheckpointVariantError, match=rf"holds .* in {stored} \(\d+ such.*in float32 or bfloat16") as no:
        open_checkpoint(path)
    assert "quantized" not in str(no.value)


@pytest.mark.parametrize("suffix", ["qweight", "weight_scale", "weight.absmax", "weight_packed", "SCB"])
def test_packed_weights_need_no_config_to_be_refused(checkpoint: Path, suffix: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[f"decoder.model.layers.0.mlp.up_proj.{suffix}"] = torch.zeros(4, dtype=torch.int32)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointVariantError, match=rf"it stores decoder\.model\.layers\.0\.mlp\.up_proj\.{suffix}"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "config",
    [{"model_type": "midashenglm_gen"}, {"model_type": "midashenglm-gen"}, {"architectures": ["MiDashengLMGenModel"]}],
)
def test_midashenglm_gen_is_refused_by_name(checkpoint: Path, config: dict[str, object]) -> None:
    change_config(checkpoint, **config)
    with pytest.raises(CheckpointVariantError, match="is MiDashengLM-Gen"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "midashenglm_spatial"}, {"architectures": ["MiDashengLMSpatialModel"]},
        {"model_type": "midashenglm-spatial-7b"},
    ],
)  # fmt: skip
def test_midashenglm_spatial_is_refused_by_name(checkpoint: Path, config: dict[str, object]) -> None:
    change_config(checkpoint, **config)
    with pytest.raises(CheckpointVariantError, match=r"is MiDashengLM-Spatial .*two channels"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("method", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, "gptq"])
def test_a_quantization_that_plain_weights_have_left_behind_is_to_be_taken_out(
    checkpoint: Path, method: object
) -> None:
    change_config(checkpoint, quantization_config=method)
    with pytest.raises(CheckpointVariantError, match=r"plain weights \(F32\).*remove quantization_config from config"):
        open_checkpoint(checkpoint)


def test_what_a_training_saves_half_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.zeros(0) if tensor.shape else tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointVariantError, match=r"tensors are empty .*DeepSpeed ZeRO-3 .*zero_to_fp32\.py"):
        open_checkpoint(checkpoint)
    name = "decoder.model.layers.0.mlp.up_proj"
    save_file({**tensors, f"{name}.lora_A.default.weight": torch.zeros(4, 256)}, file)
    with pytest.raises(CheckpointVariantError, match=r"lora_A\.default\.weight, a part of a LoRA .*merge_and_unload"):
        open_checkpoint(checkpoint)
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointVariantError, match=r"base_layer\.weight, a part of a LoRA"):
        open_checkpoint(checkpoint)


def test_another_model_is_refused_with_its_type(checkpoint: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, checkpoint / "model.safetensors")
    change_config(checkpoint, model_type="qwen2")
    with pytest.raises(CheckpointVariantError, match=r"no patch_embed\.proj\.weight.*model_type 'qwen2', .*: model\)"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "it is a GGUF, which is a result of an export"),
        ("pytorch_model.bin", "it is a pickle, which is not opened"),
        ("model.safetensors", "it is a single file of a checkpoint; give the folder that it lies in"),
        ("notes.txt", "it is a file, expected a local folder"),
    ],
)
def test_a_file_is_refused_by_its_kind(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointNotFoundError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "it is a LoRA adapter; give .* this with --adapter"),
        (["adapter_config.json", "optimizer.pt"], "it is a LoRA adapter"),
        (["manifest.json", "decoder.gguf"], "it is a bundle"),
        (["final/config.json", "checkpoint-20/adapter_config.json"], r"give the merged model in it, .*final$"),
        (["checkpoint-20/adapter_config.json", "checkpoint-3/adapter_config.json"], r".*checkpoint-20 with --adapter"),
        (
            ["final/adapter_config.json", "checkpoint-3/adapter_config.json"],
            r"started from, and .*final with --adapter",
        ),
        (["checkpoint-20/config.json"], r"the output of a training; give the model in it, .*checkpoint-20$"),
        (["midashenglm-0.6b-q4_k_m.gguf"], r"a result of an export; give one of mispeech/"),
        (["midashenglm-0.6b-gguf-q4.gguf", "config.json"], r"give mispeech/midashenglm-0\.6b-fp32$"),
        (["readme.txt"], r"no config\.json in it"),
    ],
)
def test_a_folder_is_refused_by_what_lies_in_it(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(CheckpointNotFoundError, match=message):
        open_checkpoint(tmp_path)


def test_a_merged_model_of_a_training_is_opened_as_it_is(checkpoint: Path) -> None:
    final = checkpoint.rename(checkpoint.with_name("final"))
    assert open_checkpoint(final).name == "mine"
    change_config(final, _name_or_path="mispeech/midashenglm-7b-1021-bf16")
    assert open_checkpoint(final).name == "midashenglm-7b-1021-bf16"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("bells", "bells"), ("dasheng-0.6B", "dasheng-0.6B"), ("bells/checkpoint-300", "bells"),
        ("runs/merged", "runs"), ("models--a--bells/snapshots/" + "0" * 40, "bells"),
    ],
)  # fmt: skip
def test_a_checkpoint_has_a_telling_name(tiny_checkpoint: Path, tmp_path: Path, folder: str, name: str) -> None:
    opened = open_checkpoint(shutil.copytree(tiny_checkpoint, tmp_path / folder))
    assert (opened.name, opened.origin) == (name, None)


def test_a_pulled_checkpoint_knows_where_it_is_from(checkpoint: Path) -> None:
    record = {"repo": "mispeech/midashenglm-7b-1021-bf16", "revision": "f7b0fdb745fc"}
    (checkpoint / PULL_RECORD).write_text(json.dumps(record))
    opened = open_checkpoint(checkpoint)

    assert opened.origin == Origin(**record)
    assert opened.name == "midashenglm-7b-1021-bf16"
    (checkpoint / PULL_RECORD).write_text(json.dumps({"repo": "mispeech/midashenglm-7b-1021-bf16"}))
    with pytest.raises(CheckpointFileError, match=r"dasheng-edge\.json: revision is missing; remove it, or pull"):
        open_checkpoint(checkpoint)
