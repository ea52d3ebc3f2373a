"""Synthetic checkpoints: the published names, shapes and sums, files that others read, and values that stay sane."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.places import MICRO
from benchmarks.synthetic.checkpoint import TOKENIZER, Request, Written, main, write_checkpoint
from benchmarks.synthetic.shapes import (
    ARCHITECTURES,
    PARAMETERS,
    TENSORS,
    Architecture,
    Decoder,
    Edition,
    Name,
    architecture,
    parameters,
    shapes,
)
from benchmarks.synthetic.tokenizer import AUDIO_TOKENS, qwen3_added_tokens, write_tokenizer
from benchmarks.synthetic.weights import distribution, hann_window, mel_filterbank, tensor_bytes
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint

TINY_QWEN2 = Decoder("qwen2", 64, 128, 2, 4, 2, 16, rows=600, positions=512, tied=False)
TINY_QWEN3 = Decoder("qwen3", 64, 128, 2, 4, 2, 32, rows=600, positions=512, tied=True)
TINY: dict[str, Architecture] = {
    "7b": replace(ARCHITECTURES["7b"], embed_dim=64, depth=2, heads=4, decoder=TINY_QWEN2),
    "7b-0804": replace(architecture("7b", "0804"), embed_dim=64, depth=2, heads=4, decoder=TINY_QWEN2),
    "0.6b": replace(ARCHITECTURES["0.6b"], embed_dim=64, depth=2, heads=4, decoder=TINY_QWEN3),
    "dasheng-base": replace(ARCHITECTURES["dasheng-base"], embed_dim=64, depth=2, heads=4),
}


def write(folder: Path, name: str, **changes: Any) -> tuple[Path, Written]:
    request = Request(TINY[name], folder / name, "fp32", tokenizer=None)
    return folder / name, write_checkpoint(replace(request, **changes))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_parameters_add_up_to_the_published_ones(name: Name) -> None:
    assert parameters(shapes(architecture(name))) == PARAMETERS[name]


@pytest.mark.parametrize("edition", ["0804", "1021"])
def test_the_7b_has_as_many_tensors_as_loaders_report(edition: Edition) -> None:
    stored = shapes(architecture("7b", edition))
    assert len(stored) == TENSORS[edition]
    assert sum(parameters(stored).values()) == 8_281_739_904  # "all params" of peft, without the adapter's


def test_the_decoders_are_those_of_transformers() -> None:

    for model in (ARCHITECTURES["7b"], ARCHITECTURES["0.6b"]):
        assert model.decoder
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in _reference(model.decoder).state_dict().items()}
        if model.decoder.tied:
            del wanted["lm_head.weight"]
        stored = shapes(model)
        assert {k.removeprefix("decoder."): v for k, v in stored.items() if k.startswith("decoder.")} == wanted


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_values_have_the_distribution_that_is_asked_for(dtype: Any) -> None:
    model, name, shape = TINY["7b"], "audio_encoder.blocks.0.mlp.fc2.weight", (3000, 2000)
    blocks = [*tensor_bytes(name, shape, model, dtype=dtype, seed=1)]
    stored = np.concatenate(blocks)
    values = torch.from_numpy(stored) if dtype == "fp32" else torch.from_numpy(stored).view(torch.bfloat16).float()
    spread = 1 / math.sqrt(2 * model.depth * 2000)
    assert values.shape == (6_000_000,)
    assert abs(float(values.mean())) < 4 * spread / math.sqrt(6e6)
    assert float(values.std()) == pytest.approx(spread, rel=2e-3)
    kurtosis = float(((values / values.std()) ** 4).mean())
    assert kurtosis == pytest.approx(3, abs=0.02)  # normal
    half = values[: values.numel() // 2]
    correlation = float((half * values[values.numel() // 2 :]).mean()) / spread**2
    assert abs(correlation) < 4 / math.sqrt(3e6)  # no block repeats another


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    wide, narrow = (
        next(tensor_bytes("decoder.lm_head.weight", (600, 64), TINY["7b"], dtype=dtype, seed=2))
        for dtype in ("fp32", "bf16")
    )
    assert torch.equal(torch.from_numpy(wide).to(torch.bfloat16), torch.from_numpy(narrow).view(torch.bfloat16))


def test_tensors_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    first = load_file(write(tmp_path / "a", "dasheng-base")[0] / "model.safetensors")
    again = load_file(write(tmp_path / "b", "dasheng-base")[0] / "model.safetensors")
    other = load_file(write(tmp_path / "c", "dasheng-base", seed=1)[0] / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = [name for name in first if not torch.equal(first[name], other[name])]
    assert len(differ) == len(first) - 1  # all but the counter
    assert not torch.equal(first["encoder.blocks.0.attn.qkv.weight"], first["encoder.blocks.1.attn.qkv.weight"])


def test_the_window_is_torchs() -> None:
    assert np.abs(hann_window(512) - torch.hann_window(512).numpy()).max() < 1e-6


def test_the_filterbank_is_that_of_the_front_end() -> None:
    from dasheng_edge.export.variants.spectrograms import mel_filterbank as reference

    spec = open_checkpoint(MICRO / "checkpoint").front_end
    assert np.abs(mel_filterbank(257, 64) - reference(spec).numpy().reshape(257, 64)).max() < 1e-5


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", list(TINY))
def test_shards_are_read_by_safetensors(tmp_path: Path, name: str, dtype: Any) -> None:
    folder, written = write(tmp_path, name, dtype=dtype, max_shard_bytes=200_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == written.shards >= 2
    assert all((folder / file).stat().st_size < 250_000 for file in files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        part = load_file(folder / file)
        assert all(index["weight_map"][key] == file for key in part)
        tensors |= part
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes(TINY[name])
    assert sum(value.nbytes for value in tensors.values()) == index["metadata"]["total_size"] == written.tensor_bytes
    kinds = {value.dtype for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    assert kinds == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    assert all(bool(value.isfinite().all()) for value in tensors.values())


@pytest.mark.parametrize("name", list(TINY))
def test_the_exporter_opens_it(tmp_path: Path, name: str) -> None:
    folder, _ = write(tmp_path, name)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.parameters("audio_encoder.") == parameters(shapes(TINY[name]))["encoder"]


def test_an_output_that_is_there_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert main(["dasheng-base", str(tmp_path / "out"), "--layers", "1"]) == 1
    assert "already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"takes 16\.6 GB and its disk has 0\.0 GB left"):
        write_checkpoint(Request(ARCHITECTURES["7b"], tmp_path / "out", "bf16"))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_after_an_interruption(tmp_path: Path) -> None:
    def interrupt(size: int) -> None:
        raise KeyboardInterrupt(size)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(Request(TINY["7b"], tmp_path / "out", "bf16", tokenizer=None), interrupt)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the embedding has 100 rows"):
        write_tokenizer(tmp_path, "qwen2", None, rows=100)


def test_the_command_ends_with_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "base"
    assert main(["dasheng-base", str(out), "--dtype", "bf16", "--seed", "3", "--layers", "1"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["bytes"] == sum(v.nbytes for v in load_file(out / "model.safetensors").values())
    assert facts["parameters"] == parameters(shapes(ARCHITECTURES["dasheng-base"].shrunken(1)))
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["encoder_kwargs"]["depth"]) == ("dasheng", 1)


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason="the Qwen2.5-Omni tokenizer is not here")
@pytest.mark.parametrize(("arch", "rows", "audio_id"), [("qwen2", 152_064, 151_646), ("qwen3", 151_936, 151_669)])
def test_transformers_reads_the_tokenizer(tmp_path: Path, arch: Any, rows: int, audio_id: int) -> None:
    from transformers import Qwen2TokenizerFast

    ids = write_tokenizer(tmp_path, arch, TOKENIZER, rows)
    tokenizer = Qwen2TokenizerFast.from_pretrained(str(tmp_path), local_files_only=True)
    assert ids.audio == audio_id == tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    text = "a bell<|audio_bos|><|AUDIO|><|audio_eos|> rings<|im_end|>"
    encoded = [int(i) for i in tokenizer(text)["input_ids"]]
    assert tokenizer.decode(encoded) == text
    assert encoded[-1] == ids.im_end == 151_645
    assert [tokenizer.convert_tokens_to_ids(t) for t in AUDIO_TOKENS] == [audio_id, audio_id + 1, audio_id + 2]


def test_qwen3s_added_tokens_end_with_the_audio_tokens() -> None:
    added = {token["content"]: token["id"] for token in qwen3_added_tokens()}
    assert (added["<|box_start|>"], added["<tool_call>"], added["</think>"]) == (151_648, 151_657, 151_668)
    assert added["<|AUDIO|>"] == 151_669


def _reference(text: Decoder) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": text.hidden, "intermediate_size": text.intermediate, "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads, "num_key_value_heads": text.kv_heads, "vocab_size": text.rows,
        "max_position_embeddings": text.positions, "tie_word_embeddings": text.tied, "rope_theta": 1e6,
    }  # fmt: skip
    if text.arch == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    return Qwen3ForCausalLM(Qwen3Config(head_dim=text.head_dim, **sizes))


def _rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def _weights(model: Architecture, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(
            np.concatenate([*tensor_bytes(name, shape, model, dtype="fp32", seed=0)])
        ).reshape(shape)
        for name, shape in shapes(model).items()
        if name.startswith(prefix)
    }


@torch.inference_mode()
def test_activations_neither_vanish_nor_explode_through_32_encoder_blocks() -> None:
    model = replace(ARCHITECTURES["7b"], embed_dim=128, heads=4)
    w = _weights(model, "audio_encoder.")
    mel = -20 + 18 * torch.randn(1, 64, 400, generator=torch.Generator().manual_seed(0))
    statistics = (w["init_bn.running_mean"], w["init_bn.running_var"], w["init_bn.weight"], w["init_bn.bias"])
    x = F.conv2d(F.batch_norm(mel, *statistics)[:, None], w["patch_embed.proj.weight"], stride=4)
    x = (x + w["time_pos_embed"][..., :100] + w["freq_pos_embed"]).flatten(2).transpose(1, 2)
    sizes = [_rms(x)]

    def linear(y: Tensor, name: str) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    for block in (f"blocks.{i}" for i in range(model.depth)):
        y = F.layer_norm(x, (128,), w[f"{block}.norm1.weight"], w[f"{block}.norm1.bias"])
        q, k, v = linear(y, f"{block}.attn.qkv").reshape(1, 100, 3, 4, 32).permute(2, 0, 3, 1, 4)
        assert 0.3 < float((q @ k.mT / math.sqrt(32)).std()) < 3  # no softmax is flat or saturated
        x = x + linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        y = F.layer_norm(x, (128,), w[f"{block}.norm2.weight"], w[f"{block}.norm2.bias"])
        x = x + linear(F.gelu(linear(y, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        sizes.append(_rms(x))
    assert 0.5 < min(sizes) <= max(sizes) < 3
    assert _rms(x - x.mean(1, keepdim=True)) > 0.3  # patches still differ


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_the_decoder_hears_the_audio_through_28_layers(arch: Any) -> None:
    tied = arch == "qwen3"
    text = Decoder(arch, 256, 512, 28, 4, 2, 64, rows=2000, positions=512, tied=tied)
    model = replace(ARCHITECTURES["0.6b" if tied else "7b"], decoder=text)
    weights = _weights(model, "decoder.")
    reference = _reference(text)
    reference.load_state_dict(
        weights | {"lm_head.weight": weights.get("lm_head.weight", weights["model.embed_tokens.weight"])}
    )
    generator = torch.Generator().manual_seed(1)
    prompt = weights["model.embed_tokens.weight"][torch.arange(20)]
    audio = 0.7 * torch.randn(4, 30, 256, generator=generator)
    inputs = torch.cat([prompt[:10].expand(4, -1, -1), audio, prompt[10:].expand(4, -1, -1)], 1)
    out = reference(inputs_embeds=inputs, output_hidden_states=True)
    sizes = [_rms(hidden[:, -1]) for hidden in out.hidden_states]
    assert 0.01 < min(sizes) <= max(sizes) < 3
    logits = out.logits[:, -1]
    assert 0.2 < float(logits.std()) < 5
    assert len(set(logits.argmax(-1).tolist())) > 1
    assert float(torch.corrcoef(logits)[0, 1]) < 0.95


def test_norms_are_near_one_and_biases_small() -> None:
    model = TINY["7b"]
    for name in ("audio_encoder.norm.weight", "decoder.model.layers.0.input_layernorm.weight"):
        assert distribution(name, (64,), model).mean == 1
    assert distribution("audio_encoder.norm.bias", (64,), model).mean == 0
    assert distribution("decoder.model.layers.0.self_attn.q_proj.bias", (64,), model).spread == 0.1
