"""What the exporter must know about a member of the family, and a checkpoint's tensors, sorted by it.

No import of torch: the table is read by what downloads, too. A variant's code is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointVariantError

from .specs import Arch, Published
from .stated import Stated

if TYPE_CHECKING:
    from dasheng_edge.export.files.tensor_files import Source

    from .modules import ChunkedEncoder

Feed: TypeAlias = Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]  # inputs of a graph, by name
Renames: TypeAlias = tuple[tuple[str, str], ...]  # (stored module, canonical module), the most special first
# Attention heads if they are stated or implied, the front end, and keys of the assumptions that these rest on.
Read: TypeAlias = tuple[int | None, FrontEndSpec, tuple[str, ...]]


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
class Code:
    """What a variant's module does with a checkpoint."""

    encoder: type[ChunkedEncoder]  # the reference
    read: Callable[[Stated, Layout], Read]  # from config.json and tensors
    examples: Callable[[FrontEndSpec], list[Feed]]  # chunks that catch mistakes; the last is traced by the exporter
    branch: Callable[[StoredTensors, Renames], Mapping[str, str]] = _no_branch  # further modules: stored -> canonical
    assumptions: tuple[Assumption, ...] = ()  # that it rests on, or may


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str  # in manifests
    marks: tuple[tuple[str, int | None], ...]  # (end of a tensor's name, its dimensions): one of them tells the variant
    encoder_name: str  # for people
    module: str  # beside this one, with its code as `CODE`
    inputs: tuple[str, ...]  # of the encoder's graph
    decodes: bool = True
    section: str = "audio_encoder_config"  # of config.json, that describes the encoder
    required: Mapping[str, object] = field(
        default_factory=dict
    )  # fields that would change the computation, with the only value implemented
    extractor_required: Mapping[str, object] = field(default_factory=dict)  # the same of preprocessor_config.json
    ignored: tuple[str, ...] = ()  # beginnings of names that are not needed, beside what no variant needs
    sizing: Mapping[str, int] = field(
        default_factory=dict
    )  # further tensors that sizes are read from, and their dimensions
    published: tuple[Published, ...] = ()

    @cached_property
    def code(self) -> Code:
        """Its code, which needs torch."""
        code: Code = import_module(f".{self.module}", __package__).CODE
        return code

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
