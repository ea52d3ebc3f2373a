"""The oracle is transformers' Llama: whatever is rewritten computes what it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

from benchmarks.micro.training.micro_model import DecoderSpec
from benchmarks.small.conversion.llama_file import EMBEDDING, LAYER_NAMES, LlamaFile, LlamaSizes, read_llama
from benchmarks.small.conversion.rewriting import Tensors, rescaled, widened, with_rows

# SmolLM2's proportions: groups of three heads, which become four.
SIZES = LlamaSizes(
    layers=2, hidden=192, heads=6, kv_heads=2, feed_forward=128, positions=64, norm_eps=1e-5, rope_theta=1e5
)
WIDTH, VOCABULARY = 256, 40
IDS = torch.arange(24)[None] % VOCABULARY


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=SIZES.hidden, num_hidden_layers=SIZES.layers, num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.kv_heads, intermediate_size=SIZES.feed_forward, vocab_size=VOCABULARY,
        max_position_embeddings=SIZES.positions, rms_norm_eps=SIZES.norm_eps, rope_theta=SIZES.rope_theta,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    out: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    for name, tensor in out.named_parameters():
        if "norm" in name:
            tensor.data.uniform_(0.3, 1.5)
        elif tensor.ndim > 1:  # as if read from a file of 4-bit blocks
            tensor.data = on_grid(tensor.data)
    return out


def on_grid(tensor: Tensor) -> Tensor:
    blocks = gguf.quants.quantize(tensor.numpy(), GGMLQuantizationType.Q4_1)
    return torch.from_numpy(gguf.quants.dequantize(blocks, GGMLQuantizationType.Q4_1))


@pytest.fixture(scope="module")
def file(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> LlamaFile:
    return read_llama(write_llama(tmp_path_factory.mktemp("llama") / "model.gguf", model))


def write_llama(path: Path, model: LlamaForCausalLM, architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(SIZES.layers)
    writer.add_embedding_length(SIZES.hidden)
    writer.add_head_count(SIZES.heads)
    writer.add_head_count_kv(SIZES.kv_heads)
    writer.add_feed_forward_length(SIZES.feed_forward)
    writer.add_context_length(SIZES.positions)
    writer.add_layer_norm_rms_eps(SIZES.norm_eps)
    writer.add_rope_freq_base(SIZES.rope_theta)
    writer.add_token_list([chr(ord("!") + index) for index in range(VOCABULARY)])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (VOCABULARY - 1))
    writer.add_token_merges(['" #', "$ %"])
    theirs = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    for layer in range(SIZES.layers):
        theirs |= {f"layers.{layer}.{a}.weight": f"blk.{layer}.{b}.weight" for a, b in LAYER_NAMES.items()}
    for name, tensor in model.model.state_dict().items():
        values = tensor.numpy()
        for rotated, heads in (("q_proj", SIZES.heads), ("k_proj", SIZES.kv_heads)):
            if rotated in name:  # as llama.cpp's own converter does
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        kind = GGMLQuantizationType.Q4_1 if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(theirs[name], gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def logits(tensors: Tensors, spec: DecoderSpec) -> Tensor:
    decoder = Qwen2ForCausalLM(replace(spec, vocab_size=len(tensors[EMBEDDING])).qwen2_config()).eval()
    decoder.model.load_state_dict(tensors)
    out: Tensor = decoder(IDS).logits
    return out


def test_what_is_read_is_what_was_written(file: LlamaFile, model: LlamaForCausalLM) -> None:
    assert file.sizes == replace(SIZES, norm_eps=file.sizes.norm_eps, rope_theta=file.sizes.rope_theta)
    assert (file.sizes.norm_eps, file.sizes.rope_theta) == pytest.approx((1e-5, 1e5))
    assert file.vocabulary.control == ("!",)
    assert file.vocabulary.merges == (('"', "#"), ("$", "%"))
    written = model.model.state_dict()
    assert file.tensors.keys() == written.keys()
    for name, tensor in file.tensors.items():
        torch.testing.assert_close(tensor, written[name], rtol=0, atol=2e-3)  # float16 scales


@pytest.mark.parametrize("rewriting", ["wider", "scaled", "with rows"])
def test_a_rewritten_decoder_computes_the_same(rewriting: str, file: LlamaFile, model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.load_state_dict(file.tensors)
        wanted = model(IDS).logits
    tensors, spec = widened(file.tensors, file.sizes, WIDTH)
    assert (spec.num_attention_heads, spec.num_key_value_heads) == (8, 2)
    if rewriting != "wider":
        tensors = rescaled(tensors, spec, seed=1)
    if rewriting == "with rows":
        tensors = with_rows(tensors, VOCABULARY + 3)
    got = logits(tensors, spec)
    torch.testing.assert_close(got[..., :VOCABULARY], wanted, rtol=1e-5, atol=2e-5)
    assert bool((got[..., VOCABULARY:] < got.amax(-1, keepdim=True)).all())


def requantized_error(tensor: Tensor) -> float:
    return float((on_grid(tensor) - tensor).square().mean().sqrt() / tensor.square().mean().sqrt())


def test_scaled_columns_leave_the_grid_of_four_bits(file: LlamaFile) -> None:
    wide, spec = widened(file.tensors, file.sizes, WIDTH)
    scaled = rescaled(wide, spec, seed=1)
    matrices = [name for name in wide if name.startswith("layers.") and wide[name].ndim > 1]
    assert max(requantized_error(wide[name]) for name in matrices) < 1e-3
    random = requantized_error(torch.from_numpy(np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)))
    assert min(requantized_error(scaled[name]) for name in matrices) > 0.8 * random


def test_what_cannot_be_rewritten_is_refused(file: LlamaFile, model: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width 240 is no multiple of 64"):
        widened(file.tensors, file.sizes, 240)
    with pytest.raises(ValueError, match="architecture 'qwen2'"):
        read_llama(write_llama(tmp_path / "model.gguf", model, "qwen2"))
