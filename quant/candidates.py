"""What a comparison compares: bundles that are there, and recipes that are made into bundles on the way."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from dasheng_edge.runtime.bundle import MANIFEST, Bundle, KvType, sha256_of
from dasheng_edge.runtime.errors import ClipsError

from .bundle_quant import QuantizeOptions, quantize_bundle, quantize_options
from .clips import find_clips
from .decoder_types import NEED_IMATRIX, DecoderType
from .progress import NoProgress, Progress
from .recipes import RECIPES, EncoderPrecision, Recipe

MARK = "+imatrix"


@dataclass(frozen=True)
class Spec:
    """A candidate as it was asked for."""

    name: str
    bundle: Path | None  # one that is there, or ...
    recipe: Recipe | None = None  # ... what one is made of
    imatrix: Path | None = None


def parse_spec(text: str) -> Spec:
    """A folder, the name of a recipe, or ENCODER/DECODER[/KV][+imatrix[=FILE]].

    Raises:
        ClipsError: it is none of them.
    """
    if (Path(text) / MANIFEST).is_file():
        return Spec(Path(text).resolve().name, Path(text))
    if text in RECIPES:
        return Spec(text, None, RECIPES[text])
    precisions, mark, file = text.partition(MARK)
    parts = precisions.split("/")
    known: tuple[tuple[str, ...], ...] = (get_args(EncoderPrecision), get_args(DecoderType), get_args(KvType))
    if not 2 <= len(parts) <= 3 or (file and not file.startswith("=")):
        raise ClipsError(
            f"{text!r} is no candidate; expected the folder of a bundle, one of {', '.join(RECIPES)}, or "
            f"ENCODER/DECODER, e.g. int8/Q4_K_M, int8/Q4_K_M/q8_0{MARK} or fp32/Q3_K_M{MARK}=FILE"
        )
    found = [next((one for one in names if one.lower() == part.lower()), None) for part, names in zip(parts, known)]  # noqa: B905
    for part, one, names in zip(parts, found, known):  # noqa: B905  # the third part may be missing
        if one is None:
            raise ClipsError(f"candidate {text!r}: {part!r} is not one of {', '.join(names)}")
    encoder, decoder, kv_type = (*found, "f16")[:3]
    recipe = Recipe(encoder, decoder, kv_type, imatrix=bool(mark))  # type: ignore[arg-type]  # looked up just above
    imatrix = Path(file[1:]) if file else None
    return Spec(f"{precisions}{mark}={imatrix.stem}" if imatrix else text, None, recipe, imatrix)


class Workshop:
    """Makes candidates of one reference bundle, each once: they are kept by what they are made of."""

    def __init__(
        self, reference: Bundle, folder: Path, calibrate: Path | None, threads: int, progress: Progress | None = None
    ) -> None:
        self.reference, self.folder, self.calibrate, self.threads = reference, folder, calibrate, threads
        self.progress = progress or NoProgress()
        self._clips_sha256 = find_clips(calibrate).sha256() if calibrate else ""
        self._source_sha256 = sha256_of(reference.path(MANIFEST))

    def check(self, spec: Spec) -> None:
        """Refuse what cannot be made, before any work is done.

        Raises:
            ClipsError: it needs clips to calibrate on, and there are none.
        """
        if spec.recipe is None:
            return
        measured = spec.recipe.imatrix or spec.recipe.decoder in NEED_IMATRIX
        if self.calibrate is None and (spec.recipe.encoder == "mixed" or (measured and spec.imatrix is None)):
            raise ClipsError(f"candidate {spec.name} is measured on clips; pass --calibrate CLIPS")

    def bundle(self, spec: Spec) -> Bundle:
        """The candidate's bundle, made now if it is not there yet.

        Raises what `quantize_bundle` raises.
        """
        if spec.bundle is not None:
            return Bundle.open(spec.bundle)
        assert spec.recipe is not None
        out = self.folder / self._key(spec)
        if out.is_dir():
            return Bundle.open(out)
        imatrix = spec.imatrix
        if imatrix is None and (spec.recipe.imatrix or spec.recipe.decoder in NEED_IMATRIX):
            imatrix = self._audio_imatrix()
        options = quantize_options(self.reference.folder, out, spec.recipe, imatrix=imatrix)
        options = replace(options, calibrate=self.calibrate, importance=False, threads=self.threads)
        return quantize_bundle(options, self.progress).bundle

    def _key(self, spec: Spec) -> str:
        imatrix = sha256_of(spec.imatrix) if spec.imatrix and spec.imatrix.is_file() else ""
        facts = (self._source_sha256, self._clips_sha256, repr(spec.recipe), imatrix)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def _audio_imatrix(self) -> Path:
        """Measured once, while a bundle is made that nobody keeps."""
        path = (
            self.folder
            / f"imatrix-{hashlib.sha256((self._source_sha256 + self._clips_sha256).encode()).hexdigest()[:16]}.gguf"
        )
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            spare = self.folder / "spare"
            recipe = Recipe(None, "Q8_0", None)
            options: QuantizeOptions = quantize_options(self.reference.folder, spare, recipe)
            options = replace(
                options, calibrate=self.calibrate, save_imatrix=path, threads=self.threads, overwrite=True
            )
            quantize_bundle(options, self.progress)
            shutil.rmtree(spare)
        return path
