"""What the published models of the family look like: tensor names and shapes, `config.json`.

Their sizes stand in the exporter's table. Tensors and parameters of MiDashengLM-7B add up to the published totals
exactly; of MiDashengLM-0.6B the sizes are sure, the names are guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from dasheng_edge.export.variants.specs import Published
from dasheng_edge.export.variants.table import PUBLISHED

Name: TypeAlias = Literal["7b", "0.6b", "dasheng-base", "dasheng-0.6b", "dasheng-1.2b"]
Edition: TypeAlias = Literal["0804", "1021"]
Dtype: TypeAlias = Literal["bf16", "fp32"]
Shape: TypeAlias = tuple[int, ...]

MELS, PATCH_FRAMES, CHUNK_FRAMES = 64, 4, 1008  # 10.08 s
JOINED_PATCHES = 5  # that make one audio token
ACOUSTIC_FFT = 1024
TRANSFORMERS = (
    "4.52.1"  # the oldest that MiDashengLM asks for; without it, newer ones take Qwen's tokenizer for a wrong one
)


@dataclass(frozen=True)
class Decoder:
    """Sizes of a Qwen2 (biases on q, k, v) or Qwen3 (norms on q and k) decoder."""

    arch: Literal["qwen2", "qwen3"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int  # of the embedding; the tokenizer has fewer tokens
    positions: int
    tied: bool


@dataclass(frozen=True)
class Architecture:
    """Sizes of one member of the family, and how its repository stores it."""

    name: Name
    embed_dim: int
    depth: int
    heads: int
    dtype: Dtype  # of the repository that people take
    acoustic_mels: int = 0  # 0: no acoustic branch
    mel_buffers: bool = False  # whether filterbank and window are stored, too
    decoder: Decoder | None = None

    def shrunken(self, layers: int) -> Architecture:
        """The same with at most so many encoder blocks and decoder layers; widths and vocabulary stay."""
        decoder = self.decoder and replace(self.decoder, layers=min(layers, self.decoder.layers))
        return replace(self, depth=min(layers, self.depth), decoder=decoder)


def _architecture(name: Name, model: Published) -> Architecture:
    encoder, text = model.encoder, model.decoder
    decoder = None if text is None else Decoder(
        text.arch, text.hidden_size, text.intermediate_size, text.layers, text.heads, text.kv_heads, text.head_dim,
        rows=text.vocab_size, positions=text.context_length, tied=text.tied,
    )  # fmt: skip
    return Architecture(
        name, encoder.embed_dim, encoder.depth, encoder.num_heads, model.dtype, model.acoustic_mels,
        model.mel_buffers, decoder,
    )  # fmt: skip


_MODELS: Mapping[Name, Published] = {name: PUBLISHED["7b-1021" if name == "7b" else name] for name in get_args(Name)}
ARCHITECTURES: Mapping[Name, Architecture] = {name: _architecture(name, model) for name, model in _MODELS.items()}
PARAMETERS: Mapping[Name, Mapping[str, int]] = {name: model.parameters for name, model in _MODELS.items()}
TENSORS: Mapping[Edition, int] = {"0804": 740, "1021": 738}  # of the 7B


def architecture(name: Name, edition: Edition = "1021") -> Architecture:
    """Sizes of a published model; the edition is the 7B's, of which 0804 stores the two mel buffers."""
    base = ARCHITECTURES[name]
    return replace(base, mel_buffers=True) if name == "7b" and edition == "0804" else base


