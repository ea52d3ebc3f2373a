"""MiDashengLM-micro: the architecture and tensor names of MiDashengLM-7B at a thousandth of its size.

The encoder and the projector are those of `dasheng_edge.export.variants`, the decoder is transformers' Qwen2.
A checkpoint is a Hugging Face folder with the file names and the fields of the published ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.micro.training.tokenizer import AUDIO, END_OF_TEXT, IM_END, save_tokenizer, token_id
from dasheng_edge.export.variants.midashenglm import MiDashengLMEncoder
from dasheng_edge.export.variants.modules import Attention, AudioProjector, Block
from dasheng_edge.export.variants.specs import EncoderSpec
from dasheng_edge.runtime.atomic_output import replacing
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

if TYPE_CHECKING:
    from transformers import Qwen2Config, Qwen2TokenizerFast

ENCODER = EncoderSpec(embed_dim=256, depth=6, num_heads=4)
EMBEDDING_ROWS = 768  # at least the tokenizer's ids; rows behind its last id are never used
MAX_POSITIONS = 4096  # ten minutes are 3000 audio tokens
EMBEDDING, HEAD = "decoder.model.embed_tokens.weight", "decoder.lm_head.weight"


MASKED_SCORE = -30000.0  # of a key that is padding; finite, so that no row of a softmax is empty


def plain_attention(attn: Attention, x: Tensor, bias: Tensor) -> Tensor:
    """`Attention.forward` by two batched products: on CPU, in bf16, torch's fused one trains 1.4 times slower.

    x [batch, n, dim]; bias [batch, 1, 1, n] is added to the scores.
    """
    batch, n, dim = x.shape
    q, k, v = attn.qkv(x).reshape(batch, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias.to(q.dtype)
    mixed = scores.softmax(-1, dtype=q.dtype) @ v
    out: Tensor = attn.proj(mixed.transpose(1, 2).reshape(batch, n, dim))
    return out


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of the Qwen2 decoder; hidden and intermediate are multiples of 256 so that every K-quant applies."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    vocab_size: int = EMBEDDING_ROWS
    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False

    def qwen2_config(self) -> Qwen2Config:
        """The same as a configuration of transformers' Qwen2."""
        from transformers import Qwen2Config

        return Qwen2Config(**asdict(self), attn_implementation="eager")


class MicroModel(nn.Module):
    """Encoder, projector and decoder under the names of the checkpoint."""

    def __init__(self, encoder: EncoderSpec = ENCODER, decoder: DecoderSpec | None = None) -> None:
        from transformers import Qwen2ForCausalLM

        super().__init__()
        self.decoder_spec = decoder or DecoderSpec()
        self.audio_encoder = MiDashengLMEncoder(encoder)
        self.audio_projector = AudioProjector(encoder.embed_dim, self.decoder_spec.hidden_size)
        self.decoder = Qwen2ForCausalLM(self.decoder_spec.qwen2_config())
        # peft asks every causal language model for this method.
        self.prepare_inputs_for_generation = self.decoder.prepare_inputs_for_generation
        for module in [*self.audio_encoder.modules(), *self.audio_projector.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, log_mel: Tensor, valid: Tensor) -> Tensor:
        """Log-mels [batch, 64, frames], right-padded -> patches [batch, frames // 4, dim].

        `valid`, int64 [batch], counts each clip's patches that are keys; padding thereby changes nothing
        for the patches of the clip itself.
        """
        encoder, spec = self.audio_encoder, self.audio_encoder.front_end
        x = encoder.patch_embed(encoder.init_bn(log_mel[..., None])[..., 0])
        positions = (encoder.time_pos_embed + encoder.freq_pos_embed)[0, :, 0].T
        chunks = []
        for start, stop in spec.chunks_of(x.shape[1]):
            h = x[:, start:stop] + positions[: stop - start]
            keys = torch.arange(start, stop, device=x.device) < valid[:, None]
            bias = torch.where(keys, 0.0, MASKED_SCORE).to(x.dtype)[:, None, None, :]
            for block in encoder.blocks:
                assert isinstance(block, Block)
                h = h + plain_attention(block.attn, block.norm1(h), bias)
                h = h + block.mlp(block.norm2(h))
            chunks.append(encoder.norm(h))
        return torch.cat(chunks, dim=1)

    def splice(self, ids: Tensor, audio: Tensor) -> Tensor:
        """Ids [batch, n] -> embeddings [batch, n, hidden], `audio` [count, hidden] at the `<|AUDIO|>` ids in order."""
        embeddings = self.decoder.model.embed_tokens(ids)
        places = (ids == self.audio_token_id)[..., None].expand_as(embeddings)
        out: Tensor = embeddings.masked_scatter(places, audio.to(embeddings.dtype))
        return out

    audio_token_id: int = -1

    @torch.no_grad()
    def answer(self, log_mel: Tensor, samples: int, ids: list[int], stop_ids: list[int], limit: int) -> list[int]:
        """Greedy answer to one prompt about one clip: log-mel [1, 64, frames] -> ids without the stop id."""
        patches = self.audio_encoder(log_mel, samples)
        device = log_mel.device
        embeddings = self.splice(torch.tensor([ids], device=device), self.audio_projector(patches)[0])
        cache, out = None, []
        for _ in range(limit):
            step = self.decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, token = step.past_key_values, int(step.logits[0, -1].argmax())
            if token in stop_ids:
                break
            out.append(token)
            embeddings = self.decoder.model.embed_tokens(torch.tensor([[token]], device=device))
        return out


