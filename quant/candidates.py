"""What a comparison compares: bundles, and recipes that bundles are made by on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from dasheng_edge.quant.compare.measurements import key_of
from dasheng_edge.quant.compare.record import RecipeFacts
from dasheng_edge.quant.decoder.quantize import check_decoder
from dasheng_edge.quant.decoder.types import COPIED_TYPES, NEED_IMATRIX, DecoderOptions, DecoderType
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.quant.encoder.quantize import check_encoder
from dasheng_edge.runtime.atomic_output import recover, replace_text
from dasheng_edge.runtime.bundle.bundle import Bundle, sha256_of
from dasheng_edge.runtime.bundle.manifest import MANIFEST, KvType
from dasheng_edge.runtime.clips.clips import ClipSet, find_clips
from dasheng_edge.runtime.errors import ClipsError, QuantizeError
from dasheng_edge.runtime.names import did_you_mean, known_name, printable
from dasheng_edge.runtime.progress import Progress

from .bundle_quant import quantize_bundle, quantize_options
from .recipes import RECIPES, Recipe

MARK = "+imatrix"
# What the same question is made of, where a clip brings none of its own.
_PROMPT_KEYS = ("prompt", "system", "audio_first", "audio_token", "audio_bos_token", "audio_eos_token")


@dataclass(frozen=True)
class Spec:
    """A candidate as it was asked for."""

    name: str
    bundle: Path | None  # an existing bundle, or None with ...
    recipe: Recipe | None = None  # ... the recipe that it is made by
    imatrix: Path | None = None


def parse_specs(texts: Sequence[str], reference: str) -> list[Spec]:
    """Candidates, each with a name of its own; `reference` is the name that the reference has in the report.

    A name that several would have gives way to the text as it was typed.

    Raises:
        ClipsError: a text is no candidate, or two are the same.
    """
    parsed = [parse_spec(text) for text in texts]
    names = [spec.name for spec in parsed]
    specs: list[Spec] = []
    for text, spec in zip(texts, parsed, strict=True):
        name = spec.name if names.count(spec.name) == 1 else printable(text)
        if name == reference:
            name = f"{'recipe' if spec.bundle is None else 'bundle'} {name}"
        folder = spec.bundle and spec.bundle.resolve()
        if any(name == other.name or (folder and other.bundle and other.bundle.resolve() == folder) for other in specs):
            raise ClipsError(f"candidate {name} is there twice; name each once")
        specs.append(replace(spec, name=name))
    return specs


def parse_spec(text: str) -> Spec:
    """A folder, the name of a recipe, or ENCODER/DECODER[/KV][+imatrix[=FILE]].

    Raises:
        ClipsError: it is none of them.
    """
    if recover(Path(text)) and (Path(text) / MANIFEST).is_file():
        return Spec(printable(Path(text).resolve().name), Path(text))
    if (recipe_name := known_name(text, tuple(RECIPES))) is not None:
        return Spec(recipe_name, None, RECIPES[recipe_name])
    precisions, mark, file = text.partition(MARK)
    parts = precisions.split("/")
    known: tuple[tuple[str, ...], ...] = (get_args(EncoderPrecision), get_args(DecoderType), get_args(KvType))
    known_parts = [known_name(part, names) for part, names in zip(parts, known)]  # noqa: B905
    if not 2 <= len(parts) <= 3 or known_parts[0] is None or (file and not file.startswith("=")):
        raise ClipsError(
            f"{text!r} is no candidate; expected the folder of a bundle, one of {', '.join(RECIPES)}, or "
            f"ENCODER/DECODER, e.g. int8/Q4_K_M, int8/Q4_K_M/q8_0{MARK} or fp32/Q3_K_M{MARK}=FILE, where the encoder "
            f"is one of {', '.join(known[0])}"
        )
    for part, one, names in zip(parts, known_parts, known):  # noqa: B905  # the third part may be missing
        if one is None:
            raise ClipsError(f"candidate {text!r}: {part!r} is not known; {did_you_mean(part, names)}")
    if file == "=":
        raise ClipsError(
            f"candidate {text!r}: there is no file behind '{MARK}='; name an importance matrix, or leave the '=' out "
            "to measure one on the clips of --calibrate"
        )
    encoder, decoder, kv_type = (*known_parts, "f16")[:3]
    recipe = Recipe(encoder, decoder, kv_type, imatrix=bool(mark))  # type: ignore[arg-type]  # looked up just above
    imatrix = Path(file[1:]) if file else None
    name = f"{precisions}{mark}={imatrix.stem}" if imatrix else text
    return Spec(printable(name), None, recipe, imatrix)


@dataclass(frozen=True)
class Origin:
    """What candidates are made of: a reference bundle, and clips to calibrate on."""

    reference: Bundle
    folder: Path  # where they are stored, by what they are made of
    calibrate: Path | None
    calibration: ClipSet | None
    facts: tuple[str, str]  # hashes of the reference's manifest and of the clips
    threads: int


def origin_of(reference: Bundle, folder: Path, calibrate: Path | None, threads: int) -> Origin:
    """Read the clips that candidates are calibrated on.

    Raises:
        ClipsError: they cannot be used.
    """
    calibration = find_clips(calibrate) if calibrate else None
    facts = sha256_of(reference.path(MANIFEST)), calibration.sha256() if calibration else ""
    return Origin(reference, folder, calibrate, calibration, facts, threads)


def check_candidate(spec: Spec, origin: Origin) -> None:
    """Refuse what cannot be made or compared, before any work is done.

    Raises:
        BundleError: it is a bundle that cannot be opened.
        ClipsError: it is another model than the reference, it needs clips to calibrate on, and there are none, or
            its importance matrix cannot be used.
        QuantizeError: it cannot be made of the reference.
    """
    recipe = spec.recipe
    if spec.bundle is not None:
        check_same_model(origin.reference, Bundle.open(spec.bundle, check_sha256=False))
    if recipe is None:
        return
    if origin.calibrate is None and (recipe.encoder == "mixed" or _measured(spec)):
        raise ClipsError(f"candidate {spec.name} is measured on clips; pass --calibrate CLIPS")
    if recipe.imatrix and recipe.decoder in COPIED_TYPES:
        raise ClipsError(
            f"candidate {spec.name}: {recipe.decoder} is stored without an importance matrix; leave {MARK} out"
        )
    try:
        if recipe.encoder is not None:
            check_encoder(origin.reference, recipe.encoder)
        if recipe.decoder is not None:
            check_decoder(origin.reference, DecoderOptions(recipe.decoder, spec.imatrix), measured=_measured(spec))
    except QuantizeError as error:
        raise QuantizeError(f"candidate {spec.name} cannot be made of the reference: {error}") from error


def make_candidate(spec: Spec, origin: Origin, progress: Progress) -> tuple[Bundle, tuple[str, ...]]:
    """The candidate's bundle, made now if it is not stored yet, and what was warned of while it was made.

    Raises what `quantize_bundle` raises.
    """
    if spec.bundle is not None:
        return Bundle.open(spec.bundle), ()
    assert spec.recipe is not None
    stored = recipe_facts(origin.reference)
    if spec.recipe.text == f"{stored.encoder}, {stored.decoder}, {stored.kv_type}":  # it is that already
        return origin.reference, ()
    given = sha256_of(spec.imatrix) if spec.imatrix else ""
    key = key_of(*origin.facts, repr(spec.recipe), given)
    out, notes = origin.folder / key, origin.folder / f"{key}.json"  # warnings lie beside the bundle
    warnings = _stored_warnings(notes)
    if warnings is None or not out.is_dir():
        imatrix = _audio_imatrix(origin, progress) if _measured(spec) else spec.imatrix
        options = quantize_options(origin.reference.folder, out, spec.recipe, imatrix=imatrix)
        options = replace(options, calibrate=origin.calibrate, importance=False, threads=origin.threads, overwrite=True)
        warnings = quantize_bundle(options, progress).warnings
        replace_text(notes, json.dumps(warnings))
    return Bundle.open(out), warnings


def _audio_imatrix(origin: Origin, progress: Progress) -> Path:
    """Measured once, while a bundle is made that is deleted again."""
    path, spare = origin.folder / f"imatrix-{key_of(*origin.facts)}.gguf", origin.folder / "spare"
    if not path.is_file():
        origin.folder.mkdir(parents=True, exist_ok=True)
        options = replace(
            quantize_options(origin.reference.folder, spare, Recipe(None, "Q8_0", None)),
            calibrate=origin.calibrate, save_imatrix=path, threads=origin.threads, overwrite=True,
        )  # fmt: skip
        quantize_bundle(options, progress)
    shutil.rmtree(spare, ignore_errors=True)  # a comparison that was killed before left it, too
    return path


def _measured(spec: Spec) -> bool:
    """Whether its importance matrix is measured on the clips to calibrate on."""
    recipe = spec.recipe
    return recipe is not None and spec.imatrix is None and (recipe.imatrix or recipe.decoder in NEED_IMATRIX)


def _stored_warnings(path: Path) -> tuple[str, ...] | None:
    """Warnings in a file; None if it is missing, or cut off by a killed run."""
    try:
        return tuple(str(warning) for warning in json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def check_same_model(reference: Bundle, candidate: Bundle) -> None:
    """Whether distributions and embeddings of two bundles can be compared at all.

    Raises:
        BundleKindError: the candidate has no decoder.
        ClipsError: it is of another shape, or asks another question where a clip brings none.
    """
    shapes = [
        (encoder.embed_dim, encoder.depth, decoder.arch, decoder.hidden_size, _whole_vocabulary(bundle))
        for bundle in (reference, candidate)
        for encoder, decoder in ((bundle.manifest.encoder, bundle.decoder_facts),)
    ]
    if shapes[0] != shapes[1]:
        raise ClipsError(
            f"{candidate.folder} is another model than {reference.folder}: embed_dim, depth, arch, hidden_size and "
            f"vocab_size are {shapes[1]}, expected {shapes[0]}; compare bundles of one checkpoint"
        )
    if _tokens(reference) != _tokens(candidate):
        counts = [bundle.decoder_facts.vocab_size for bundle in (candidate, reference)]
        raise ClipsError(
            f"{candidate.folder} and {reference.folder} have other tokens, of which {counts[0]} and {counts[1]} are "
            "left: what they write next cannot be compared; make both with the same --vocab"
        )
    for key in _PROMPT_KEYS:
        want, got = (getattr(bundle.prompt_facts, key) for bundle in (reference, candidate))
        if want != got:
            raise ClipsError(
                f"{candidate.folder} asks another question than {reference.folder}: {key} in its manifest is {got!r}, "
                f"expected {want!r}; export or quantize both with the same prompt"
            )


def _whole_vocabulary(bundle: Bundle) -> int:
    """How many tokens there were before any were cut."""
    facts = bundle.manifest.quantization
    return facts.vocabulary.tokens_before if facts and facts.vocabulary else bundle.decoder_facts.vocab_size


def _tokens(bundle: Bundle) -> tuple[int, dict[str, str]]:
    """How many tokens there are, and what they were chosen by."""
    facts = bundle.manifest.quantization
    return bundle.decoder_facts.vocab_size, facts.vocabulary.corpora if facts and facts.vocabulary else {}


def recipe_facts(bundle: Bundle) -> RecipeFacts:
    """What a bundle's manifest says it is made of."""
    decoder = bundle.decoder_facts
    quantization = bundle.manifest.quantization
    imatrix = quantization.imatrix if quantization else None
    return RecipeFacts(
        encoder=bundle.manifest.encoder.precision,
        decoder=decoder.precision,
        kv_type=decoder.kv_type,
        imatrix=Path(imatrix.datasets[0] if imatrix.datasets else imatrix.name).stem if imatrix else None,
        imatrix_sha256=imatrix.sha256 if imatrix else None,
    )
