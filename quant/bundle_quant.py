"""A smaller bundle from a bundle, part by part, each measured against what it was made from.

At the end the new bundle replays its golden vectors through the runtime; what that gives is what its manifest
promises, so that `verify` on another machine shows whether the quantized parts compute the same there.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from dasheng_edge.quant.decoder.imatrix_file import read_imatrix, write_imatrix
from dasheng_edge.quant.decoder.importance import audio_importance
from dasheng_edge.quant.decoder.quantize import (
    DecoderOptions,
    DecoderReport,
    check_decoder,
    parse_tensor_types,
    quantize_decoder,
)
from dasheng_edge.quant.decoder.saved_imatrix import KeptImatrix
from dasheng_edge.quant.decoder.types import COPIED_TYPES, DECODER_TOLERANCES, DecoderType
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.quant.encoder.quantize import EncoderOptions, EncoderReport, quantize_encoder, trials
from dasheng_edge.runtime.audio.clips import ClipSet, find_clips
from dasheng_edge.runtime.bundle.bundle import (
    DECODER,
    ENCODER,
    FRONT_END,
    GOLDEN,
    MANIFEST,
    MODEL_CARD,
    Bundle,
    DecoderFacts,
    ImatrixFacts,
    KvType,
    Manifest,
    QuantizationFacts,
    Tolerances,
    sha256_of,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.deviation import relative_rms_of
from dasheng_edge.runtime.embedder import AudioParts
from dasheng_edge.runtime.errors import OutputExistsError, QuantizeError
from dasheng_edge.runtime.machine.devices import checked_threads
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.progress import NoProgress, Progress, StepReport
from dasheng_edge.runtime.verify import read_golden, verify_bundle

from .calibration import Calibration, calibrate_on, golden_features
from .recipes import Recipe
from .tolerances import LARGEST_LOGITS, measured_tolerances, widest_tolerances

IMATRIX = "imatrix.gguf"  # while the bundle is written
MOST_SNR_DB = 140.0  # that float32 itself keeps


@dataclass(frozen=True)
class QuantizeOptions:
    """One quantization: None keeps the source's."""

    source: Path
    out: Path
    encoder: EncoderOptions | None = None
    decoder: DecoderOptions | None = None
    kv_type: KvType | None = None
    calibrate: Path | None = None
    importance: bool = True  # whether an importance matrix is measured on those clips, where none is given
    recipe: str | None = None
    save_imatrix: Path | None = None
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
        BundleError: the source cannot be used, or has no decoder and one was asked for.
        ClipsError, AudioError: the clips or the importance matrix cannot be used.
        QuantizeError: what was asked for cannot be made of this bundle, or loses too much.
        OutputExistsError, OutputWriteError: the output is there, or cannot be written.
    """
    start = time.perf_counter()
    source = Bundle.open(options.source)
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise OutputExistsError(f"{options.out} is or lies in the bundle to be quantized; choose another --out")
    job = _Job(options, source, progress or NoProgress())
    job.check()
    with (
        BundleWriter(options.out, overwrite=options.overwrite) as writer,
        KeptImatrix(options.save_imatrix, options.source, options.out, overwrite=options.overwrite) as kept,
    ):
        job.run(writer, kept)
        bundle = job.finish(writer)
        kept.move()
    size, before = bundle.manifest.total_bytes, source.manifest.total_bytes
    return QuantizeReport(bundle, tuple(job.steps), time.perf_counter() - start, size, before, job.warnings)


class _Job:
    """The steps of one quantization, in order."""

    def __init__(self, options: QuantizeOptions, source: Bundle, progress: Progress) -> None:
        self.options, self.source, self.progress = options, source, progress
        self.threads = checked_threads(options.threads)
        self.clips: ClipSet | None = None
        self.calibration: Calibration | None = None
        self.encoder: EncoderReport | None = None
        self.decoder: DecoderReport | None = None
        self.imatrix: ImatrixFacts | None = None
        self.steps: list[StepReport] = []
        self._began = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the calibration clips."""
        return self.calibration.warnings if self.calibration else ()

    @property
    def encoder_options(self) -> EncoderOptions:
        """What was asked for, or what there is."""
        stored = self.source.manifest.encoder.precision
        kept = next(known for known in get_args(EncoderPrecision) if known == stored)
        return replace(self.options.encoder or EncoderOptions(kept), smooth=self.clips is not None)

    def _decoder_options(self, source: DecoderFacts) -> DecoderOptions:
        kept: DecoderType = cast("DecoderType", source.precision)
        return self.options.decoder or DecoderOptions(kept)

    def check(self) -> None:
        """Refuse what can be refused before any work is done."""
        options, stored = self.options, self.source.manifest.decoder
        if options.calibrate is not None:
            self.clips = find_clips(options.calibrate)
        elif options.encoder and options.encoder.precision == "mixed":
            raise QuantizeError("--encoder mixed is chosen by measuring on clips; pass --calibrate CLIPS")
        if options.encoder and not 0 <= options.encoder.min_snr_db <= MOST_SNR_DB:  # written so that NaN is refused
            raise QuantizeError(f"--min-snr is {options.encoder.min_snr_db:g}, expected 0 to {MOST_SNR_DB:g} dB")
        if stored is None and (options.decoder or options.kv_type):
            self.source.text_facts()  # raises
        if stored is not None:
            check_decoder(self.source, self._decoder_options(stored), measured=self._measures)
        if options.save_imatrix is not None and not self._measures:
            raise QuantizeError(
                "--save-imatrix keeps what --calibrate CLIPS measured for a quantized decoder; pass clips, a --decoder "
                "such as Q4_K_M, and no --imatrix"
            )

    @property
    def _measures(self) -> bool:
        """Whether an importance matrix is measured: not for a decoder that is copied."""
        stored, wanted = self.source.manifest.decoder, self.options.decoder
        if self.clips is None or stored is None or wanted is None or wanted.imatrix or not self.options.importance:
            return False
        return wanted.kind not in COPIED_TYPES and wanted.kind != stored.precision

    def run(self, writer: BundleWriter, kept: KeptImatrix) -> None:
        """Write all files of the bundle but model card and manifest."""
        audio = AudioParts.open(self.source, device="cpu", threads=self.threads)
        if self.clips is not None:
            self._begin("calibration", len(self.clips.clips), "clips")
            self.calibration = calibrate_on(self.clips, audio, self.progress.advance)
            note = f"{len(self.clips.clips)} clips of {self.clips.name}"
            self._end(StepReport("calibration", 0.0, 0.0, "", self._seconds(), 0, note))
        else:
            self.calibration = golden_features(read_golden(self.source), audio)
        for name in (FRONT_END, GOLDEN):
            shutil.copyfile(self.source.path(name), writer.path(name))
        self._encoder(writer, self.calibration)
        if self.source.manifest.decoder is not None:
            self._decoder(writer, self.source.manifest.decoder, kept)

    def _encoder(self, writer: BundleWriter, calibration: Calibration) -> None:
        wanted = self.encoder_options
        self._begin(ENCODER, trials(self.source, wanted), "measurements")
        report = quantize_encoder(
            self.source, writer.path, wanted, calibration.features, self.threads, self.progress.advance
        )
        self.encoder = report
        if report.snr_db is None or wanted.least_snr_db is None:
            self._end(StepReport(ENCODER, 0.0, 0.0, "relative RMS", self._seconds(), report.bytes, "as in the source"))
            return
        error, limit = relative_rms_of(report.snr_db), relative_rms_of(wanted.least_snr_db)
        smoothed = f", {len(report.smoothed)} matrices smoothed" if report.smoothed else ""
        note = f"{wanted.precision}: {report.snr_db:.1f} dB SNR at its output{smoothed}"
        self._end(StepReport(ENCODER, error, limit, "relative RMS", self._seconds(), report.bytes, note))

    def _decoder(self, writer: BundleWriter, stored: DecoderFacts, kept: KeptImatrix) -> None:
        wanted = self._decoder_options(stored)
        imatrix = wanted.imatrix
        if imatrix is not None:
            self._note_imatrix(imatrix, imatrix.name)
        elif self._measures:
            imatrix = self._measure_importance(writer.path(IMATRIX), kept)
        self._begin(DECODER, 1, "tensors")
        self.decoder = report = quantize_decoder(
            self.source, writer.path(DECODER), DecoderOptions(wanted.kind, imatrix, wanted.tensor_types), self.threads,
            self.progress.advance,
        )  # fmt: skip
        writer.path(IMATRIX).unlink(missing_ok=True)
        limit = DECODER_TOLERANCES[wanted.kind].weights
        note = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
        error = report.relative_error
        self._end(StepReport(DECODER, error, limit, "relative RMS", self._seconds(), report.bytes, note))
        if not error <= limit and not wanted.tensor_types:
            raise QuantizeError(
                f"{DECODER} differs from its source by {error:.3g} relative RMS, expected at most "
                f"{limit:g} of {wanted.kind}; nothing was written. Choose a larger --decoder"
            )

    def _measure_importance(self, path: Path, kept: KeptImatrix) -> Path:
        assert self.calibration is not None
        calibration, facts = self.calibration, self.source.text_facts()[1]
        self._begin("importance", len(calibration.features), "clips")
        parts = Parts.open(self.source, device="cpu", threads=self.threads)
        try:
            embedded = (
                (parts.projector.embeddings(parts.audio.encoder.patches(features)), prompt)
                for features, prompt in zip(calibration.features, calibration.prompts, strict=True)
            )
            decoder = self.source.path(DECODER)
            found = audio_importance(parts, decoder, embedded, facts.max_new_tokens, self.progress.advance)
        finally:
            parts.decoder.close()
        write_imatrix(path, found)
        kept.take(path)
        self._note_imatrix(path, "audio")
        self._end(StepReport("importance", 0.0, 0.0, "", self._seconds(), 0, f"{len(found.entries)} matrices"))
        return path

    def _note_imatrix(self, path: Path, name: str) -> None:
        self.imatrix = ImatrixFacts(name=name, sha256=sha256_of(path), datasets=read_imatrix(path).datasets)

    def finish(self, writer: BundleWriter) -> Bundle:
        """Replay the golden vectors, state what they gave, and write model card and manifest."""
        self._begin(GOLDEN, 1, "replays")
        files = {path.name: self.source.manifest.files.get(path.name) for path in writer.path(ENCODER).parent.iterdir()}
        draft = self._manifest(self._widest())
        present = draft.model_copy(update={"files": dict.fromkeys(files)})
        report = verify_bundle(Bundle(writer.path(ENCODER).parent, present), threads=self.threads)
        failed = [seam for seam in report.seams if not seam.ok]
        error = max(seam.error for seam in report.seams if seam.unit == "relative")
        clips = len({seam.clip for seam in report.seams})
        note = f"largest error of a seam, {clips} clips"
        self._end(StepReport(GOLDEN, error, LARGEST_LOGITS, "relative RMS", self._seconds(), 0, note))
        if failed:
            raise QuantizeError(
                f"{failed[0].name} of {failed[0].clip} differs from the reference by {failed[0].error:.3g} "
                f"{failed[0].unit}, expected at most {failed[0].tolerance:.3g}; nothing was written. Choose a finer "
                f"--encoder or --decoder{failed[0].note and f' ({failed[0].note})'}"
            )
        manifest = self._manifest(measured_tolerances(report, self._widest(), self._logits_std()))
        writer.path(MODEL_CARD).write_text(self._card(), encoding="utf-8")
        return writer.finish(manifest)

    def _widest(self) -> Tolerances:
        stored = self.source.manifest.decoder
        if stored is None:
            return widest_tolerances(self.source.manifest, self.encoder_options)
        kind, kv_type = self._decoder_options(stored).kind, self.options.kv_type or stored.kv_type
        return widest_tolerances(self.source.manifest, self.encoder_options, (kind, kv_type), self._logits_std())

    def _logits_std(self) -> float:
        """The largest standard deviation of the golden logits; 0 without a decoder."""
        return max((float(clip.text.logits.std()) for clip in read_golden(self.source) if clip.text), default=0.0)

    def _manifest(self, tolerances: Tolerances) -> Manifest:
        """The manifest, without the files' sizes and hashes."""
        source, options, encoder = self.source.manifest, self.options, self.encoder
        assert encoder is not None
        precision = self.encoder_options.precision
        tensor_types = options.decoder.tensor_types if options.decoder else {}
        facts = QuantizationFacts(
            recipe=options.recipe,
            source_sha256=sha256_of(self.source.path(MANIFEST)),
            imatrix=self.imatrix,
            calibration=self.calibration.facts if self.calibration else None,
            tensor_types={pattern: kind.name for pattern, kind in tensor_types.items()},
            encoder_matrices=dict(encoder.matrices) if precision == "mixed" else {},
            smoothed=encoder.smoothed,
            embeddings_snr_db=None if encoder.snr_db is None else round(encoder.snr_db, 2),
        )
        facts = facts.model_copy(update=self._facts_of_copies())
        update: dict[str, object] = {
            "schema_version": 3, "tolerances": tolerances, "quantization": facts, "files": {},
            "encoder": source.encoder.model_copy(update={"precision": precision}),
        }  # fmt: skip
        if source.decoder is not None:
            kind, kv_type = self._decoder_options(source.decoder).kind, options.kv_type or source.decoder.kv_type
            update["decoder"] = source.decoder.model_copy(update={"precision": kind, "kv_type": kv_type})
        return source.model_copy(update=update)

    def _facts_of_copies(self) -> dict[str, object]:
        """What an earlier quantization said about the parts that are copied."""
        earlier, options, stored = self.source.manifest.quantization, self.options, self.source.manifest
        if earlier is None:
            return {}
        kept: list[str] = []
        if options.encoder is None or options.encoder.precision == stored.encoder.precision:
            kept += ["encoder_matrices", "smoothed", "embeddings_snr_db"]
        if stored.decoder is not None and (options.decoder is None or options.decoder.kind == stored.decoder.precision):
            kept += ["imatrix", "tensor_types"]
        if self.clips is None:
            kept.append("calibration")
        return {key: getattr(earlier, key) for key in kept}

    def _card(self) -> str:
        """The source's model card, with what was changed since."""
        path = self.source.path(MODEL_CARD)
        card = path.read_text(encoding="utf-8") if path.is_file() else f"# {self.source.manifest.name}\n"
        lines = [f"- {step.name}: {step.note}" for step in self.steps if step.note]
        return f"{card.rstrip()}\n\n## Quantized\n\n" + "\n".join(lines) + "\n"

    def _begin(self, step: str, total: int, unit: str) -> None:
        self._began = time.perf_counter()
        self.progress.begin(step, total, unit)

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _end(self, report: StepReport) -> None:
        self.progress.end(report)
        self.steps.append(report)