def encoder_config(spec: EncoderSpec, front_end: FrontEndSpec) -> dict[str, object]:
    """`audio_encoder_config` with the fields of the published configuration."""
    patch = [front_end.n_mels, front_end.patch_frames]
    return {
        "model_type": "midashenglm_dasheng_encoder",
        **asdict(spec),
        "qkv_bias": True,
        "init_values": None,
        "drop_rate": 0.0,
        "attn_drop_rate": 0.0,
        "input_channels": 1,
        "outputdim": 527,
        "patch_size": patch,
        "patch_stride": patch,
        "target_length": front_end.chunk_frames,
        "n_mels": front_end.n_mels,
        "n_fft": front_end.n_fft,
        "win_length": front_end.win_length,
        "hop_length": front_end.hop_length,
        "f_min": front_end.f_min_hz,
        "f_max": front_end.f_max_hz,
        "sample_rate": front_end.sample_rate_hz,
        "center": True,
    }


def text_config(spec: DecoderSpec) -> dict[str, object]:
    """`text_config`, a Qwen2.5-Omni thinker's; with one-dimensional positions its M-RoPE is Qwen2's RoPE."""
    eighth = spec.hidden_size // spec.num_attention_heads // 8
    return {
        "model_type": "qwen2_5_omni_text",
        **asdict(spec),
        "hidden_act": "silu",
        "rope_scaling": {
            "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2],
            "rope_type": "default",
            "type": "default",
        },
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def model_config(model: MicroModel, tokenizer: Qwen2TokenizerFast, dtype: torch.dtype) -> dict[str, object]:
    """`config.json`."""
    return {
        "architectures": ["MiDashengLMModel"],
        "model_type": "midashenglm",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "subsample_factor": model.audio_projector.factor,
        "audio_token_id": token_id(tokenizer, AUDIO),
        "audio_encoder_config": encoder_config(model.audio_encoder.spec, model.audio_encoder.front_end),
        "text_config": text_config(model.decoder_spec),
        "tie_word_embeddings": model.decoder_spec.tie_word_embeddings,
    }


def save_checkpoint(
    model: MicroModel, tokenizer: Qwen2TokenizerFast, folder: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes the Hugging Face folder; an older folder is replaced only when all is written."""
    with replacing(folder) as scratch:
        scratch.mkdir()
        save_tokenizer(tokenizer, scratch)
        tensors = {
            name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
            for name, value in model.state_dict().items()
            if name != HEAD or not model.decoder_spec.tie_word_embeddings
        }
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
        stops = [token_id(tokenizer, token) for token in (IM_END, END_OF_TEXT)]
        files: dict[str, dict[str, object]] = {
            "config.json": model_config(model, tokenizer, dtype),
            "generation_config.json": {
                "do_sample": False,
                "eos_token_id": stops,
                "pad_token_id": stops[1],
                "max_new_tokens": 64,
            },
            "preprocessor_config.json": {
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "sampling_rate": model.audio_encoder.front_end.sample_rate_hz,
                "feature_size": 1,
                "do_normalize": False,
                "padding_side": "right",
                "padding_value": 0.0,
                "return_attention_mask": True,
            },
        }
        for name, content in files.items():
            (scratch / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path) -> tuple[MicroModel, Qwen2TokenizerFast]:
    """Reads what `save_checkpoint` wrote; the weights come back in float32."""
    from transformers import Qwen2TokenizerFast

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    audio, text = config["audio_encoder_config"], config["text_config"]
    encoder = EncoderSpec(**{name: audio[name] for name in asdict(ENCODER)})
    decoder = DecoderSpec(**{name: text[name] for name in asdict(DecoderSpec())})
    model = MicroModel(encoder, decoder)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(folder / "model.safetensors").items()}
    if decoder.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]
    model.load_state_dict(tensors)
    model.audio_token_id = int(config["audio_token_id"])
    return model.eval(), Qwen2TokenizerFast.from_pretrained(str(folder))
