"""The tiny models that tests write as checkpoints: their tensors, under their stored names, and config.json.

One model per variant: a MiDashengLM with a Qwen2 decoder, one with a DashengTokenizer encoder and a Qwen3
decoder, and a Dasheng encoder alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dasheng_edge.runtime.bundle.bundle import Variant

EMBED, DEPTH, HEADS = 64, 2, 2  # encoder
HIDDEN, INTERMEDIATE, LAYERS, Q_HEADS, KV_HEADS = 256, 512, 2, 4, 2  # decoder; K-quants need multiples of 256
QWEN3_HEADS, QWEN3_HEAD_DIM = 8, 64  # 512 wide, which is not HIDDEN
ROWS = 448  # rows of the embedding, more than the tokenizer has tokens, as in the 7B (152064 for 151657)
ACOUSTIC_MELS, ACOUSTIC_FFT = 20, 1024  # of the second spectrogram
MEL_OFFSET_DB, MEL_SCALE_DB = -40.0, 20.0  # what the batch norm takes log-mels to be like

Shapes = dict[str, tuple[int, ...]]

_AUDIO_CONFIG: dict[str, object] = {
    "embed_dim": EMBED, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 4.0, "qkv_bias": True, "init_values": None,
    "drop_rate": 0.0, "attn_drop_rate": 0.0, "input_channels": 1, "outputdim": 527,
    "patch_size": [64, 4], "patch_stride": [64, 4], "target_length": 1008, "n_mels": 64, "n_fft": 512,
    "win_length": 512, "hop_length": 160, "f_min": 0, "f_max": 8000, "sample_rate": 16000, "center": True,
}  # fmt: skip


def tiny_config(variant: Variant = "midashenglm") -> dict[str, object]:
    """`config.json` with the fields of a published one."""
    if variant == "dasheng":
        sizes = {"embed_dim": EMBED, "depth": DEPTH, "num_heads": HEADS}
        windows = {"target_length": 1008, "patch_size": [64, 4], "patch_stride": [64, 4]}
        return {
            "architectures": ["DashengModel"], "model_type": "dasheng", "torch_dtype": "float32",
            "name": "dasheng-base", "loss": "BCELoss", "encoder_kwargs": {**windows, **sizes},
        }  # fmt: skip
    tokenizer = variant == "midashenglm-tokenizer"
    return {
        "architectures": ["MiDashengLMModel"],
        "model_type": "midashenglm",
        "torch_dtype": "float32",
        "subsample_factor": 5,
        "audio_token_id": None,  # filled in from the tokenizer
        "audio_encoder_config": _tokenizer_audio_config() if tokenizer else {
            "model_type": "midashenglm_dasheng_encoder", **_AUDIO_CONFIG,
        },
        "text_config": _qwen3_config() if tokenizer else _qwen2_config(),
    }  # fmt: skip


def _tokenizer_audio_config() -> dict[str, object]:
    """What DashengTokenizer's configuration class has."""
    return {
        "model_type": "midashenglm_dasheng_tokenizer", "embed_dim": EMBED, "depth": DEPTH, "num_heads": HEADS,
        "n_mels_patch": ACOUSTIC_MELS, "hop_length": 160, "patch_stride_time": 4,
    }  # fmt: skip


def _qwen2_config() -> dict[str, object]:
    return {
        "model_type": "qwen2_5_omni_text",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": Q_HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": ROWS,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 4096,
        "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default", "type": "default"},
        "use_sliding_window": False, "attention_dropout": 0.0, "tie_word_embeddings": False,
    }  # fmt: skip


def _qwen3_config() -> dict[str, object]:
    return {
        "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0, "head_dim": QWEN3_HEAD_DIM,
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096, "max_window_layers": LAYERS, "num_attention_heads": QWEN3_HEADS,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": True, "use_cache": True,
        "use_sliding_window": False, "vocab_size": ROWS,
    }  # fmt: skip