def shapes(model: Architecture) -> dict[str, Shape]:
    """Every stored tensor under its published name (0.6B: its likely name), in the order of the modules."""
    if model.decoder is None:
        return _encoder("encoder.", "init_bn.1.", model)
    semantic = "audio_encoder.model." if model.acoustic_mels else "audio_encoder."
    stored = _encoder(semantic, "init_bn.1." if model.acoustic_mels else "init_bn.", model)
    if model.mel_buffers:
        stored |= _mel_buffers(f"{semantic}front_end.0.", 512, MELS)
    if mels := model.acoustic_mels:
        stored |= _mel_buffers("audio_encoder.front_end.mel_spec.", ACOUSTIC_FFT, mels)
        stored |= {
            "audio_encoder.patch_embed.weight": (model.embed_dim, 1, mels, PATCH_FRAMES),
            "audio_encoder.patch_embed.bias": (model.embed_dim,),
            "audio_encoder.norm.weight": (model.embed_dim,),
            "audio_encoder.norm.bias": (model.embed_dim,),
        }
    for index, columns in (("0", JOINED_PATCHES * model.embed_dim), ("2", model.decoder.hidden)):
        stored |= _linear(f"audio_projector.net.{index}", model.decoder.hidden, columns)
    return stored | _decoder(model.decoder)


def part_of(name: str) -> str | None:
    """The part whose trained values a tensor belongs to; None for statistics, counters and mel buffers."""
    if ".running_" in name or ".front_end." in name or name.endswith("num_batches_tracked"):
        return None
    parts = {"audio_encoder": "encoder", "encoder": "encoder", "audio_projector": "projector", "decoder": "decoder"}
    return parts[name.split(".", maxsplit=1)[0]]


def parameters(stored: Mapping[str, Shape]) -> dict[str, int]:
    """Trained values by part."""
    counted: dict[str, int] = {}
    for name, shape in stored.items():
        if part := part_of(name):
            counted[part] = counted.get(part, 0) + math.prod(shape)
    return counted


