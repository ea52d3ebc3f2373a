"""A smaller bundle from a bundle, part by part, each measured against what it was made from.

At the end the new bundle replays its golden vectors through the runtime; what that gives is what its manifest
promises, so that `verify` on another machine shows whether the quantized parts compute the same there.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from dasheng_edge.quant.decoder.activations import instead_of, watched
from dasheng_edge.quant.decoder.imatrix_file import read_imatrix, saved_imatrix, write_imatrix
from dasheng_edge.quant.decoder.quantize import (
    check_decoder,
    parse_tensor_types,
    quantize_decoder,
)
from dasheng_edge.quant.decoder.types import COPIED_TYPES, DECODER_TOLERANCES, DecoderOptions, DecoderType
from dasheng_edge.quant.encoder.halves import halves_errors
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.quant.encoder.quantize import EncoderOptions, EncoderReport, check_encoder, quantize_encoder, trials
from dasheng_edge.quant.vocabulary.corpus import VocabularyOptions
from dasheng_edge.quant.vocabulary.cut import VocabularyCut, cut_vocabulary
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, MODEL_CARD, Bundle, sha256_of
from dasheng_edge.runtime.bundle.golden import read_golden, save_flat_golden
from dasheng_edge.runtime.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    ImatrixFacts,
    KvType,
    Manifest,
    QuantizationFacts,
    Tolerances,
    VocabularyFacts,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.clips.clips import ClipSet, find_clips
from dasheng_edge.runtime.deviation import relative_rms_of
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
from dasheng_edge.runtime.errors import OutputExistsError, QuantizeError
from dasheng_edge.runtime.machine.devices import checked_threads
from dasheng_edge.runtime.parts import check_memory
from dasheng_edge.runtime.program import program_of
from dasheng_edge.runtime.progress import NoProgress, Progress, StepReport, Steps
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verify import attention_error, verify_bundle

from .answers import changed_answers, measured_importance
from .calibration import Calibration, calibrate_on, golden_features
from .recipes import Recipe
from .tolerances import MAX_LOGITS_RELATIVE, measured_tolerances, widest_tolerances

IMATRIX, CUT_DECODER, CUT_GOLDEN = "imatrix.gguf", "cut.gguf", "cut.npz"  # while the bundle is written
MAX_SNR_DB = 140.0  # what float32 itself reaches


@dataclass(frozen=True)
class QuantizeOptions:
    """One quantization; None: as the source has it."""

    source: Path
    out: Path
    encoder: EncoderOptions | None = None
    decoder: DecoderOptions | None = None
    kv_type: KvType | None = None
    calibrate: Path | None = None
    importance: bool = True  # whether an importance matrix is measured on those clips, if none is given
    recipe: str | None = None
    save_imatrix: Path | None = None
    vocabulary: VocabularyOptions | None = None
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class QuantizeReport:
    """A finished quantization."""

    bundle: Bundle
    steps: tuple[StepReport, ...]
    seconds: float
    bytes: int
    source_bytes: int
    warnings: tuple[str, ...]


def quantize_options(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    imatrix: Path | None = None,
    tensor_types: tuple[str, ...] = (),
    min_snr_db: float = 30.0,
) -> QuantizeOptions:
    """Options for a recipe.

    Raises:
        QuantizeError: a `PATTERN=TYPE` cannot be read.
    """
    types = parse_tensor_types(tensor_types)
    return QuantizeOptions(
        source,
        out,
        EncoderOptions(recipe.encoder, min_snr_db) if recipe.encoder else None,
        DecoderOptions(recipe.decoder, imatrix, types) if recipe.decoder else None,
        recipe.kv_type,
    )


def quantize_bundle(options: QuantizeOptions, progress: Progress | None = None) -> QuantizeReport:
    """Make a bundle as `options` say, and tell `progress` about it; nothing stays if anything fails.

    Raises:
        BundleError: the source cannot be used, or has no decoder, and a decoder was asked for.
        ClipsError, AudioError: the clips or the importance matrix cannot be used.
        QuantizeError: what was asked for cannot be made of this bundle, or loses too much.
        MemoryShortError: the parts that must be opened do not fit.
        OutputExistsError, OutputWriteError: the output is there, or cannot be written.
    """
    start = time.perf_counter()
    source = Bundle.open(options.source)
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise OutputExistsError(f"{options.out} is or lies in the bundle to be quantized; choose another --out")
    plan, steps = _plan(options, source), Steps(progress or NoProgress())
    answers = plan.measures or bool(options.vocabulary and plan.clips)
    check_memory(source, resolve_here(plan.engine, source.manifest.decoder), text=answers)
    with (
        BundleWriter(options.out, overwrite=options.overwrite) as writer,
        saved_imatrix(options.save_imatrix, (options.source, options.out), overwrite=options.overwrite) as save,
    ):
        cut = _cut(plan, writer, steps)
        if cut:
            plan = replace(plan, source=cut.bundle, vocabulary=cut.facts)
        for name in (FRONT_END, GOLDEN):
            shutil.copyfile(plan.source.path(name), writer.path(name))
        save_flat_golden(writer.path(GOLDEN), read_golden(plan.source))
        calibration = _calibration(plan, steps)
        if cut and plan.clips:
            changed_answers(source, cut.kept, plan.engine, calibration, steps)
        encoder = _encoder(plan, calibration, writer, steps)
        imatrix = _decoder(plan, calibration, writer, save, steps)
        facts = _facts(plan, calibration, encoder, imatrix)
        program = program_of(plan.source.manifest, writer.path(DECODER) if plan.decoder else None)
        tolerances = _verified_tolerances(plan, facts, writer, steps)
        for name in (CUT_DECODER, CUT_GOLDEN):
            writer.path(name).unlink(missing_ok=True)
        writer.path(MODEL_CARD).write_text(_card(source, steps.reports), encoding="utf-8")
        bundle = writer.finish(_manifest(plan, facts, tolerances).model_copy(update={"program": program}))
    warnings = (*(cut.warnings if cut else ()), *calibration.warnings)
    size, before = bundle.manifest.total_bytes, source.manifest.total_bytes
    seconds = time.perf_counter() - start
    return QuantizeReport(bundle, tuple(steps.reports), seconds, size, before, warnings)


@dataclass(frozen=True)
class _Plan:
    """What is made of what, decided before any work; what was not asked for is as the source has it."""

    options: QuantizeOptions
    source: Bundle
    clips: ClipSet | None
    encoder: EncoderOptions
    decoder: DecoderOptions | None  # None: the bundle has none
    kv_type: KvType | None
    measures: bool  # whether an importance matrix is measured
    threads: int
    vocabulary: VocabularyFacts | None = None  # what `source` was cut to

    @property
    def engine(self) -> EngineOptions:
        """How parts that only measure run."""
        return EngineOptions().changed(threads=self.threads)


def _plan(options: QuantizeOptions, source: Bundle) -> _Plan:
    """Decide, and refuse what can be refused."""
    stored, precision = source.manifest.decoder, source.manifest.encoder.precision
    clips = find_clips(options.calibrate) if options.calibrate is not None else None
    encoder = options.encoder or EncoderOptions(cast("EncoderPrecision", precision))
    if options.encoder is not None and encoder.precision == "mixed" and clips is None:
        raise QuantizeError("--encoder mixed is chosen by measuring on clips; pass --calibrate CLIPS")
    if not 0 <= encoder.min_snr_db <= MAX_SNR_DB:  # written so that NaN is refused
        raise QuantizeError(f"--min-snr is {encoder.min_snr_db:g}, expected 0 to {MAX_SNR_DB:g} dB")
    check_encoder(source, encoder.precision)
    if stored is None and (options.decoder or options.kv_type or options.vocabulary):
        _ = source.decoder_facts  # raises
    decoder = kv_type = None
    measures = False
    if stored is not None:
        decoder = options.decoder or DecoderOptions(cast("DecoderType", stored.precision))
        kv_type = options.kv_type or stored.kv_type
        copied = decoder.kind in (*COPIED_TYPES, stored.precision)
        measures = clips is not None and options.importance and decoder.imatrix is None and not copied
        check_decoder(source, decoder, measured=measures)
    before, after = (
        (precision, stored and stored.precision, stored and stored.kv_type),
        (encoder.precision, decoder and decoder.kind, kv_type),
    )
    if source.manifest.quantization and before == after and not options.vocabulary:
        raise QuantizeError(
            f"{options.source} was quantized to {', '.join(filter(None, before))} already, so there is nothing to do; "
            "take it as it is, or name something else for a part that is not quantized yet"
        )
    if options.save_imatrix is not None and not measures:
        raise QuantizeError(
            "--save-imatrix stores what --calibrate CLIPS measured for a quantized decoder; pass clips, a --decoder "
            "such as Q4_K_M, and no --imatrix"
        )
    encoder = replace(encoder, smooth=clips is not None)
    return _Plan(options, source, clips, encoder, decoder, kv_type, measures, checked_threads(options.threads))


def _cut(plan: _Plan, writer: BundleWriter, steps: Steps) -> VocabularyCut | None:
    """The source with fewer tokens, if that was asked for."""
    wanted = plan.options.vocabulary
    paths = writer.path(CUT_DECODER), writer.path(CUT_GOLDEN)
    return cut_vocabulary(plan.source, wanted, *paths, steps) if wanted else None


def _calibration(plan: _Plan, steps: Steps) -> Calibration:
    """Features of the clips, or of the bundle's own golden clips."""
    audio = AudioParts.open(plan.source, plan.engine)
    if plan.clips is None:
        return golden_features(read_golden(plan.source), audio)
    count = len(plan.clips.clips)
    step = steps.begin("calibration", count, "clips")
    calibration = calibrate_on(plan.clips, audio, steps.progress.advance)
    used = f"{len(calibration.features)} of " if len(calibration.features) < count else ""
    step.end(note=f"{used}{count} clip{'s' if count != 1 else ''} in {plan.clips.name!r}")
    return calibration


