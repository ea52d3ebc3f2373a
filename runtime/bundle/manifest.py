"""`manifest.json`: everything that the runtime must know of a bundle and that no file says itself.

Unknown keys are refused, so that a manifest of a newer version is not half understood.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dasheng_edge.runtime.errors import BundleManifestError, BundleNotFoundError
from dasheng_edge.runtime.names import bundle_hint

from .front_end_spec import FrontEndSpec
from .program import PENALTY_WINDOW, Program, SamplerStep, graph_inputs

SCHEMA_VERSION = 5  # the newest that this version reads
MANIFEST = "manifest.json"
KvType: TypeAlias = Literal["f16", "q8_0", "q4_0"]  # how llama.cpp keeps keys and values, by its names
_NGRAM = "no_repeat_ngram_size"
UNREADABLE = (OSError, ValueError, RecursionError)  # what a file that is no JSON raises; the last: nested too deeply


MAX_BYTES = 4 << 20  # of a manifest; one has 3 kB, and 100 kB with a type for each tensor
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def plain_name(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"{name!r} is not a plain file name inside the bundle")
    return name


class _Model(BaseModel):
    # JSON has no infinity and no NaN, but Python's reader takes them. Texts that have a limit must be Unicode, too.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=MAX_BYTES)


# Ranges far around what models have: memory and time follow from these numbers, and a manifest may state anything.
Width: TypeAlias = Annotated[int, Field(gt=0, le=1 << 16)]
Layers: TypeAlias = Annotated[int, Field(gt=0, le=1 << 10)]
Parameters: TypeAlias = Annotated[int, Field(ge=0, le=1 << 44)]
Positions: TypeAlias = Annotated[int, Field(gt=0, le=1 << 24)]  # and rows of a vocabulary
Tolerance: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]


class FileFacts(_Model):
    """Size and content of one file."""

    bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class EncoderFacts(_Model):
    """The audio encoder and the precision its graph computes in."""

    embed_dim: Width
    depth: Layers
    num_heads: Layers
    parameters: Parameters
    precision: str  # "fp32", or one of quant.recipes.EncoderPrecision; the projector's too


class DecoderFacts(_Model):
    """The text decoder; `precision` is llama.cpp's name of the file type."""

    arch: Literal["qwen2", "qwen3"]
    hidden_size: Width
    layers: Layers
    vocab_size: Positions  # rows of the embedding table
    context_length: Positions  # that the decoder was made for
    parameters: Parameters
    precision: str  # "F32", "F16", "Q4_K_M" ...
    kv_type: KvType = "f16"  # what the runtime asks llama.cpp for; an F32 decoder has F32 in any case


class Sampling(_Model):
    """Sampling defaults; temperature 0 is greedy decoding."""

    temperature: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0  # 0: all tokens
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0  # so many tokens in a row come once in an answer; 0: no limit

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Readers that do not know the newest key refuse it, so it is written where it says something."""
        fields: dict[str, object] = written(self)
        return fields if self.no_repeat_ngram_size else {k: v for k, v in fields.items() if k != _NGRAM}

    @property
    def steps(self) -> tuple[SamplerStep, ...]:
        """What is done to choose a token, in that order."""
        steps: list[SamplerStep] = []
        if self.no_repeat_ngram_size:
            steps.append(SamplerStep(step="no_repeat_ngram", value=self.no_repeat_ngram_size))
        if self.repetition_penalty != 1.0:
            steps.append(
                SamplerStep(step="repetition_penalty", value=self.repetition_penalty, last_tokens=PENALTY_WINDOW)
            )
        if not self.temperature:
            return (*steps, SamplerStep(step="greedy"))
        steps.append(SamplerStep(step="temperature", value=self.temperature))
        if self.top_k:
            steps.append(SamplerStep(step="top_k", value=self.top_k))
        if self.top_p < 1:
            steps.append(SamplerStep(step="top_p", value=self.top_p))
        if self.min_p:
            steps.append(SamplerStep(step="min_p", value=self.min_p))
        return (*steps, SamplerStep(step="draw", value=self.seed))


class PromptFacts(_Model):
    """What the prompt is made of when the caller does not say otherwise. The chat template is in the GGUF."""

    system: str | None = None  # None: no system turn but one that the template writes by itself
    prompt: str
    audio_first: bool = True  # order of audio and text in the user turn
    audio_token: str = "<|AUDIO|>"
    audio_bos_token: str = "<|audio_bos|>"
    audio_eos_token: str = "<|audio_eos|>"
    max_new_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 128
    sampling: Sampling = Sampling()
    comfortable_s: Annotated[float, Field(gt=0, le=86400)] = 210.0  # beyond this, output was seen to degrade
    special_tokens: dict[str, str | list[str]] | None = None  # that the template asks for; None: see the GGUF
    notes: tuple[str, ...] = ()  # where these come from, for readers


class Tolerances(_Model):
    """Largest error that `verify` accepts at each seam, given the precision of the parts.

    Relative errors are RMS(got - want) / RMS(want). `token_margin` is in logits: a greedy token may differ
    from the golden one only where the reference itself preferred it by less than this.
    """

    log_mel_db: Tolerance
    acoustic_nepers: Tolerance | None = None  # of models with an acoustic branch
    patches_relative: Tolerance
    # Of models with a decoder:
    embeddings_relative: Tolerance | None = None
    logits_relative: Tolerance | None = None
    token_margin: Tolerance | None = None
    # Of `NAME.cuda.onnx`, which round what they multiply as well; None where there are none, and in older bundles.
    cuda_patches_relative: Tolerance | None = None
    cuda_embeddings_relative: Tolerance | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Readers that do not know the newest keys refuse them, so they are written where they say something."""
        fields: dict[str, object] = written(self)
        return {key: value for key, value in fields.items() if value is not None or not key.startswith("cuda_")}


