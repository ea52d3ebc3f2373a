"""A checkpoint of the family, opened: a Hugging Face folder or a Dasheng torch file, checked, read tensor by tensor.

Its tensors say what it is (`layout`). Its sizes are read from the tensors and compared with `config.json`;
what tensors cannot tell (heads, rotary base, STFT sizes) comes from there (`sizes`). Nothing is loaded until a tensor
is asked for, except a head that is stored although it is said to be the embedding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasheng_edge.export.files.json_files import checked, read_json
from dasheng_edge.export.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    TORCH_SUFFIXES,
    weights_file,
)
from dasheng_edge.export.files.pull_record import Origin, read_origin
from dasheng_edge.export.files.tensor_files import Source, equal_tensors, read_header, read_shards
from dasheng_edge.export.files.torch_file import read_torch_file
from dasheng_edge.export.variants.specs import DecoderSpec, EncoderSpec
from dasheng_edge.export.variants.stated import FIX, Stated
from dasheng_edge.export.variants.table import VARIANTS
from dasheng_edge.export.variants.variant import Assumption, Layout, Renames, Variant
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError, DashengEdgeError

from .layout import find_layout, is_ignored
from .sizes import EMBEDDING, HEAD, TextConfig, decoder_sizes, encoder_sizes, expected_shapes
from .unsupported import not_a_checkpoint, not_a_folder, refuse_half_saved, refuse_other_models, refuse_quantized

# Names of folders that say nothing about the model in them; the last is a commit, as in the hub's cache.
_GENERIC = re.compile(r"(final|merged|model|output|outputs|checkpoint|checkpoint-\d+|snapshots|[0-9a-f]{40}|\.*)")


_NAMED = 4  # files, where there are many
_OTHER_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")

ASSUMPTIONS = (  # beside those of the variant
    Assumption(
        "heads by size", "the encoder has as many attention heads as the published one of its size",
        "the encoder's attention", "the configuration does not say it, and tensors cannot",
    ),
    Assumption(
        "tied by absence", "the head is the embedding",
        "the decoder's head", "no head is stored, and config.json does not say tie_word_embeddings",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: names, shapes and sizes, no weights yet."""

    folder: Path  # that side files lie in
    config: Mapping[str, Any]
    encoder: EncoderSpec
    front_end: FrontEndSpec
    decoder: DecoderSpec | None
    sources: Mapping[str, Source]  # by canonical name
    files: tuple[Path, ...]  # that hold tensors
    variant: Variant = VARIANTS["midashenglm"]
    renames: Renames = ()
    name: str = ""  # for people; never a path
    origin: Origin | None = None
    ignored: tuple[str, ...] = ()  # tensors that inference does not need, by stored name
    assumed: tuple[str, ...] = ()  # keys of what is taken for granted
    read_from: str = ""  # the file that its tensors are in, or the index of those
    left_aside: tuple[str, ...] = ()  # other files of weights beside it

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is taken for granted in exporting it, a sentence each; mostly nothing."""
        entries = (*self.variant.code.assumptions, *ASSUMPTIONS)
        return tuple(str(entry) for entry in entries if entry.key in self.assumed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may not be as its owner thinks, a sentence each; mostly nothing."""
        if not self.left_aside:
            return ()
        others = ", ".join(self.left_aside[:_NAMED]) + (" ..." if len(self.left_aside) > _NAMED else "")
        sentence = (
            f"the weights are those of {self.read_from}, which transformers would load, too; other weights in that "
            f"folder were left aside: {others}; remove what is old"
        )
        return (sentence,)

    @property
    def text_decoder(self) -> DecoderSpec:
        """The decoder of a checkpoint that has one."""
        assert self.decoder is not None
        return self.decoder

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.decoder is not None and self.decoder.tied

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, float32."""
        return self.sources[name].rows(start, stop)

    def sha256(self) -> str:
        """SHA-256 of all tensor files by name, one after another: `cat *.safetensors | sha256sum`."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def parameters(self, prefix: str) -> int:
        """Trained values under a prefix, e.g. "audio_encoder."; running statistics are not, a tied head is no more."""
        return sum(
            torch.Size(source.shape).numel()
            for name, source in self.sources.items()
            if name.startswith(prefix) and ".running_" not in name
        )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a local checkpoint and check every name and shape in it.

    Raises:
        CheckpointNotFoundError: there is no such folder, or no checkpoint in it.
        CheckpointFileError: a shard is missing or broken, or config.json contradicts the tensors.
        CheckpointVariantError: the tensors are not those of a member of the family.
    """
    try:
        return _opened(_read(Path(path)))
    except DashengEdgeError:
        raise
    except OSError as error:
        raise CheckpointFileError(f"cannot read checkpoint {path}: {error}; check its name and permissions") from error


def _opened(stored: _Stored) -> Checkpoint:
    path, folder, config = stored.path, stored.folder, stored.config
    origin = read_origin(folder)
    refuse_other_models(path, config)
    weights = {name: source for name, source in stored.tensors.items() if not is_ignored(name)}
    refuse_half_saved(path, weights)
    refuse_quantized(path, config, weights, _names(path, config, origin))
    layout = find_layout(path, config, stored.tensors)
    stated = Stated(str(path), stored.stated_by, config, *_feature_extractor(folder))
    encoder, front_end, assumed = encoder_sizes(stated, layout)
    sources, decoder = dict(layout.sources), None
    if layout.variant.decodes:
        tied, by_absence = _tied(stated, sources)
        if tied:
            sources.pop(HEAD, None)
        decoder = decoder_sizes(stated, layout, tied=tied)
        assumed = (*assumed, *by_absence)
    _check_shapes(path, layout, sources, expected_shapes(layout.variant, encoder, front_end, decoder))
    return Checkpoint(
        folder, config, encoder, front_end, decoder, sources,
        files=tuple(sorted({source.file for source in stored.tensors.values()})),
        variant=layout.variant, renames=layout.renames, name=_name(path, config, origin), origin=origin,
        ignored=tuple(layout.ignored),
        assumed=(*(entry.key for entry in layout.variant.code.assumptions if entry.always), *assumed),
        read_from=stored.read_from, left_aside=stored.left_aside,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stored:
    """What lies on the disk."""

    path: Path  # the checkpoint: a folder, or a torch file
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Source]  # by stored name
    stated_by: str  # what messages call the configuration
    read_from: str
    left_aside: tuple[str, ...] = ()


def _read(path: Path) -> _Stored:
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        return _Stored(path, path.parent, *read_torch_file(path), f'"config" in {path.name}', path.name)
    if not path.is_dir():
        raise not_a_folder(path)
    files = sorted(file.name for file in path.iterdir() if file.is_file())
    described = CONFIG in files and any(_OTHER_WEIGHTS.fullmatch(name) for name in files)
    config = read_json(path / CONFIG) if described else {}
    weights = weights_file(path, files, config)
    torch_files = [path / name for name in files if Path(name).suffix in TORCH_SUFFIXES]
    if weights is None and len(torch_files) == 1 and ADAPTER_CONFIG not in files:
        return _read(torch_files[0])
    if weights is None or CONFIG not in files:
        raise not_a_checkpoint(path)
    tensors = read_shards(path / weights) if weights.endswith(".json") else read_header(path / weights)
    used = {weights, ADAPTER_WEIGHTS, *(source.file.name for source in tensors.values())}
    others = tuple(name for name in files if name not in used and _OTHER_WEIGHTS.fullmatch(name))
    return _Stored(path, path, config, tensors, str(path / CONFIG), weights, others)


def _feature_extractor(folder: Path) -> tuple[Mapping[str, Any], str]:
    """What is stated about the spectrogram, and where; a processor of transformers 5 holds it, and older ones may."""
    if isinstance(nested := read_json(folder / PROCESSOR, missing_ok=True).get("feature_extractor"), dict):
        return nested, f"{folder / PROCESSOR}: feature_extractor"
    return read_json(folder / PREPROCESSOR, missing_ok=True), str(folder / PREPROCESSOR)


def _tied(stated: Stated, sources: Mapping[str, Source]) -> tuple[bool, tuple[str, ...]]:
    """Whether the head is the embedding, and the keys of the assumptions that this rests on."""
    known = checked(TextConfig, f"{stated.source}: text_config", stated.section("text_config"), FIX)
    said = known.tie_word_embeddings
    if said is None and isinstance(top := stated.config.get("tie_word_embeddings"), bool):
        said = top
    if HEAD in sources:
        # Stored although it is said to be the embedding: some writers store both, and what is stored is what
        # counts where they differ. Not said to be tied, it is a head of its own, as a further training would have it.
        return bool(said) and equal_tensors(sources[EMBEDDING], sources[HEAD]), ()
    if said is False:
        raise CheckpointVariantError(
            f"{stated.where}: there is no lm_head.weight, and {stated.source} says tie_word_embeddings false; download "
            "all shards, or state tie_word_embeddings true if the head is the embedding"
        )
    return True, () if said else ("tied by absence",)


def _check_shapes(
    where: Path, layout: Layout, sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = [name for name in expected if name not in sources]
    unexpected = sorted([*layout.unmatched, *(source.name for name, source in sources.items() if name not in expected)])
    if missing or unexpected:
        raise CheckpointVariantError(
            f"{where}: {len(missing)} tensors are missing ({', '.join(missing[:5]) or 'none'}) and "
            f"{len(unexpected)} are unexpected ({', '.join(unexpected[:20]) or 'none'}); expected exactly those of "
            f"variant {layout.variant.name!r}"
            + (f" with a decoder of architecture {layout.arch}" if layout.arch else "")
        )
    for name, shape in expected.items():
        if sources[name].shape != shape:
            stored = sources[name].name
            known_as = f"{name} (stored as {stored})" if stored != name else name
            raise CheckpointVariantError(f"{where}: {known_as} has shape {sources[name].shape}, expected {shape}")


def _name(path: Path, config: Mapping[str, Any], origin: Origin | None) -> str:
    """The first of a checkpoint's names that says something about it."""
    names = [name.rpartition("--")[2] for name in _names(path, config, origin) if name]
    return next((name for name in names if not _GENERIC.fullmatch(name)), names[0])


def _names(path: Path, config: Mapping[str, Any], origin: Origin | None) -> Iterable[str]:
    """What a checkpoint may be called: by whoever published it, by its folder, by config.json, by folders above."""
    path = path.resolve()
    if origin:
        yield origin.repo.rpartition("/")[2]
    yield path.stem if path.suffix in TORCH_SUFFIXES else path.name
    yield re.split(r"[/\\]", str(config.get("_name_or_path") or "").rstrip("/\\"))[-1]
    yield from (parent.name for parent in list(path.parents)[:2] if parent != Path.home())  # called as its owner
