"""The exported decoder in llama.cpp against transformers, for each architecture: logits and greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from dasheng_edge.export.adapter.merge import MergedTensors, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.decoder import write_gguf
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text.context import BATCH
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.sampler import Ngrams
from tests.fixtures.tiny_checkpoint import ROWS, write_tiny_adapter, write_tiny_checkpoint
from tests.fixtures.together import together

NEW_TOKENS = 12
BEFORE, AFTER = [382, 338, 198, 385], [386, 300, 301, 383, 198]
ATTENTION = r"^decoder\.model\.layers\.\d+\.self_attn\.[qkvo]_proj$"


def transformers_decoder(merged: MergedTensors) -> Any:
    """Qwen2ForCausalLM or Qwen3ForCausalLM in float32 with the merged weights, without any of the exporter's code."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    spec = merged.checkpoint.decoder
    assert spec is not None
    qwen3 = spec.arch == "qwen3"
    sizes: dict[str, Any] = {
        "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size, "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": spec.context_length, "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope_theta, "tie_word_embeddings": merged.tied,
    }  # fmt: skip
    model: Any = (
        Qwen3ForCausalLM(Qwen3Config(head_dim=spec.head_dim, **sizes))
        if qwen3
        else Qwen2ForCausalLM(Qwen2Config(**sizes))
    )
    missing, unexpected = model.load_state_dict(merged.state_dict("decoder."), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if merged.tied else [])
    return model.eval()


@torch.inference_mode()
def reference(merged: MergedTensors, audio: NDArray[np.float32], **asked: Any) -> tuple[NDArray[np.float32], list[int]]:
    """Logits [rows] behind the prompt, and greedy tokens."""
    model = transformers_decoder(merged)
    embed = model.get_input_embeddings()
    rows = torch.cat([embed(torch.tensor(BEFORE)), torch.from_numpy(audio), embed(torch.tensor(AFTER))])[None]
    logits = model(inputs_embeds=rows).logits[0, -1].numpy()
    tokens = model.generate(
        inputs_embeds=rows, attention_mask=torch.ones(rows.shape[:2]), max_new_tokens=NEW_TOKENS, do_sample=False,
        eos_token_id=None, pad_token_id=0, **asked,
    )  # fmt: skip
    return logits, tokens[0].tolist()


