"""A MiDashengLM checkpoint with the 7B's tensor names and files, tiny sizes and random weights, and an adapter for it.

The weights are scaled so that every part passes its signal on: patches differ between clips, the audio
moves the logits, and no softmax saturates. It exercises the whole chain; it captions nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

EMBED, DEPTH, HEADS = 64, 2, 2  # encoder
HIDDEN, INTERMEDIATE, LAYERS, Q_HEADS, KV_HEADS = 256, 512, 2, 4, 2  # decoder; K-quants need multiples of 256
ROWS = 448  # rows of the embedding, more than the tokenizer has tokens, as in the 7B (152064 for 151657)
MEL_OFFSET_DB, MEL_SCALE_DB = -40.0, 20.0  # what the batch norm takes log-mels to be like

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


def tiny_config() -> dict[str, object]:
    """`config.json` with the fields of the 7B's."""
    return {
        "architectures": ["MiDashengLMModel"],
        "model_type": "midashenglm",
        "torch_dtype": "float32",
        "subsample_factor": 5,
        "audio_token_id": None,  # filled in from the tokenizer
        "audio_encoder_config": {
            "model_type": "midashenglm_dasheng_encoder",
            "embed_dim": EMBED, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 4.0, "qkv_bias": True,
            "init_values": None, "drop_rate": 0.0, "attn_drop_rate": 0.0, "input_channels": 1, "outputdim": 527,
            "patch_size": [64, 4], "patch_stride": [64, 4], "target_length": 1008, "n_mels": 64, "n_fft": 512,
            "win_length": 512, "hop_length": 160, "f_min": 0, "f_max": 8000, "sample_rate": 16000, "center": True,
        },
        "text_config": {
            "model_type": "qwen2_5_omni_text",
            "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
            "num_attention_heads": Q_HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": ROWS,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 4096,
            "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default", "type": "default"},
            "use_sliding_window": False, "attention_dropout": 0.0, "tie_word_embeddings": False,
        },
    }  # fmt: skip


def tiny_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint under its name, in the order of the published ones."""
    kv = HIDDEN // Q_HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        **{f"audio_encoder.init_bn.{name}": (64,) for name in ("weight", "bias", "running_mean", "running_var")},
        "audio_encoder.init_bn.num_batches_tracked": (),
        "audio_encoder.patch_embed.proj.weight": (EMBED, 1, 64, 4),
        "audio_encoder.patch_embed.proj.bias": (EMBED,),
        "audio_encoder.time_pos_embed": (1, EMBED, 1, 252),
        "audio_encoder.freq_pos_embed": (1, EMBED, 1, 1),
    }
    for block in (f"audio_encoder.blocks.{i}" for i in range(DEPTH)):
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (EMBED,), f"{block}.{name}.bias": (EMBED,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * EMBED, EMBED), ("attn.proj", EMBED, EMBED),
            ("mlp.fc1", 4 * EMBED, EMBED), ("mlp.fc2", EMBED, 4 * EMBED),
        ):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    shapes |= {"audio_encoder.norm.weight": (EMBED,), "audio_encoder.norm.bias": (EMBED,)}
    for name, columns in (("0", 5 * EMBED), ("2", HIDDEN)):
        shapes |= {
            f"audio_projector.net.{name}.weight": (HIDDEN, columns),
            f"audio_projector.net.{name}.bias": (HIDDEN,),
        }
    shapes["decoder.model.embed_tokens.weight"] = (ROWS, HIDDEN)
    for layer in (f"decoder.model.layers.{i}" for i in range(LAYERS)):
        for name, rows in (("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv)):
            shapes |= {f"{layer}.self_attn.{name}.weight": (rows, HIDDEN), f"{layer}.self_attn.{name}.bias": (rows,)}
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (HIDDEN,)
    shapes |= {"decoder.model.norm.weight": (HIDDEN,), "decoder.lm_head.weight": (ROWS, HIDDEN)}
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random weight, float32 (int64 for the counter), of a size that keeps signals at about one."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_mean"):
        return MEL_OFFSET_DB + 3 * noise
    if name.endswith("running_var"):
        return MEL_SCALE_DB**2 * (1 + 0.1 * noise.tanh())
    if "norm" in name or "init_bn" in name:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias") or "pos_embed" in name:
        return 0.1 * noise
    if "embed_tokens" in name:
        return 0.5 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


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
    folder: Path, *, seed: int = 0, shards: int = 1, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
) -> Path:
    """Write the checkpoint as a Hugging Face folder (about 5 MB in float32) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    _write_tokenizer(folder, tokenizer)
    ids = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    config = tiny_config() | {"audio_token_id": ids["<|AUDIO|>"], "torch_dtype": dtype}
    _write_json(folder / "config.json", config)
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
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_tensor(name, shape, generator) for name, shape in tiny_shapes().items()}
    stored = {name: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for name, t in tensors.items()}
    _write_weights(folder, stored, shards)
    return folder


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
    model = PeftModel(Skeleton(tiny_shapes()), config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, value in _lora_weights(model):
            # A and B so that s * B @ A is about a third of a weight, as large as training makes it.
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(3 * value.shape[-1]))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
