"""An adapter, opened and checked: what it adds to which tensors of a checkpoint, and what it replaces.

Which module a name means and what each tensor of an adapter's file is for are peft's. `config.py` reads
`adapter_config.json`, `patterns.py` tries its patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.export.checkpoint.checkpoint import Checkpoint
from dasheng_edge.export.checkpoint.layout import unwrapped
from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD
from dasheng_edge.export.checkpoint.unsupported import ZERO3
from dasheng_edge.export.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_ADAPTER
from dasheng_edge.export.files.pull_record import Origin, read_origin
from dasheng_edge.export.files.tensor_files import Source, equal_tensors, read_header, row_blocks
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.errors import AdapterError, CheckpointFileError, DashengEdgeError

from .config import Matcher, adapter_name, check_folder, read_config
from .lora import LowRank
from .patterns import check_patterns

# Parts of its pattern, of which it joins those that are asked for.
_MDL_TOOLKIT = (
    r"^audio_encoder\.blocks\.\d+\.attn\.(qkv|proj)$", r"^audio_projector\.net\.(0|2)$",
    r"^decoder\.model\.layers\.\d+\.(self_attn|mlp)\.(up|gate|down)_proj$",
)  # fmt: skip
PREFIX = "base_model.model."  # peft's, before the checkpoint's own names
# Ends of the names that peft gives to the tensors beside a module -> which of them it is.
_FACTORS = {
    ".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B",
    ".lora_embedding_A": "lora_embedding_A", ".lora_embedding_B": "lora_embedding_B",
    ".lora_magnitude_vector": "lora_magnitude_vector", ".lora_magnitude_vector.weight": "lora_magnitude_vector",
}  # fmt: skip
# Where the base's own tensors, and their copies, are in what peft puts around a module: sometimes with its own name.
_BASE, _ORIGINAL = ".base_layer.", ".original_module."
_COPIES = (re.compile(r"\.modules_to_save\."), re.compile(r"\.modules_to_save\.[^.]+\."))


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: what it adds to and what it replaces, by canonical names."""

    name: str
    sha256: str
    low_rank: Mapping[str, LowRank]
    loaded: Mapping[str, Source]  # written over the base before anything is merged: trained biases, vocabularies
    replaced: Mapping[str, Source]  # modules_to_save, put in the modules' places at the end
    keeps_tie: bool = False  # ensure_weight_tying: a replaced embedding is also the head
    base: object = None  # base_model_name_or_path: what it says that it was trained on
    origin: Origin | None = None
    warnings: tuple[str, ...] = ()  # what may not be as its owner thinks, a sentence each

    @property
    def provenance(self) -> str:
        """Where it is from and its hash: "OWNER/NAME@REVISION SHA256" if it was pulled, else "NAME SHA256"."""
        source = f"{self.origin.repo}@{self.origin.revision}" if self.origin else self.name
        return f"{source} {self.sha256}"


def open_adapter(folder: str | Path, checkpoint: Checkpoint) -> Adapter:
    """Open an adapter in peft's layout and check that it fits the checkpoint; reads no weights.

    Raises:
        AdapterError: the folder holds no adapter, or one that cannot be merged or was made for another model.
    """
    try:
        return _opened(Path(folder), checkpoint)
    except CheckpointFileError as error:  # from what reads the files of checkpoints, too
        raise AdapterError(str(error)) from error
    except DashengEdgeError:
        raise
    except OSError as error:
        raise AdapterError(f"cannot read adapter {folder}: {error}; check its name and permissions") from error


