"""What a planner must know of a bundle: its sizes, its bytes, and the type of each matrix. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.manifest import EncoderFacts, KvType
from dasheng_edge.runtime.bundle.program import Program
from dasheng_edge.runtime.errors import GgufError
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
    precision: str  # llama.cpp's name of the file type; "" of one that is only planned
    text_rows: int  # of the default prompt that are decoded with each clip: those behind the audio
    max_new_tokens: int

    @classmethod
    def of(cls, header: Header, bundle: Bundle) -> DecoderShape:
        """As a header and the manifest say.

        Raises:
            GgufError: it holds what a decoder does not.
        """
        facts, program = bundle.decoder_facts, bundle.manifest.program
        try:
            matrices = {name: _matrices(one) for name, one in header.tensors.items() if len(one.shape) > 1}
            table, tied = matrices[TABLE], HEAD not in matrices
        except KeyError as error:
            raise GgufError(
                f"{header.path} is no decoder ({error}); copy the file again, or export it again"
            ) from error
        stated = Sizes.stated(header, header.text("general.architecture"))
        sizes = replace(stated, tokens=facts.vocab_size)
        return cls(
            sizes=sizes,
            bytes=header.size,
            body=tuple(_by_kind(one for name, one in matrices.items() if name.startswith(_LAYER))),
            table=table,
            head=table if tied else matrices[HEAD],
            tied=tied,
            kv_type=facts.kv_type,
            precision=facts.precision,
            text_rows=_text_rows(program),
            max_new_tokens=bundle.prompt_facts.max_new_tokens,
        )

    @classmethod
    def stated(cls, bundle: Bundle) -> DecoderShape:
        """As the manifest says, without the types of matrices, which memory does not hang on; else as the header does.

        The header of a decoder with a vocabulary of 152,000 tokens takes 50 ms to read.

        Raises what `of` raises.
        """
        facts, program, path = bundle.decoder_facts, bundle.manifest.program, bundle.path(DECODER)
        if program is None or program.decoder is None:
            return cls.of(read_header(path), bundle)
        stated = program.decoder
        sizes = Sizes(
            facts.arch, facts.hidden_size, facts.layers, stated.feed_forward_width, heads=0, kv_heads=1,
            head_width=stated.kv_width, tokens=facts.vocab_size,
        )  # fmt: skip
        none = Matrices(0, 0, 0)
        return cls(
            sizes, _size(path), (), none, none, stated.tied_head, facts.kv_type, facts.precision, _text_rows(program),
            bundle.prompt_facts.max_new_tokens,
        )  # fmt: skip


def _text_rows(program: Program | None) -> int:
    default = program.prompts.default if program and program.prompts else None
    return len(default.after) if default else _TEXT_ROWS


def _matrices(tensor: TensorInfo) -> Matrices:
    values, size = BLOCKS[tensor.kind]
    count = math.prod(tensor.shape)
    return Matrices(tensor.kind, count, count // values * size)


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
    def of(cls, bundle: Bundle, *, types: bool = True) -> ModelShape:
        """Of a bundle that was opened; `types`: with those of the decoder's matrices, which speed hangs on.

        Raises:
            GgufError: the decoder cannot be read.
        """
        manifest, graphs = bundle.manifest, [bundle.path(ENCODER), bundle.path(PROJECTOR)]
        decoder = None
        if manifest.decoder:
            decoder = (
                DecoderShape.of(read_header(bundle.path(DECODER)), bundle) if types else DecoderShape.stated(bundle)
            )
        return cls(
            name=str(bundle.folder),
            spec=manifest.front_end,
            encoder=manifest.encoder,
            projector_parameters=manifest.projector_parameters or 0,
            front_end_bytes=_size(bundle.path(FRONT_END)),
            graph_bytes=sum(map(_size, graphs)),
            beside_bytes=sum(_size(weights_file(graph)) for graph in graphs),
            decoder=decoder,
            total_bytes=sum(_size(bundle.path(file)) for file in manifest.files),
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
