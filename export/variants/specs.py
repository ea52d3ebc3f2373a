"""What is known of a model without opening it: sizes, and how it is asked. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dasheng_edge.runtime.bundle.manifest import Sampling

Arch: TypeAlias = Literal["qwen2", "qwen3"]


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a Dasheng encoder; the defaults are MiDashengLM-7B's (630.3 M parameters)."""

    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a Qwen2 or Qwen3 decoder."""

    arch: Arch
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # width of one attention head; heads * head_dim need not be hidden_size (Qwen3)
    vocab_size: int  # rows of the embedding, which may be more than the tokenizer has tokens
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    tied: bool = False  # the head is the embedding: there is no decoder.lm_head.weight


_GREEDY = Sampling()


@dataclass(frozen=True)
class PromptDefaults:
    """What holds where the checkpoint says nothing."""

    prompt: str
    audio_first: bool
    source: str  # what it rests on
    system: str | None = None
    sampling: Sampling = _GREEDY  # where generation_config.json does not say whether to sample
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Published:
    """A published model: its sizes, how it is stored, and how it is asked."""

    name: str
    repositories: tuple[str, ...]  # that hold plain float weights, hence can be exported
    encoder: EncoderSpec
    parameters: Mapping[str, int]  # trained values by part
    decoder: DecoderSpec | None = None
    dtype: Literal["bf16", "fp32"] = "fp32"  # of the repository that people take
    acoustic_mels: int = 0  # 0: no acoustic branch
    mel_buffers: bool = False  # whether filterbank and window are stored, too
    prompt: PromptDefaults | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Of encoder and decoder: what tells it from models of people's own."""
        return self.encoder.embed_dim, self.decoder.hidden_size if self.decoder else 0