def _opened(folder: Path, checkpoint: Checkpoint) -> Adapter:
    check_folder(folder)
    facts = read_config(folder)
    factors: dict[str, dict[str, Source]] = {}
    whole: dict[str, Source] = {}
    for stored, source in _read_tensors(folder).items():
        name = unwrapped(stored).removeprefix(PREFIX)
        if name == unwrapped(stored):
            raise AdapterError(f"{folder}: tensor {stored} does not begin with {PREFIX}; save the adapter with peft")
        suffix = next((suffix for suffix in _FACTORS if name.endswith(suffix)), None)
        if suffix is None:
            whole[name] = source
        else:
            module, part = name.removesuffix(suffix), _FACTORS[suffix]
            other = factors.setdefault(module, {}).setdefault(part, source)
            if other is not source and not equal_tensors(other, source):  # peft stores the head's magnitude twice
                raise AdapterError(f"{folder}: {other.name} and {stored} are one tensor under two names; save it again")
    check_patterns(folder / ADAPTER_CONFIG, facts, factors)
    reader = _Reader(folder, Matcher(folder, facts), checkpoint)
    changed = {reader.canonical(f"{module}.weight") for module in factors}
    if facts.ensure_weight_tying and checkpoint.tied and {EMBEDDING, HEAD} & changed:
        raise AdapterError(
            f"{folder}: ensure_weight_tying with LoRA on the embedding of {reader.base}, which is also its "
            "head, is not supported: peft's own merge adds the change twice; train it in modules_to_save instead"
        )
    low_rank = dict(reader.low_rank(module, parts) for module, parts in factors.items())
    loaded, replaced = reader.whole(whole, factors)
    if not low_rank and not replaced and not loaded:
        raise AdapterError(f"{folder / ADAPTER_WEIGHTS} holds no tensor, expected lora_A and lora_B matrices")
    order = {name: position for position, name in enumerate((*checkpoint.sources, HEAD))}  # peft merges in this order
    low_rank = dict(sorted(low_rank.items(), key=lambda item: order[item[0]]))
    origin = read_origin(folder)
    return Adapter(
        adapter_name(folder, origin), sha256_of(folder / ADAPTER_WEIGHTS), low_rank, loaded, replaced,
        facts.ensure_weight_tying, facts.base_model_name_or_path, origin, _warnings(folder, reader),
    )  # fmt: skip


def _read_tensors(folder: Path) -> dict[str, Source]:
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        others = sorted(file.name for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))
        pickled = ", a pickle, which is not opened" if others and others[0].endswith(".bin") else ""
        instead = f", but {others[0]}{pickled}" if others else ""
        raise AdapterError(
            f"{folder} has no {ADAPTER_WEIGHTS}{instead}; save it with peft's "
            "save_pretrained(safe_serialization=True), which writes that file"
        )
    used = {name: source for name, source in read_header(path).items() if not name.endswith(".num_batches_tracked")}
    if empty := [name for name, source in used.items() if source.shape == (0,)]:
        raise AdapterError(
            f"{path}: {len(empty)} of {len(used)} tensors are empty ({empty[0]}), {ZERO3}; save the adapter again with "
            "its weights gathered, or take them from the training's own files with DeepSpeed's zero_to_fp32.py"
        )
    if packed := {source.dtype for source in used.values()} - {"F32", "F16", "BF16", "F64"}:
        raise AdapterError(f"{path} holds {_listed(packed)} values, expected floating-point ones; save it unquantized")
    return used


