"""The bundle: a folder that holds one exported model, and the only module that knows its file names.

`Bundle.open` refuses, before anything is loaded, a bundle whose manifest or files are not what they should be.
`writer` writes one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.atomic_output import recover, unfinished
from dasheng_edge.runtime.errors import BundleFileError, BundleKindError, BundleNotFoundError

from .manifest import MANIFEST, DecoderFacts, Manifest, PromptFacts, read_manifest

FRONT_END = "front_end.onnx"
ENCODER = "encoder.onnx"
PROJECTOR = "projector.onnx"
DECODER = "decoder.gguf"
GOLDEN = "golden.npz"
GOLDEN_FLAT = "golden.safetensors"  # the same arrays, for programs that read neither ZIP nor NumPy; since schema 5
# The same graphs in float16, which a bundle may hold beside those for the CPU, and whose weights they share.
CUDA_GRAPHS: Mapping[str, str] = {ENCODER: "encoder.cuda.onnx", PROJECTOR: "projector.cuda.onnx"}
# Above this, a graph's weights go to a file beside it, which ONNX Runtime maps instead of copying it. A graph that
# holds them itself may have 2 GiB at most, and needs three times its size to be written.
EXTERNAL_BYTES = 500_000_000
PAGE_BYTES = 4096  # where a large weight begins is a multiple of this, so that it can be mapped
MODEL_CARD = "README.md"  # beside the files that the manifest lists: people may edit it


def required_files(manifest: Manifest) -> tuple[str, ...]:
    """The files that such a bundle must have."""
    return (FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN) if manifest.decoder else (FRONT_END, ENCODER, GOLDEN)


def weights_file(graph: Path) -> Path:
    """Where the weights of a graph are that does not hold them itself."""
    return graph.with_name(f"{graph.name}.data")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Holds no file handles."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, *, check_sha256: bool = True) -> Bundle:
        """Open a bundle and check all its files against the manifest.

        What a killed writer was about to replace is put back first, where the system cannot replace in one step.

        Raises what `read_manifest` and `verify_files` raise, and BundleNotFoundError for what a writer left.
        """
        folder = Path(folder)
        try:
            place = Path(os.path.realpath(folder))
        except ValueError as error:  # a zero byte
            raise BundleNotFoundError(f"cannot open bundle {str(folder)!r}: {error}; check the path") from error
        if name := unfinished(place):
            raise BundleNotFoundError(
                f"cannot open bundle {folder}: it is half of one or an older one, which a writer of {name} left when "
                f"it was ended; open {place.with_name(name)}, or make that again"
            )
        with suppress(OSError):  # a path that cannot be is told below
            recover(place)
        bundle = cls(folder, read_manifest(folder))
        bundle.verify_files(check_sha256=check_sha256)
        return bundle

    @property
    def decoder_facts(self) -> DecoderFacts:
        """What the manifest says about the decoder.

        Raises:
            BundleKindError: the bundle has none.
        """
        if self.manifest.decoder is None:
            raise self._encoder_only()
        return self.manifest.decoder

    @property
    def prompt_facts(self) -> PromptFacts:
        """What the manifest says about the prompt.

        Raises:
            BundleKindError: the bundle has no decoder, and so no prompt.
        """
        if self.manifest.prompt is None:
            raise self._encoder_only()
        return self.manifest.prompt

    def _encoder_only(self) -> BundleKindError:
        return BundleKindError(
            f"{self.folder} cannot answer in words: this bundle holds a Dasheng encoder only; use "
            "`dasheng-edge embed`, or export a MiDashengLM checkpoint"
        )

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, e.g. `bundle.path(ENCODER)`."""
        return self.folder / name

    def graph(self, name: str, device: str) -> Path:
        """Path of the graph that computes on a device, e.g. `bundle.graph(ENCODER, "cuda")`."""
        own = CUDA_GRAPHS.get(name, name) if device == "cuda" else name
        return self.folder / (own if own in self.manifest.files else name)

    def verify_files(self, *, check_sha256: bool = True) -> None:
        """Check that every file is there, with the size and the content that the manifest states.

        Raises:
            BundleFileError: a file is missing, truncated or altered, or the manifest does not list it.
        """
        files = self.manifest.files
        if missing := [name for name in required_files(self.manifest) if name not in files]:
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
        for name, facts in files.items() if check_sha256 else ():
            if (got := sha256_of(self.path(name))) != facts.sha256:
                raise BundleFileError(
                    f"{self.path(name)} was altered: SHA-256 is {got}, expected {facts.sha256}; copy it again"
                )