def _encoder(plan: _Plan, calibration: Calibration, writer: BundleWriter, steps: Steps) -> EncoderReport:
    """Write encoder and projector."""
    wanted, advance = plan.encoder, steps.progress.advance
    step = steps.begin(ENCODER, trials(plan.source, wanted), "measurements")
    report = quantize_encoder(plan.source, writer.path, wanted, calibration.features, plan.threads, advance)
    if report.snr_db is None or wanted.limit_snr_db is None:
        step.end(unit="relative RMS", size=report.bytes, note="as in the source")
        return report
    smoothed = f", {len(report.smoothed)} matrices smoothed" if report.smoothed else ""
    largest = f", largest activation {report.largest_activation:.3g}" if report.largest_activation else ""
    note = f"{wanted.precision}: {report.snr_db:.1f} dB SNR at its output{smoothed}{largest}"
    error, limit = relative_rms_of(report.snr_db), relative_rms_of(wanted.limit_snr_db)
    step.end(error, limit, "relative RMS", size=report.bytes, note=note)
    return report


def _decoder(
    plan: _Plan, calibration: Calibration, writer: BundleWriter, save: Callable[[Path], None], steps: Steps
) -> ImatrixFacts | None:
    """Write the decoder, if there is one; the importance matrix that it was made with."""
    wanted = plan.decoder
    if wanted is None:
        return None
    imatrix, facts = wanted.imatrix, None
    if plan.measures:
        imatrix = writer.path(IMATRIX)
        write_imatrix(imatrix, measured_importance(plan.source, plan.engine, calibration, steps))
        save(imatrix)
    if imatrix is not None:
        name = "audio" if plan.measures else imatrix.name
        facts = ImatrixFacts(name=name, sha256=sha256_of(imatrix), datasets=read_imatrix(imatrix).datasets)
    step = steps.begin(DECODER, 1, "tensors")
    made = replace(wanted, imatrix=imatrix)
    report = quantize_decoder(plan.source, writer.path(DECODER), made, plan.threads, steps.progress.advance)
    writer.path(IMATRIX).unlink(missing_ok=True)
    limit, error = DECODER_TOLERANCES[wanted.kind].weights, report.relative_error
    note = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
    made_float = wanted.kind in COPIED_TYPES and wanted.kind != plan.source.decoder_facts.precision
    largest = _check_activations(plan, writer.path(DECODER)) if made_float else ""
    step.end(error, limit, "relative RMS", size=report.bytes, note=f"{note}{largest}")
    if not error <= limit and not wanted.tensor_types:
        raise QuantizeError(
            f"{DECODER} differs from its source by {error:.3g} relative RMS, expected at most "
            f"{limit:g} of {wanted.kind}; nothing was written. Choose a larger --decoder"
        )
    return facts