class _Reader:
    """Checks an adapter's tensors against its configuration and the checkpoint."""

    def __init__(self, folder: Path, matcher: Matcher, checkpoint: Checkpoint) -> None:
        self.folder, self.matcher, self.facts, self.checkpoint = folder, matcher, matcher.facts, checkpoint
        self.base = checkpoint.name or checkpoint.folder.name
        self.shapes = {name: source.shape for name, source in checkpoint.sources.items()}
        self.stored = {name: unwrapped(source.name) for name, source in checkpoint.sources.items()}
        if checkpoint.tied:  # a module without a tensor of its own
            beside = self.stored[EMBEDDING].removesuffix("embed_tokens.weight").removesuffix("model.")
            known = {canonical: stored for stored, canonical in checkpoint.renames}  # where it is stored all the same
            head = known.get(HEAD.removesuffix(".weight"), f"{beside}lm_head")
            self.shapes[HEAD], self.stored[HEAD] = self.shapes[EMBEDDING], f"{head}.weight"
        self.names = {stored: name for name, stored in self.stored.items()}

    def _misfit(self, why: str) -> AdapterError:
        sep = " " if why.endswith("or") else "; "
        return AdapterError(
            f"{self.folder} does not fit {self.base}: {why}{sep}give the checkpoint that the adapter was trained on"
        )

    def _check_vocabulary(self, name: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
        """Tell a resized embedding or head from one of another model: it differs in the rows of the vocabulary."""
        rows = self.shapes[EMBEDDING][0]
        sizes = [(theirs, ours) for theirs, ours in zip(got, want, strict=False) if theirs != ours]
        if len(got) == len(want) and len(sizes) == 1 and sizes[0][1] == rows:
            raise self._misfit(
                f"{name} has shape {got}, expected {want}: tokens were added to the vocabulary of {rows} before it was "
                "trained (resize_token_embeddings); merge it with peft into the resized model, save that with its "
                "tokenizer and export it, or"
            )

    def canonical(self, stored: str) -> str | None:
        """The canonical name of a stored name; None if the base has no such tensor. Peft knows modules by stored names.

        A canonical name may be the stored name of another module: "audio_encoder.norm" of a model with two branches.
        """
        return self.names.get(stored)

    def low_rank(self, module: str, parts: Mapping[str, Source]) -> tuple[str, LowRank]:
        """Canonical name of a weight and the matrices beside it, checked against it and the configuration."""
        name = self.canonical(f"{module}.weight")
        shape = self.shapes[name] if name else ()
        if name is None or len(shape) < 2:
            raise self._misfit(f"it changes {module}, which is no matrix of that checkpoint")
        if not self.matcher.is_target(module):
            raise AdapterError(
                f"{self.folder} holds {min(parts)} of {module}, but its configuration (target_modules, "
                "exclude_modules, layers_to_transform, modules_to_save) leaves that module out, so that peft would "
                "ignore it; correct adapter_config.json or save the adapter again"
            )
        kind = "lora_embedding_" if name == EMBEDDING else "lora_"
        expected = {f"{kind}A", f"{kind}B"} | ({"lora_magnitude_vector"} if self.facts.use_dora else set())
        if expected != set(parts):
            raise AdapterError(
                f"{self.folder}: {module} has {_listed(parts)}, expected {_listed(expected)} (use_dora "
                f"{self.facts.use_dora}); save the adapter again"
            )
        rank, scale = self.matcher.rank_and_scale(module)
        for part, want in _expected_shapes(name, shape, rank).items():
            if part in parts and parts[part].shape != want:
                got = parts[part].shape
                if name in (EMBEDDING, HEAD):
                    self._check_vocabulary(module, got, want)
                raise self._misfit(
                    f"{module} has {part} {got}, expected {want} for rank {rank} and a weight of {shape}"
                )
        magnitude = parts.get("lora_magnitude_vector")
        return name, LowRank(parts[f"{kind}A"], parts[f"{kind}B"], scale, magnitude, embedding=name == EMBEDDING)

    def whole(
        self, tensors: Mapping[str, Source], adapted: Mapping[str, object]
    ) -> tuple[dict[str, Source], dict[str, Source]]:
        """The whole tensors of an adapter: those that peft loads into the base, and those of modules_to_save."""
        loaded: dict[str, Source] = {}
        replaced: dict[str, Source] = {}
        for name, source in tensors.items():
            if any(pattern.sub(".", name, 1) in tensors.keys() - {name} for pattern in _COPIES):
                continue  # stored twice: peft ignores the one that says how the module was wrapped
            plain = name.replace(_ORIGINAL, ".").replace(_BASE, ".")
            if self._is_loaded(name, plain, adapted):
                self._add(loaded, plain, source)
            elif self._is_saved(name.rpartition(".")[0]):
                self._add(replaced, name, source)
            else:
                raise AdapterError(
                    f"{self.folder}: tensor {name} is neither of LoRA nor of a module in modules_to_save "
                    f"({self.facts.modules_to_save}), so that peft would ignore it; save the adapter again"
                )
        for name, stored in self.stored.items():
            if name not in replaced and self._is_saved(stored.rpartition(".")[0]):
                raise AdapterError(
                    f"{self.folder} has no {stored}, although modules_to_save ({self.facts.modules_to_save}) names it; "
                    "save the adapter again"
                )
        return loaded, replaced

    def _is_saved(self, module: str) -> bool:
        """Whether modules_to_save names a module; of a head that stays tied, whether it names the embedding."""
        if self.matcher.is_saved(module):
            return True
        ends = {name: self.stored[name].removesuffix(".weight") for name in (EMBEDDING, HEAD) if name in self.stored}
        tying = self.facts.ensure_weight_tying and self.checkpoint.tied and module in ends.values()
        return tying and any(self.matcher.is_saved(end) for end in ends.values())

    def _is_loaded(self, name: str, plain: str, adapted: Mapping[str, object]) -> bool:
        """Whether peft loads a tensor into the base itself: trained biases, and the two ends of the vocabulary.

        Peft wraps a module that it changes, and the name of the base's own tensor says how.
        """
        module = plain.rpartition(".")[0]
        if self._is_saved(module):
            return _ORIGINAL in name
        if module in adapted:
            return _BASE in name
        vocabulary = module.endswith(("embed_tokens", "lm_head"))  # stored where it may have been resized
        return name == plain and (vocabulary or (self.facts.bias == "all" and name.endswith(".bias")))

    def _add(self, to: dict[str, Source], stored: str, source: Source) -> None:
        name = self.canonical(stored)
        if name is None and ".front_end." in f".{stored}":
            return  # the filterbank, which some checkpoints store and nobody needs
        if name is None:
            raise self._misfit(f"it replaces {stored}, which is not in that checkpoint")
        if source.shape != (shape := self.shapes[name]):
            if name in (EMBEDDING, HEAD):
                self._check_vocabulary(stored, source.shape, shape)
            raise self._misfit(f"{stored} has shape {source.shape}, expected {shape}")
        if (other := to.setdefault(name, source)) is not source:
            raise AdapterError(
                f"{self.folder}: {other.name} and {source.name} are one tensor under two names; save it again"
            )


def _warnings(folder: Path, reader: _Reader) -> tuple[str, ...]:
    """What an adapter leaves out, a sentence each."""
    said = []
    if (folder / PICKLED_ADAPTER).is_file():
        said.append(
            f"adapter {folder} is {ADAPTER_WEIGHTS}, which peft would load, too; {PICKLED_ADAPTER} beside it was left "
            "aside: remove what is old"
        )
    targets = reader.matcher.facts.target_modules
    if isinstance(targets, str) and any(part in targets for part in _MDL_TOOLKIT):
        said.append(
            f"adapter {folder} has the targets of mdl-toolkit, which also trains the statistics of the encoder's batch "
            "norm, and writes these to the merged model in final/ only: an adapter of checkpoint-N merged here hears "
            "otherwise than it did in its training (by 18 to 22 % after six steps); prefer to export final/"
        )
    return tuple(said)


def adds_nothing(adapter: Adapter) -> bool:
    """Whether an adapter leaves every weight as it is, as one does before its first step of training; reads B and A."""
    return not (adapter.loaded or adapter.replaced) and all(
        change.magnitude is None and (not change.scale or _is_zero(change.b) or _is_zero(change.a))
        for change in adapter.low_rank.values()
    )


def _is_zero(source: Source) -> bool:
    return not any(source.rows(*block).any() for block in row_blocks(source.shape))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _expected_shapes(name: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of peft's tensors beside a linear layer, a convolution, or the embedding."""
    window = (1,) * (len(shape) - 2)  # of a convolution
    if name == EMBEDDING:
        vocabulary, dim = shape
        return {
            "lora_embedding_A": (rank, vocabulary), "lora_embedding_B": (dim, rank), "lora_magnitude_vector": (dim,)
        }  # fmt: skip
    magnitude = (1, shape[0], *window) if window else shape[:1]
    return {"lora_A": (rank, *shape[1:]), "lora_B": (shape[0], rank, *window), "lora_magnitude_vector": magnitude}


def check_finite(adapter: Adapter) -> None:
    """Read every tensor of an adapter once, a block of rows at a time.

    Raises:
        AdapterError: a tensor holds NaN or infinity.
    """
    tensors = [
        (f"{name} ({part})", source) for name, pair in adapter.low_rank.items() for part, source in pair.sources()
    ]
    for name, source in (*tensors, *adapter.loaded.items(), *adapter.replaced.items()):
        for start, stop in row_blocks(source.shape):
            try:
                source.rows(start, stop)
            except CheckpointFileError as error:  # noqa: PERF203  # it ends the loop
                raise AdapterError(f"adapter {adapter.name} holds NaN or infinity in {name}: {error}") from error