def tiny_shapes(variant: Variant = "midashenglm") -> Shapes:
    """Every tensor of the checkpoint under the name that it is stored by, in the order of the published ones."""
    if variant == "dasheng":
        return encoder_shapes("encoder.", batch_norm="init_bn.1.")
    if variant == "midashenglm-tokenizer":
        bins = ACOUSTIC_FFT // 2 + 1
        return {
            **encoder_shapes("audio_encoder.model.", batch_norm="init_bn.1."),
            **stored_buffers("audio_encoder.model."),
            "audio_encoder.front_end.mel_spec.spectrogram.window": (ACOUSTIC_FFT,),
            "audio_encoder.front_end.mel_spec.mel_scale.fb": (bins, ACOUSTIC_MELS),
            "audio_encoder.patch_embed.weight": (EMBED, 1, ACOUSTIC_MELS, 4),
            "audio_encoder.patch_embed.bias": (EMBED,),
            "audio_encoder.norm.weight": (EMBED,),
            "audio_encoder.norm.bias": (EMBED,),
            **_projector_shapes(),
            **_decoder_shapes(QWEN3_HEADS, QWEN3_HEAD_DIM, qwen3=True),
        }
    return {
        **encoder_shapes("audio_encoder."),
        **_projector_shapes(),
        **_decoder_shapes(Q_HEADS, HIDDEN // Q_HEADS),
        "decoder.lm_head.weight": (ROWS, HIDDEN),
    }


def stored_buffers(prefix: str) -> Shapes:
    """The window and the filterbank of the front end, which some checkpoints store."""
    return {f"{prefix}front_end.0.mel_scale.fb": (257, 64), f"{prefix}front_end.0.spectrogram.window": (512,)}


def encoder_shapes(prefix: str, *, batch_norm: str = "init_bn.") -> Shapes:
    """A Dasheng encoder; the original wraps its batch norm in a Sequential, as "init_bn.1."."""
    shapes: Shapes = {
        **{f"{batch_norm}{name}": (64,) for name in ("weight", "bias", "running_mean", "running_var")},
        f"{batch_norm}num_batches_tracked": (),
        "patch_embed.proj.weight": (EMBED, 1, 64, 4),
        "patch_embed.proj.bias": (EMBED,),
        "time_pos_embed": (1, EMBED, 1, 252),
        "freq_pos_embed": (1, EMBED, 1, 1),
    }
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (EMBED,), f"{block}.{name}.bias": (EMBED,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * EMBED, EMBED), ("attn.proj", EMBED, EMBED),
            ("mlp.fc1", 4 * EMBED, EMBED), ("mlp.fc2", EMBED, 4 * EMBED),
        ):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    shapes |= {"norm.weight": (EMBED,), "norm.bias": (EMBED,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def _projector_shapes() -> Shapes:
    shapes: Shapes = {}
    for name, columns in (("0", 5 * EMBED), ("2", HIDDEN)):
        shapes |= {
            f"audio_projector.net.{name}.weight": (HIDDEN, columns),
            f"audio_projector.net.{name}.bias": (HIDDEN,),
        }
    return shapes


def _decoder_shapes(heads: int, head_dim: int, *, qwen3: bool = False) -> Shapes:
    """Qwen2 with biases on q, k and v, or Qwen3 with a norm on each head of q and k; without the head."""
    shapes: Shapes = {"decoder.model.embed_tokens.weight": (ROWS, HIDDEN)}
    for layer in (f"decoder.model.layers.{i}" for i in range(LAYERS)):
        for name, rows in (("q_proj", heads), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows * head_dim, HIDDEN)
            if not qwen3:
                shapes[f"{layer}.self_attn.{name}.bias"] = (rows * head_dim,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, heads * head_dim)
        if qwen3:
            shapes |= {f"{layer}.self_attn.{name}_norm.weight": (head_dim,) for name in ("q", "k")}
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (HIDDEN,)
    shapes["decoder.model.norm.weight"] = (HIDDEN,)
    return shapes


def tiny_tensors(variant: Variant = "midashenglm", seed: int = 0) -> dict[str, Tensor]:
    """The weights, float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_tensor(name, shape, generator) for name, shape in tiny_shapes(variant).items()}
    if variant == "midashenglm-tokenizer":
        # The head is the embedding, whose rows are 8 long: logits of about one ask for a small last norm.
        tensors["decoder.model.norm.weight"] *= 2 / math.sqrt(HIDDEN)
    return tensors


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
