"""The bundle: a folder that holds one exported model, and the only module that knows its file names.

`Bundle.open` refuses, before anything is loaded, a bundle whose manifest or files are not what they should be.
`BundleWriter` writes one so that a folder under the final name is always complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import (
    BundleFileError,
    BundleManifestError,
    BundleNotFoundError,
    OutputExistsError,
    OutputWriteError,
)
from .front_end import FrontEndSpec

SCHEMA_VERSION = 2  # the newest that this version reads
MANIFEST = "manifest.json"
FRONT_END = "front_end.onnx"
ENCODER = "encoder.onnx"
PROJECTOR = "projector.onnx"
DECODER = "decoder.gguf"
GOLDEN = "golden.npz"
MODEL_CARD = "README.md"
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
# What a model consists of, told by its tensors: MiDashengLM with the Dasheng encoder (7B, micro) or with
# DashengTokenizer's two branches (0.6B), or a Dasheng encoder alone.
Variant: TypeAlias = Literal["midashenglm", "midashenglm-tokenizer", "dasheng"]
_ENCODER_FILES = (FRONT_END, ENCODER, GOLDEN)
_ALL_FILES = (FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN)
REQUIRED: Mapping[Variant, tuple[str, ...]] = {
    "midashenglm": _ALL_FILES, "midashenglm-tokenizer": _ALL_FILES, "dasheng": _ENCODER_FILES,
}  # fmt: skip
_UNREADABLE = (OSError, ValueError, RecursionError)  # what a file that is no JSON raises; the last: nested too deeply


def _plain_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", "..", MANIFEST) or "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is not a plain file name inside the bundle")
    return name


class _Model(BaseModel):
    # JSON has no infinity and no NaN, but Python's reader takes them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileFacts(_Model):
    """Size and content of one file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class EncoderFacts(_Model):
    """The audio encoder and the precision its graph computes in."""

    embed_dim: int
    depth: int
    num_heads: int
    parameters: int
    precision: str  # "fp32"


class DecoderFacts(_Model):
    """The text decoder; `precision` is llama.cpp's name of the file type."""

    arch: Literal["qwen2", "qwen3"]
    hidden_size: int
    layers: int
    vocab_size: int  # rows of the embedding table
    context_length: int  # positions the decoder was made for
    parameters: int
    precision: str  # "F32", "F16", "Q4_K_M" ...


class Sampling(_Model):
    """Sampling defaults; temperature 0 is greedy decoding."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0  # 0: all tokens
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0


class PromptFacts(_Model):
    """What the prompt is made of when the caller does not say otherwise. The chat template is in the GGUF."""

    system: str | None = None  # None: no system turn
    prompt: str
    audio_first: bool = True  # order of audio and text in the user turn
    audio_token: str = "<|AUDIO|>"
    audio_bos_token: str = "<|audio_bos|>"
    audio_eos_token: str = "<|audio_eos|>"
    max_new_tokens: Annotated[int, Field(gt=0)] = 128
    sampling: Sampling = Sampling()
    comfortable_s: Annotated[float, Field(gt=0)] = 210.0  # beyond this, output was seen to degrade


class Tolerances(_Model):
    """Largest error that `verify` accepts at each seam, given the precision of the parts.

    Relative errors are RMS(got - want) / RMS(want). `token_margin` is in logits: a greedy token may differ
    from the golden one only where the reference itself preferred it by less than this.
    """

    log_mel_db: Annotated[float, Field(ge=0)]
    acoustic_nepers: Annotated[float, Field(ge=0)] | None = None  # of models with an acoustic branch
    patches_relative: Annotated[float, Field(ge=0)]
    # Of models with a decoder:
    embeddings_relative: Annotated[float, Field(ge=0)] | None = None
    logits_relative: Annotated[float, Field(ge=0)] | None = None
    token_margin: Annotated[float, Field(ge=0)] | None = None


class Provenance(_Model):
    """Where the bundle comes from."""

    tool: str  # "dasheng-edge 0.1.0"
    checkpoint: str  # folder name or hub id, never an absolute path
    revision: str | None = None  # commit on the hub
    checkpoint_sha256: str  # over the tensors' files
    adapters: tuple[str, ...] = ()  # "name sha256", in the order they were merged
    versions: dict[str, str] = {}  # of the libraries that made it


class Manifest(_Model):
    """`manifest.json`: everything that the runtime must know and that no file says itself."""

    schema_version: Literal[1, 2] = 2
    name: str
    variant: Variant
    front_end: FrontEndSpec
    encoder: EncoderFacts
    projector_parameters: int | None = None
    # None where there is no decoder ("dasheng")
    decoder: DecoderFacts | None = None
    prompt: PromptFacts | None = None
    tolerances: Tolerances
    provenance: Provenance
    files: dict[Annotated[str, AfterValidator(_plain_name)], FileFacts]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(facts.bytes for facts in self.files.values())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` of a bundle; touches no other file.

    Raises:
        BundleNotFoundError: there is no folder, or no manifest in it.
        BundleManifestError: the manifest is not JSON, is of a newer schema, or has wrong or unknown keys.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise BundleNotFoundError(
            f"cannot open bundle {folder}: expected a folder made by `dasheng-edge export`, found {what} there"
        )
    if not path.is_file():
        raise BundleNotFoundError(
            f"cannot open bundle {folder}: no {MANIFEST} in it, so this is not a bundle or its export did not "
            "finish; make one with `dasheng-edge export CHECKPOINT --out BUNDLE`"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except _UNREADABLE as error:
        raise BundleManifestError(f"cannot read {path}: {error}; export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleManifestError(
            f"{path} has schema version {version}, this dasheng-edge reads up to {SCHEMA_VERSION}; "
            "upgrade with `pip install -U dasheng-edge`"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise BundleManifestError(
            f"{path} is not a valid manifest: {where}: {first['msg']} ({error.error_count()} problems in all); "
            "export the bundle again"
        ) from error


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Holds no file handles."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, *, check_sha256: bool = True) -> Bundle:
        """Open a bundle and check all its files against the manifest.

        Raises what `read_manifest` and `verify_files` raise.
        """
        folder = Path(folder)
        bundle = cls(folder, read_manifest(folder))
        bundle.verify_files(check_sha256=check_sha256)
        return bundle

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, e.g. `bundle.path(ENCODER)`."""
        return self.folder / name

    def verify_files(self, *, check_sha256: bool = True) -> None:
        """Check that every file is there, with the size and the content that the manifest states.

        Raises:
            BundleFileError: a file is missing, truncated or altered, or the manifest does not list it.
        """
        files = self.manifest.files
        if missing := [name for name in REQUIRED[self.manifest.variant] if name not in files]:
            raise BundleFileError(f"{self.folder / MANIFEST} does not list {', '.join(missing)}; export again")
        for name, facts in files.items():
            path = self.path(name)
            if not path.is_file():
                raise BundleFileError(f"{path} is missing, the manifest lists it; copy it or export again")
            size = path.stat().st_size
            if size != facts.bytes:
                raise BundleFileError(
                    f"{path} has {size} bytes, expected {facts.bytes}; it was truncated or replaced: copy it again"
                )
        if check_sha256:
            self._verify_content()

    def _verify_content(self) -> None:
        for name, facts in self.manifest.files.items():
            got = sha256_of(self.path(name))
            if got != facts.sha256:
                raise BundleFileError(
                    f"{self.path(name)} was altered: SHA-256 is {got}, expected {facts.sha256}; copy it again"
                )