def config(model: Architecture, audio_token_id: int | None, dtype: Dtype) -> dict[str, object]:
    """`config.json`; `audio_token_id` is None where there is no tokenizer."""
    torch_dtype = {"bf16": "bfloat16", "fp32": "float32"}[dtype]
    if model.decoder is None:
        return _dasheng_config(model, torch_dtype)
    return {
        "architectures": ["MiDashengLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_midashenglm.MiDashengLMConfig",
            "AutoModelForCausalLM": "modeling_midashenglm.MiDashengLMModel",
        },
        "model_type": "midashenglm",
        "torch_dtype": torch_dtype,
        "transformers_version": TRANSFORMERS,
        "subsample_factor": JOINED_PATCHES,
        "audio_token_id": audio_token_id,
        "audio_encoder_config": _audio_config(model),
        "text_config": _text_config(model.decoder),
        "tie_word_embeddings": model.decoder.tied,
    }


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _mel_buffers(prefix: str, fft: int, mels: int) -> dict[str, Shape]:
    return {f"{prefix}spectrogram.window": (fft,), f"{prefix}mel_scale.fb": (fft // 2 + 1, mels)}


def _encoder(prefix: str, batch_norm: str, model: Architecture) -> dict[str, Shape]:
    dim = model.embed_dim
    stored: dict[str, Shape] = {
        "time_pos_embed": (1, dim, 1, CHUNK_FRAMES // PATCH_FRAMES),
        "freq_pos_embed": (1, dim, 1, 1),
        **{f"{batch_norm}{name}": (MELS,) for name in ("weight", "bias", "running_mean", "running_var")},
        f"{batch_norm}num_batches_tracked": (),
        "patch_embed.proj.weight": (dim, 1, MELS, PATCH_FRAMES),
        "patch_embed.proj.bias": (dim,),
    }
    for block in (f"blocks.{i}" for i in range(model.depth)):
        stored |= {f"{block}.norm1.weight": (dim,), f"{block}.norm1.bias": (dim,)}
        stored |= _linear(f"{block}.attn.qkv", 3 * dim, dim) | _linear(f"{block}.attn.proj", dim, dim)
        stored |= {f"{block}.norm2.weight": (dim,), f"{block}.norm2.bias": (dim,)}
        stored |= _linear(f"{block}.mlp.fc1", 4 * dim, dim) | _linear(f"{block}.mlp.fc2", dim, 4 * dim)
    stored |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {prefix + name: shape for name, shape in stored.items()}


def _decoder(text: Decoder) -> dict[str, Shape]:
    hidden, wide = text.hidden, text.intermediate
    q_rows, kv_rows = text.heads * text.head_dim, text.kv_heads * text.head_dim
    stored: dict[str, Shape] = {"decoder.model.embed_tokens.weight": (text.rows, hidden)}
    for layer in (f"decoder.model.layers.{i}" for i in range(text.layers)):
        for name, rows in (("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)):
            stored[f"{layer}.self_attn.{name}.weight"] = (rows, hidden)
            if text.arch == "qwen2":
                stored[f"{layer}.self_attn.{name}.bias"] = (rows,)
        stored[f"{layer}.self_attn.o_proj.weight"] = (hidden, q_rows)
        if text.arch == "qwen3":
            stored |= {f"{layer}.self_attn.{name}.weight": (text.head_dim,) for name in ("q_norm", "k_norm")}
        stored |= {f"{layer}.mlp.{name}.weight": (wide, hidden) for name in ("gate_proj", "up_proj")}
        stored[f"{layer}.mlp.down_proj.weight"] = (hidden, wide)
        stored |= {f"{layer}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    stored["decoder.model.norm.weight"] = (hidden,)
    if not text.tied:
        stored["decoder.lm_head.weight"] = (text.rows, hidden)
    return stored


def _dasheng_config(model: Architecture, torch_dtype: str) -> dict[str, object]:
    return {
        "architectures": ["DashengModel"],
        "model_type": "dasheng",
        "name": model.name.replace("b", "B") if model.name != "dasheng-base" else model.name,
        "loss": "BCELoss",
        "torch_dtype": torch_dtype,
        "transformers_version": TRANSFORMERS,
        "encoder_kwargs": {
            "embed_dim": model.embed_dim, "depth": model.depth, "num_heads": model.heads,
            "patch_size": [MELS, PATCH_FRAMES], "patch_stride": [MELS, PATCH_FRAMES], "target_length": CHUNK_FRAMES,
        },
    }  # fmt: skip


def _audio_config(model: Architecture) -> dict[str, object]:
    kind = "midashenglm_dasheng_tokenizer" if model.acoustic_mels else "midashenglm_dasheng_encoder"
    acoustic = {"n_mels_patch": model.acoustic_mels, "patch_stride_time": PATCH_FRAMES}  # DashengTokenizer's fields
    return {
        "model_type": kind,
        "embed_dim": model.embed_dim, "depth": model.depth, "num_heads": model.heads,
        "mlp_ratio": 4.0, "qkv_bias": True, "init_values": None, "drop_rate": 0.0, "attn_drop_rate": 0.0,
        "input_channels": 1, "outputdim": 527,
        "patch_size": [MELS, PATCH_FRAMES], "patch_stride": [MELS, PATCH_FRAMES], "target_length": CHUNK_FRAMES,
        "n_mels": MELS, "n_fft": 512, "win_length": 512, "hop_length": 160,
        "f_min": 0.0, "f_max": 8000.0, "sample_rate": 16000, "center": True,
        **(acoustic if model.acoustic_mels else {}),
    }  # fmt: skip


def _text_config(text: Decoder) -> dict[str, object]:
    stated: dict[str, object] = {
        "model_type": "qwen2_5_omni_text" if text.arch == "qwen2" else "qwen3",
        "hidden_size": text.hidden, "intermediate_size": text.intermediate, "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads, "num_key_value_heads": text.kv_heads, "head_dim": text.head_dim,
        "vocab_size": text.rows, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": text.positions, "rope_scaling": None, "attention_dropout": 0.0,
        "use_sliding_window": False, "tie_word_embeddings": text.tied,
    }  # fmt: skip
    if text.arch == "qwen2":
        stated["rope_scaling"] = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    else:
        stated["attention_bias"] = False
    return stated
