"""What the exporter must know about a member of the family, and a checkpoint's tensors, sorted by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from dasheng_edge.export.files.tensor_files import Source
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import CheckpointVariantError

from .modules import ChunkedEncoder, EncoderSpec
from .stated import Stated

Arch: TypeAlias = Literal["qwen2", "qwen3"]
Feed: TypeAlias = Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]  # inputs of a graph, by name
Renames: TypeAlias = tuple[tuple[str, str], ...]  # (stored module, canonical module), the most special first
# Attention heads if they are stated or implied, the front end, and keys of the assumptions that these rest on.
Read: TypeAlias = tuple[int | None, FrontEndSpec, tuple[str, ...]]


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


@dataclass(frozen=True)
class Assumption:
    """Something that is taken to be so because no published file that could be read says it."""

    key: str
    what: str
    where: str  # what would be wrong if it were not so
    basis: str
    always: bool = False  # whatever the checkpoint states

    def __str__(self) -> str:
        return f"{self.what} (decides {self.where}; rests on: {self.basis})"


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a checkpoint, to be found by the ends of their stored names."""

    sources: Mapping[str, Source]
    refuse: Callable[[str], CheckpointVariantError]

    def prefixes(self, leaf: str, dimensions: int | None = None) -> list[str]:
        """What stands before `leaf` in the names that end with it, e.g. "decoder.model."."""
        return [
            name.removesuffix(leaf)
            for name, source in self.sources.items()
            if (name == leaf or name.endswith(f".{leaf}")) and dimensions in (None, len(source.shape))
        ]

    def prefix(self, leaf: str) -> str:
        """The same where there is exactly one.

        Raises:
            CheckpointVariantError: there is none, or several.
        """
        prefixes = self.prefixes(leaf)
        if len(prefixes) != 1:
            several = f"several tensors {leaf} ({', '.join(prefix + leaf for prefix in prefixes)})"
            raise self.refuse(f"it has {several if prefixes else f'no {leaf}'}, expected one, under any prefix")
        return prefixes[0]


def canonical_name(renames: Renames, name: str) -> str | None:
    """The canonical name of a tensor or module; None if no rule knows it."""
    for stored, canonical in renames:
        if name == stored or name.startswith(stored + "."):
            return canonical + name[len(stored) :]
    return None


def _no_branch(_: StoredTensors, __: Renames) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str  # in manifests
    marks: tuple[tuple[str, int | None], ...]  # (end of a tensor's name, its dimensions): one of them tells the variant
    encoder_name: str  # for people
    encoder: type[ChunkedEncoder]  # the reference
    read: Callable[[Stated, Layout], Read]  # from config.json and tensors
    inputs: tuple[str, ...]  # of the encoder's graph
    examples: Callable[[FrontEndSpec], list[Feed]]  # chunks that catch mistakes; the last is traced by the exporter
    decodes: bool = True
    section: str = "audio_encoder_config"  # of config.json, that describes the encoder
    required: Mapping[str, object] = field(
        default_factory=dict
    )  # fields that would change the computation, with the only value implemented
    extractor_required: Mapping[str, object] = field(default_factory=dict)  # the same of preprocessor_config.json
    ignored: tuple[str, ...] = ()  # beginnings of names that are not needed, beside what no variant needs
    branch: Callable[[StoredTensors, Renames], Mapping[str, str]] = _no_branch  # further modules: stored -> canonical
    sizing: Mapping[str, int] = field(
        default_factory=dict
    )  # further tensors that sizes are read from, and their dimensions
    assumptions: tuple[Assumption, ...] = ()  # that it rests on, or may
    published: tuple[Published, ...] = ()

    @property
    def title(self) -> str:
        """What a model consists of; {arch} is the decoder's architecture."""
        if not self.decodes:
            return f"A {self.encoder_name} audio encoder"
        return f"MiDashengLM: a {self.encoder_name} audio encoder, a projector and a {{arch}} text decoder"


@dataclass(frozen=True)
class Layout:
    """A checkpoint's tensors, sorted out."""

    variant: Variant
    arch: Arch | None  # of the decoder
    renames: Renames  # empty where all names are canonical
    sources: Mapping[str, Source]  # by canonical name
    unmatched: tuple[str, ...]  # stored names that no rule knows
    ignored: Mapping[str, Source]  # by stored name

    def encoder_sizes(self) -> dict[str, Any]:
        """What the encoder's tensors tell, by the names of the configuration's fields."""
        dim, _, mels, width = self.sources["audio_encoder.patch_embed.proj.weight"].shape
        hidden = self.sources["audio_encoder.blocks.0.mlp.fc1.weight"].shape[0]
        return {
            "embed_dim": dim, "depth": self.count("audio_encoder.blocks."), "mlp_ratio": hidden / dim,
            "n_mels": mels, "patch_size": [mels, width], "patch_stride": [mels, width],
            "target_length": self.sources["audio_encoder.time_pos_embed"].shape[-1] * width,
        }  # fmt: skip

    def count(self, prefix: str) -> int:
        """How many numbered modules follow a prefix, e.g. "audio_encoder.blocks."."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.sources if name.startswith(prefix)})