def _check_activations(plan: _Plan, path: Path) -> str:
    """A note on the largest activation of a decoder in floating point, on the golden clips.

    Raises:
        QuantizeError: its type cannot hold one, or its logits are not finite.
    """
    assert plan.decoder is not None
    kind, decoder = plan.decoder.kind, Decoder.open(path, resolve_here(replace(plan.engine, weights="mapped")))
    texts = [clip.text for clip in read_golden(plan.source) if clip.text]
    try:
        with watched(decoder) as activations:
            error = attention_error(decoder, texts).default
    finally:
        decoder.close()
    beyond = activations.beyond(kind) or ("" if math.isfinite(error) else "its logits are not finite on golden clips")
    if beyond:
        raise QuantizeError(f"{DECODER}: {beyond}; nothing was written. Choose --decoder {instead_of(kind)}")
    return f", largest activation {activations.highest:.3g}"


def _verified_tolerances(plan: _Plan, facts: QuantizationFacts, writer: BundleWriter, steps: Steps) -> Tolerances:
    """Replay the golden vectors with what was written: what `verify` shall accept elsewhere.

    Raises:
        QuantizeError: a seam is farther from the reference than the precisions explain.
    """
    step = steps.begin(GOLDEN, 1, "replays")
    golden = read_golden(plan.source)
    logits_std = max((float(clip.text.logits.std()) for clip in golden if clip.text), default=0.0)
    kinds = (plan.decoder.kind, plan.kv_type) if plan.decoder and plan.kv_type else None
    widest = widest_tolerances(plan.source.manifest, plan.encoder, kinds, logits_std)
    folder = writer.path(ENCODER).parent
    draft = _manifest(plan, facts, widest).model_copy(update={"files": dict.fromkeys(writer.sizes())})
    report = verify_bundle(Bundle(folder, draft), plan.engine)
    error = max(seam.error for seam in report.seams if seam.unit == "relative")
    clips = len({seam.clip for seam in report.seams})
    step.end(error, MAX_LOGITS_RELATIVE, "relative RMS", note=f"largest error of a seam, {clips} clips")
    if failed := [seam for seam in report.seams if not seam.ok]:
        raise QuantizeError(
            f"{failed[0].name} of {failed[0].clip} differs from the reference by {failed[0].error:.3g} "
            f"{failed[0].unit}, expected at most {failed[0].tolerance:.3g}; nothing was written. Choose a finer "
            f"--encoder or --decoder{failed[0].note and f' ({failed[0].note})'}"
        )
    halves = halves_errors(plan.source.manifest.front_end, writer.path, golden, plan.threads)
    return measured_tolerances(report, widest, logits_std, halves)