class Provenance(_Model):
    """Where the bundle comes from."""

    tool: str  # "dasheng-edge 0.1.0"
    checkpoint: str  # folder name or hub id, never an absolute path
    revision: str | None = None  # commit on the hub
    checkpoint_sha256: str  # over the tensors' files
    adapters: tuple[str, ...] = ()  # "name sha256" or "owner/name@revision sha256", in the order they were merged
    versions: dict[str, str] = {}  # of the libraries that made it


class ImatrixFacts(_Model):
    """The importance matrix that a decoder was quantized with."""

    name: str  # of the file, or "audio" where it was measured on the way
    sha256: str
    datasets: tuple[str, ...] = ()  # as the file names them


class CalibrationFacts(_Model):
    """The clips that a quantization was measured on."""

    name: str  # of the manifest of clips or the folder, never a path
    clips: Annotated[int, Field(ge=0)]
    audio_s: Annotated[float, Field(ge=0)]
    sha256: str  # over the samples of all clips


class VocabularyFacts(_Model):
    """Which tokens a decoder was cut to; how many they are says `DecoderFacts.vocab_size`."""

    tokens_before: Positions  # any were cut
    corpora: dict[str, str] = {}  # name of a text file -> its SHA-256; none: chosen by the tokenizer's merges
    held_out_share: Annotated[float, Field(ge=0, le=1)] | None = None  # of tokens of text like it: those that are gone