@pytest.fixture(scope="module", params=["midashenglm", "midashenglm-tokenizer"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant: str = request.param
    return write_tiny_checkpoint(tmp_path_factory.mktemp("oracle") / variant, variant=variant)


def opened(folder: Path, adapted: str) -> MergedTensors:
    """The checkpoint alone, with an adapter on its attention, or with one that replaces the embedding too."""
    checkpoint = open_checkpoint(folder)
    if not adapted:
        return MergedTensors(checkpoint)
    saved = ["embed_tokens"] if adapted == "embedding" else None
    adapter = folder.parent / f"{folder.name}-{adapted}"
    write_tiny_adapter(adapter, variant=checkpoint.variant.name, target_modules=ATTENTION, modules_to_save=saved)
    return open_adapters([adapter], checkpoint)


@pytest.mark.parametrize("adapted", ["", "attention", "embedding"])
@pytest.mark.parametrize("audio_rows", [1, 50])
def test_f32_equals_transformers(adapted: str, audio_rows: int, checkpoint: Path, tmp_path: Path) -> None:
    merged = opened(checkpoint, adapted)
    audio = np.random.default_rng(audio_rows).normal(0, 1, (audio_rows, 256)).astype(np.float32)
    want, want_tokens = reference(merged, audio)
    write_gguf(tmp_path / "x.gguf", merged, read_vocabulary(checkpoint, ROWS), "F32")
    decoder = Decoder.open(tmp_path / "x.gguf", EngineSettings(), n_ctx=256)
    try:
        decoder.prefill([tuple(BEFORE), audio, tuple(AFTER)], reserve=NEW_TOKENS)
        error = relative_rms(decoder.logits(), want)
        tokens = list(decoder.generate(NEW_TOKENS))
    finally:
        decoder.close()

    assert error <= 1e-5
    assert tokens == want_tokens[: len(tokens)]
    assert len(tokens) == NEW_TOKENS or tokens[-1] in (381, 383)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngram_size_equals_transformers(size: int, checkpoint: Path, tmp_path: Path) -> None:
    merged = opened(checkpoint, "")
    audio = np.random.default_rng(size).normal(0, 1, (4, 256)).astype(np.float32)
    want = reference(merged, audio, no_repeat_ngram_size=size, repetition_penalty=0.3)[1]  # below 1: it likes to repeat
    write_gguf(tmp_path / "x.gguf", merged, read_vocabulary(checkpoint, ROWS), "F32")
    decoder = Decoder.open(tmp_path / "x.gguf", EngineSettings(), n_ctx=256)
    prompt: list[Any] = [tuple(BEFORE), audio, tuple(AFTER)]
    sampling = Sampling(no_repeat_ngram_size=size, repetition_penalty=0.3)
    try:
        decoder.prefill(prompt, reserve=NEW_TOKENS)
        tokens = list(decoder.generate(NEW_TOKENS, sampling))
        both = together(decoder, [prompt, prompt[:1]], NEW_TOKENS, sampling=sampling)
    finally:
        decoder.close()
    assert tokens == want[: len(tokens)]
    assert len(tokens) == NEW_TOKENS or tokens[-1] in (381, 383)
    assert both[0].tokens == tokens


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(0, 3), max_size=40), size=st.integers(1, 6))
def test_banned_tokens_are_those_of_transformers(tokens: list[int], size: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    ngrams = Ngrams(size)
    for place in range(len(tokens) + 1):
        before: Any = torch.tensor([tokens[:place]], dtype=torch.long)
        even: Any = torch.zeros(1, 4)
        scores = NoRepeatNGramLogitsProcessor(size)(before, even)
        assert sorted({*ngrams.banned()}) == torch.isinf(scores[0]).nonzero().flatten().tolist()
        ngrams.add(tokens[min(place, len(tokens) - 1)] if tokens else 0)


def test_a_tied_head_is_not_stored_twice(checkpoint: Path, tmp_path: Path) -> None:
    merged = opened(checkpoint, "")
    write_gguf(tmp_path / "x.gguf", merged, read_vocabulary(checkpoint, ROWS), "BF16")
    names = gguf_tensors(tmp_path / "x.gguf").keys()

    assert ("output.weight" in names) != merged.tied
    assert ("blk.1.attn_q_norm.weight" in names) == ("blk.1.attn_k_norm.weight" in names) == merged.tied


def test_logits_equal_those_of_transformers(decoder: Decoder, tiny_checkpoint: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]
    for key in ("model_type", "rope_scaling"):  # its three equal sections are what plain RoPE does
        config.pop(key)
    model = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    weights = load_file(tiny_checkpoint / "model.safetensors").items()
    model.load_state_dict({k.removeprefix("decoder."): v for k, v in weights if k.startswith("decoder.")})
    for rows in (1, 7, BATCH - 1, BATCH, BATCH + 1, 1100):
        embeddings = np.random.default_rng(rows).normal(0, 0.5, (rows, decoder.n_embd)).astype(np.float32)
        with torch.no_grad():
            want = model(inputs_embeds=torch.from_numpy(embeddings)[None]).logits[0, -1].numpy()
        decoder.prefill([embeddings])
        assert relative_rms(decoder.logits(), want) < 1e-5


def test_the_embeddings_of_tokens_are_those_of_the_file(decoder: Decoder, tiny_bundle: Path) -> None:
    table = gguf_tensors(tiny_bundle / DECODER)["token_embd.weight"]
    tokens = (7, 0, decoder.n_vocab - 1, 7)
    want = np.concatenate([table.rows(token, token + 1) for token in tokens])
    got = decoder._token_rows.of(tokens)
    assert got is not None
    np.testing.assert_array_equal(got, want)