def _facts(
    plan: _Plan, calibration: Calibration, encoder: EncoderReport, imatrix: ImatrixFacts | None
) -> QuantizationFacts:
    """How the bundle was made; of parts that are copied, how they were made earlier."""
    source, options = plan.source.manifest, plan.options
    types = plan.decoder.tensor_types if plan.decoder else {}
    facts = QuantizationFacts(
        recipe=options.recipe,
        source_sha256=sha256_of(plan.source.path(MANIFEST)),
        imatrix=imatrix,
        calibration=calibration.facts,
        tensor_types={pattern: kind.name for pattern, kind in types.items()},
        encoder_matrices=dict(encoder.matrices) if plan.encoder.precision == "mixed" else {},
        smoothed=encoder.smoothed,
        embeddings_snr_db=None if encoder.snr_db is None else round(encoder.snr_db, 2),
        vocabulary=plan.vocabulary,
    )
    if source.quantization is None:
        return facts
    earlier: list[str] = [*([] if plan.clips else ["calibration"]), *([] if plan.vocabulary else ["vocabulary"])]
    if plan.encoder.precision == source.encoder.precision:
        earlier += ["encoder_matrices", "smoothed", "embeddings_snr_db"]
    if source.decoder and plan.decoder and plan.decoder.kind == source.decoder.precision:
        earlier += ["imatrix", "tensor_types"]
    return facts.model_copy(update={key: getattr(source.quantization, key) for key in earlier})


def _manifest(plan: _Plan, facts: QuantizationFacts, tolerances: Tolerances) -> Manifest:
    """The manifest, without the files' sizes and hashes."""
    source = plan.source.manifest
    update: dict[str, object] = {
        "schema_version": SCHEMA_VERSION, "tolerances": tolerances, "quantization": facts, "program": None, "files": {},
        "encoder": source.encoder.model_copy(update={"precision": plan.encoder.precision}),
    }  # fmt: skip
    if source.decoder is not None and plan.decoder is not None:
        made = {"precision": plan.decoder.kind, "kv_type": plan.kv_type}
        update["decoder"] = source.decoder.model_copy(update=made)
    return source.model_copy(update=update)


def _card(source: Bundle, reports: Sequence[StepReport]) -> str:
    """The source's model card, with what was changed since."""
    path = source.path(MODEL_CARD)
    card = path.read_text(encoding="utf-8") if path.is_file() else f"# {source.manifest.name}\n"
    lines = [f"- {step.name}: {step.note}" for step in reports if step.note]
    return f"{card.rstrip()}\n\n## Quantized\n\n" + "\n".join(lines) + "\n"