class QuantizationFacts(_Model):
    """How a bundle was made smaller."""

    recipe: str | None = None  # one of quant.recipes, if one was named
    source_sha256: str  # of the manifest that it was made from
    imatrix: ImatrixFacts | None = None
    calibration: CalibrationFacts | None = None
    tensor_types: dict[str, str] = {}  # pattern of a decoder tensor's name -> its type, where it was overridden
    encoder_matrices: dict[str, str] = {}  # matrix -> precision, of a mixed encoder
    smoothed: dict[str, float] = {}  # matrix -> exponent of its smoothing scales
    embeddings_snr_db: float | None = None  # against the source, on the calibration clips; the bundle's own without
    vocabulary: VocabularyFacts | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_whole(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Readers that do not know the newest key refuse it, so it is written where it says something."""
        fields: dict[str, object] = written(self)
        return fields if self.vocabulary else {key: value for key, value in fields.items() if key != "vocabulary"}


class Manifest(_Model):
    """`manifest.json`: everything that the runtime must know and that no file says itself."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    name: str
    variant: str  # the exporter's name of what the model consists of: for people, since the facts below decide
    front_end: FrontEndSpec
    encoder: EncoderFacts
    # None where there is no decoder; bundles of schema 1 do not count the projector's either
    projector_parameters: Parameters | None = None
    decoder: DecoderFacts | None = None
    prompt: PromptFacts | None = None
    tolerances: Tolerances
    provenance: Provenance
    quantization: QuantizationFacts | None = None  # None: as it was exported
    program: Program | None = None  # None: as before schema 5
    files: Annotated[dict[Annotated[str, AfterValidator(plain_name)], FileFacts], Field(max_length=64)]

    @model_validator(mode="after")
    def _check_parts(self) -> Manifest:
        limits, decodes = self.tolerances, self.decoder is not None
        facts: dict[str, object] = {
            "prompt": self.prompt,
            "tolerances.embeddings_relative": limits.embeddings_relative,
            "tolerances.logits_relative": limits.logits_relative, "tolerances.token_margin": limits.token_margin,
        }  # fmt: skip
        if not decodes:
            facts["projector_parameters"] = self.projector_parameters
        if wrong := [key for key, value in facts.items() if (value is not None) != decodes]:
            what = "states a decoder, but lacks" if decodes else "states no decoder, but"
            raise ValueError(f"the manifest {what} {', '.join(wrong)}")
        if (self.front_end.acoustic is None) != (limits.acoustic_nepers is None):
            raise ValueError("front_end.acoustic and tolerances.acoustic_nepers go together, expected both or neither")
        return self

    @model_validator(mode="after")
    def _check_program(self) -> Manifest:
        """What `program` says must be what follows from the rest, as far as the manifest itself knows."""
        program, decodes = self.program, self.decoder is not None
        if program is None:
            return self
        follows: dict[str, object] = {
            "inputs": graph_inputs(self.front_end, decodes=decodes),
            "sampler": self.prompt.sampling.steps if self.prompt else None,
        }
        wrong = [key for key, value in follows.items() if getattr(program, key) != value]
        parts = {"stop_ids": program.stop_ids, "prompts": program.prompts, "decoder": program.decoder}
        wrong += [key for key, value in parts.items() if (value is not None) != decodes]
        if wrong:
            raise ValueError(
                f"program.{wrong[0]} is not what follows from the rest of the manifest; `dasheng-edge upgrade` writes "
                "it anew once program is removed from the manifest"
            )
        return self

    @property
    def total_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(facts.bytes for facts in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` of a bundle; touches no other file.

    Raises:
        BundleNotFoundError: there is no folder, or no manifest in it.
        BundleManifestError: the manifest is not JSON, is of a newer schema, or has wrong or unknown keys.
    """
    path = folder / MANIFEST
    try:
        is_folder, exists, has_manifest = folder.is_dir(), folder.exists(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that must not be entered
        raise BundleNotFoundError(f"cannot open bundle {folder}: {error.strerror}; check the path") from error
    if not is_folder:
        what = "this is a file" if exists else "nothing of this name exists"
        hint = "" if exists else f"; {bundle_hint(folder)}".removesuffix("; ")
        raise BundleNotFoundError(
            f"cannot open bundle {folder}: {what}; expected a folder made by `dasheng-edge export`{hint}"
        )
    if not has_manifest:
        raise BundleNotFoundError(
            f"cannot open bundle {folder}: no {MANIFEST} in it, so this is not a bundle or its export did not "
            "finish; make one with `dasheng-edge export CHECKPOINT --out BUNDLE`"
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        raw = json.loads(content.decode("utf-8"))
    except UNREADABLE as error:
        raise BundleManifestError(f"cannot read {path}: {error}; export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleManifestError(
            f"{path} has schema version {version}, this dasheng-edge reads up to {SCHEMA_VERSION}; "
            "install a newer dasheng-edge"
        )
    try:
        Manifest.model_validate(raw)  # says of more what is wrong
        return Manifest.model_validate_json(json.dumps(raw), strict=True)  # true is no number, and a text is none
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(_shown, first["loc"])) or "the top level"
        got = f", got {_shown(first['input'])}" if isinstance(first["input"], str | int | float) else ""
        raise BundleManifestError(
            f"{path} is not a valid manifest: {where}: {first['msg']}{got} ({error.error_count()} problems in all); "
            "export the bundle again"
        ) from error


def _shown(value: object) -> str:
    """What stands in a manifest, for a terminal."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 60 else ascii(text)[:60]
