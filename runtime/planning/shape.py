"""What a planner must know of a bundle: its sizes, its bytes, and the type of each matrix. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.manifest import EncoderFacts, KvType
from dasheng_edge.runtime.gguf.check import BLOCKS, Sizes
from dasheng_edge.runtime.gguf.header import Header, TensorInfo, read_header

TABLE, HEAD = "token_embd.weight", "output.weight"
_TEXT_ROWS = 12  # of the default prompts behind the audio, where an older manifest does not say
_LAYER = "blk."


@dataclass(frozen=True)
class Matrices:
    """Matrices of one type."""

    kind: int  # enum ggml_type
    values: int
    bytes: int


@dataclass(frozen=True)
class DecoderShape:
    """The decoder."""

    sizes: Sizes
    bytes: int  # of the file
    body: tuple[Matrices, ...]  # of all layers, by type
    table: Matrices  # of embeddings
    head: Matrices  # what makes logits, the same where it is tied
    tied: bool
    kv_type: KvType
    text_rows: int  # of the default prompt that are decoded with each clip: those behind the audio
    max_new_tokens: int

    @classmethod
    def of(cls, header: Header, kinds: Mapping[str, int], bundle: Bundle) -> DecoderShape:
        """With another type for some tensors, by their names; the file is then as large as these make it."""
        facts, program = bundle.decoder_facts, bundle.manifest.program
        tensors = {name: _Typed(info, kinds.get(name, info.kind)) for name, info in header.tensors.items()}
        layers = [one.matrices for name, one in tensors.items() if name.startswith(_LAYER) and one.is_matrix]
        table, tied = tensors[TABLE].matrices, HEAD not in tensors
        stated = Sizes.stated(header, header.text("general.architecture"))
        sizes = Sizes(**{**vars(stated), "tokens": facts.vocab_size})
        default = program.prompts.default if program and program.prompts else None
        return cls(
            sizes=sizes,
            bytes=header.data + sum(one.matrices.bytes for one in tensors.values()) if kinds else header.size,
            body=tuple(_by_kind(layers)),
            table=table,
            head=table if tied else tensors[HEAD].matrices,
            tied=tied,
            kv_type=facts.kv_type,
            text_rows=len(default.after) if default else _TEXT_ROWS,
            max_new_tokens=bundle.prompt_facts.max_new_tokens,
        )

    @property
    def read_bytes(self) -> int:
        """What a token reads: all layers, and what makes logits."""
        return sum(part.bytes for part in self.body) + self.head.bytes


@dataclass(frozen=True)
class _Typed:
    info: TensorInfo
    kind: int

    @property
    def is_matrix(self) -> bool:
        return len(self.info.shape) > 1

    @property
    def matrices(self) -> Matrices:
        values, size = BLOCKS[self.kind]
        count = math.prod(self.info.shape)
        return Matrices(self.kind, count, count // values * size)


def _by_kind(parts: Iterable[Matrices]) -> Iterable[Matrices]:
    parts = list(parts)
    for kind in sorted({part.kind for part in parts}):
        same = [part for part in parts if part.kind == kind]
        yield Matrices(kind, sum(part.values for part in same), sum(part.bytes for part in same))


@dataclass(frozen=True)
class ModelShape:
    """A bundle, or what a recipe would make of one."""

    name: str
    spec: FrontEndSpec
    encoder: EncoderFacts
    projector_parameters: int
    front_end_bytes: int
    graph_bytes: int  # of encoder and projector, weights in the graphs' own files
    beside_bytes: int  # weights in files beside them, which are mapped
    decoder: DecoderShape | None
    total_bytes: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, bundle: Bundle, name: str | None = None) -> ModelShape:
        """Of a bundle that was opened.

        Raises:
            GgufError: the decoder cannot be read.
        """
        manifest, graphs = bundle.manifest, [bundle.path(ENCODER), bundle.path(PROJECTOR)]
        decoder = DecoderShape.of(read_header(bundle.path(DECODER)), {}, bundle) if manifest.decoder else None
        return cls(
            name=name or str(bundle.folder),
            spec=manifest.front_end,
            encoder=manifest.encoder,
            projector_parameters=manifest.projector_parameters or 0,
            front_end_bytes=_size(bundle.path(FRONT_END)),
            graph_bytes=sum(map(_size, graphs)),
            beside_bytes=sum(_size(weights_file(graph)) for graph in graphs),
            decoder=decoder,
            total_bytes=manifest.total_bytes,
        )

    @property
    def heard_parameters(self) -> int:
        """Of encoder and projector, which compute in the same precision; a projector's row is a fifth of the rows."""
        return self.encoder.parameters + self.projector_parameters // self.spec.tokens_patches

    def chunks(self, clip_s: float) -> list[int]:
        """Patches of each chunk of a clip."""
        whole = self.spec.chunk_patches
        patches = max(1, self.spec.tokens_of(round(clip_s * self.spec.sample_rate_hz)) * self.spec.tokens_patches)
        return [min(whole, patches - start) for start in range(0, patches, whole)]

    def audio_rows(self, clip_s: float) -> int:
        """Audio tokens of a clip."""
        return self.spec.tokens_of(round(clip_s * self.spec.sample_rate_hz))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