def _why_not_a_bundle(folder: Path) -> str:
    """What keeps a folder from being empty or a bundle, of any schema, with nothing beside it; "" if nothing does."""
    if not folder.is_dir():
        return "it is a file"
    entries = sorted(folder.iterdir())
    if not entries:
        return ""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except _UNREADABLE as error:
        return f"its {MANIFEST} cannot be read: {error}"
    files = raw.get("files") if isinstance(raw, dict) and "schema_version" in raw else None
    if not isinstance(files, dict):
        return f"its {MANIFEST} is not that of one"
    foreign = [path.name for path in entries if path.name not in (MANIFEST, *files) or not path.is_file()]
    return f"{foreign[0]} is no file of one" if foreign else ""


class BundleWriter:
    """Writes a bundle under a temporary name beside `out` and renames it when it is complete.

    >>> with BundleWriter(out) as writer:          # doctest: +SKIP
    ...     export_to(writer.path(ENCODER))
    ...     writer.finish(manifest_without_files)

    Leaving the block before `finish` (an error, Ctrl-C) removes everything that was written.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or is or holds something other than a bundle.
        OutputWriteError: the disk is full or the place is not writable.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False) -> None:
        self.out = Path(out).resolve()  # a link stays, and what it points to is replaced
        self._overwrite = overwrite
        self._folder: Path | None = None
        self._check_out()

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        if not self._overwrite:
            raise OutputExistsError(f"{self.out} already exists; pass --overwrite or choose another --out")
        if why := _why_not_a_bundle(self.out):
            raise OutputExistsError(
                f"{self.out} exists and is not a bundle ({why}), so --overwrite will not delete it; "
                "choose another --out"
            )

    def __enter__(self) -> BundleWriter:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.partial-", dir=self.out.parent))
        except OSError as error:
            raise OutputWriteError(
                f"cannot write to {self.out.parent}: {error.strerror}; choose another --out"
            ) from error
        self._folder.chmod(0o755)
        return self

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle."""
        if self._folder is None:
            raise RuntimeError("BundleWriter is used outside its `with` block")
        return self._folder / _plain_name(name)

    def finish(self, manifest: Manifest) -> Bundle:
        """Add sizes and hashes to the manifest, write it, and move the folder to its final name."""
        if self._folder is None:
            raise RuntimeError("BundleWriter is used outside its `with` block")
        files = {
            path.name: FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
            for path in sorted(self._folder.iterdir())
        }
        manifest = manifest.model_copy(update={"files": files})
        text = manifest.model_dump_json(indent=2) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        bundle = Bundle(self.out, manifest)
        Bundle(self._folder, manifest).verify_files(check_sha256=False)
        self._move()
        return bundle

    def _move(self) -> None:
        assert self._folder is not None
        self._check_out()
        old = self._folder.with_name(self._folder.name + ".old")
        try:
            if self.out.exists():
                self.out.rename(old)
            self._folder.rename(self.out)
        except BaseException:
            if old.exists() and not self.out.exists():
                old.rename(self.out)
            raise
        self._folder = None
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            raise OutputWriteError(
                f"cannot write {self.out}: {error.strerror}; nothing was left behind: free some space or "
                "choose another --out"
            ) from error
