"""Checkpoints with the published tensor names and files, tiny sizes and random weights, and adapters for them.

The weights are scaled so that every part passes its signal on: patches differ between clips, the audio
moves the logits, and no softmax saturates. It exercises the whole chain; it captions nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

from dasheng_edge.runtime.bundle.bundle import Variant
from tests.tiny_model import (
    DEPTH,
    EMBED,
    HEADS,
    ROWS,
    random_tensor,
    stored_buffers,
    tiny_config,
    tiny_shapes,
    tiny_tensors,
)

__all__ = ["ROWS", "tiny_shapes"]  # what tests import from here, too

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
_PATTERN = (  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXTS = (
    "Write an audio caption describing the sound of a bell and a dog that barks in the rain.",
    "Which labels describe the sound? What language is spoken? Transcribe the speech into text.",
    "system user assistant: You are a helpful language and speech assistant. The wind, the waves and a bell ring.",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'audio' -%}"
    "{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}{%- else -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
MDL_TOOLKIT_TARGETS = (  # what mdl-toolkit trains, as one regular expression
    r"^audio_encoder\.blocks\.\d+\.attn\.(qkv|proj)$|^audio_projector\.net\.(0|2)$"
    r"|^decoder\.model\.layers\.\d+\.(self_attn|mlp)\.(up|gate|down)_proj$"
)


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen2's normaliser and pre-tokeniser; the control tokens have the last ids."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return tokenizer


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "add_bos_token": False,
            "add_prefix_space": False,
            "audio_token": "<|AUDIO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token, "special": True, "normalized": False,
                    "lstrip": False, "rstrip": False, "single_word": False,
                }
                for token in CONTROL_TOKENS
            },
        },
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_weights(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    variant: Variant = "midashenglm",
    extra: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """Write the checkpoint as a Hugging Face folder (about 5 MB in float32) and return the folder.

    `extra` are shapes of further tensors, by name, e.g. those that one writer stores and another does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(variant) | {"torch_dtype": dtype}
    if variant != "dasheng":
        config["audio_token_id"] = _write_text_side(folder)
    _write_json(folder / "config.json", config)
    generator = torch.Generator().manual_seed(seed)
    tensors = tiny_tensors(variant, seed)
    tensors |= {name: random_tensor(name, shape, generator) for name, shape in (extra or {}).items()}
    stored = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in tensors.items()}
    _write_weights(folder, stored, shards)
    return folder


def _write_text_side(folder: Path) -> int:
    """Write tokenizer, generation_config.json and preprocessor_config.json; the id of the audio token."""
    tokenizer = train_tokenizer()
    _write_tokenizer(folder, tokenizer)
    ids = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "max_new_tokens": 32,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "sampling_rate": 16000,
            "do_normalize": False,
            "padding_side": "right",
        },
    )
    return int(ids["<|AUDIO|>"])


def write_tiny_dasheng_torch(
    path: Path, *, seed: int = 0, extra: Mapping[str, tuple[int, ...]] | None = None, **config: object
) -> Path:
    """Write the Dasheng encoder as its authors do, as a torch file of "model" and "config"; return the path.

    Its weights are those of `write_tiny_checkpoint(variant="dasheng")`. `config` replaces the fields of the
    encoder's configuration.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name.removeprefix("encoder."): tensor for name, tensor in tiny_tensors("dasheng", seed).items()}
    shapes = stored_buffers("") | dict(extra or {})
    tensors |= {name: random_tensor(name, shape, generator) for name, shape in shapes.items()}
    stated = config or {"embed_dim": EMBED, "depth": DEPTH, "num_heads": HEADS, "target_length": 1008}
    torch.save({"model": tensors, "config": stated}, path)
    return path


class Skeleton(nn.Module):
    """The checkpoint's linear layers under its names: as much of the model as peft needs to see."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split(".")
            if leaf != "weight" or len(shape) != 2:
                continue
            parent: nn.Module = self
            for part in path[:-1]:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            layer: nn.Module = nn.Linear(shape[1], shape[0], bias=f"{'.'.join(path)}.bias" in shapes)
            if path[-1] == "embed_tokens":
                layer = nn.Embedding(*shape)
            parent.add_module(path[-1], layer)


def _lora_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if "lora_" in name or "modules_to_save" in name)


def write_tiny_adapter(
    folder: Path,
    *,
    seed: int = 0,
    variant: Variant = "midashenglm",
    r: int = 4,
    lora_alpha: int = 8,
    target_modules: str | list[str] = MDL_TOOLKIT_TARGETS,
    modules_to_save: list[str] | None = None,
    use_rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, int] | None = None,
) -> Path:
    """Write a LoRA adapter for the tiny checkpoint with peft, in mdl-toolkit's layout, and return the folder.

    `lora_B`, which peft starts at zero, is random too, so that the adapter changes the model.
    """
    from peft import LoraConfig, PeftModel

    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern or {},
        alpha_pattern=alpha_pattern or {},
    )
    model = PeftModel(Skeleton(tiny_shapes(variant)), config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, value in _lora_weights(model):
            # A and B so that s * B @ A is about a third of a weight, as large as training makes it.
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(3 * value.shape[-1]))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
