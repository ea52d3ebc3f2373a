"""The export from end to end: checkpoint and adapters in, a bundle that carries its own proof out.

Each step reports its error against its own source, and the export fails when one is out of tolerance.
Whatever happens before the end, nothing stays on the disk.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from dasheng_edge.export.adapter.adapter import adds_nothing, check_finite
from dasheng_edge.export.adapter.merge import MergedTensors, measured_merge_error, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.files.disk_space import check_space
from dasheng_edge.export.gguf.checks import check_golden, check_prompt, check_tensors
from dasheng_edge.export.gguf.decoder import (
    intermediate_type,
    measure,
    needed_bytes,
    stored_bytes,
    tensor_count,
    write_gguf,
)
from dasheng_edge.export.gguf.metadata import PREFIX, hub_id, other_bases
from dasheng_edge.export.gguf.metadata import model_card as card_of_checkpoint
from dasheng_edge.export.gguf.tokenizer import Vocabulary, read_vocabulary
from dasheng_edge.export.graphs.encoder import export_encoder, export_projector
from dasheng_edge.export.graphs.front_end import export_front_end
from dasheng_edge.export.graphs.session import GraphReport
from dasheng_edge.export.options import ExportOptions  # absolute, as the prompt's room has it: one type for pyright
from dasheng_edge.export.prompt.facts import golden_prompt, prompt_facts
from dasheng_edge.export.reference.golden import GoldenRequest, golden_mel_error, golden_tokens, write_golden
from dasheng_edge.export.variants.dasheng import UNSAID
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, DecoderOptions, DecoderTolerance, token_margin
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, MODEL_CARD, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import save_flat_golden
from dasheng_edge.runtime.bundle.manifest import (
    DecoderFacts,
    EncoderFacts,
    Manifest,
    PromptFacts,
    Provenance,
    Tolerances,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.errors import (
    CheckpointVariantError,
    DashengEdgeError,
    ExportError,
    MissingExtraError,
    OutputWriteError,
)
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.program import program_of
from dasheng_edge.runtime.progress import NoProgress, Progress, Step, StepReport, Steps

from .model_card import model_card

LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "gguf", "llama-cpp-python")
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # two distributions of one library; one is installed
MERGE_TOLERANCE = 1e-6  # float32 against float64
# The fp32 encoder's seams.
LOG_MEL_DB, ACOUSTIC_NEPERS, PATCHES, EMBEDDINGS = 1e-3, 1e-4, 1e-4, 1e-4
MARGIN_BYTES = 100_000_000  # for what is small: front end, test vectors, headers


@dataclass(frozen=True)
class ExportReport:
    """A finished export."""

    bundle: Bundle
    steps: tuple[StepReport, ...]
    seconds: float
    bytes: int
    assumptions: tuple[str, ...] = ()  # what checkpoint and adapters do not say and was taken for granted
    warnings: tuple[str, ...] = ()  # what in them may not be as their owner thinks


def export_bundle(options: ExportOptions, progress: Progress | None = None) -> ExportReport:
    """Export a checkpoint as `options` say, and tell `progress` about it.

    Whatever can be refused is refused before the first step.

    Raises:
        CheckpointError, AdapterError: an input is missing, broken or of another model.
        OutputExistsError: the output exists and `overwrite` is False.
        OutputWriteError: the output cannot be written.
        ExportError: a step failed, or differs from its source by more than its tolerance.
    """
    start = time.perf_counter()
    plan, steps = _plan(options), Steps(progress or NoProgress())
    with _write_errors(options), BundleWriter(options.out, overwrite=options.overwrite) as writer:
        what = "the export, with the intermediate file of the decoder, needs about"
        check_space(writer.out.parent, plan.needed_bytes, what)
        _check_adapters(plan, steps)
        _write_graphs(plan, writer, steps)
        _write_decoder(plan, writer, steps)
        margin = _write_golden(plan, writer, steps)
        manifest = _manifest(plan, margin)
        program = program_of(manifest, writer.path(DECODER) if plan.text else None)
        manifest = manifest.model_copy(update={"program": program})
        writer.path(MODEL_CARD).write_text(_card(plan, manifest, writer, steps.reports), encoding="utf-8")
        bundle = writer.finish(manifest)
    seconds = time.perf_counter() - start
    return ExportReport(
        bundle, tuple(steps.reports), seconds, bundle.manifest.total_bytes, plan.assumptions, plan.warnings
    )


@dataclass(frozen=True)
class TextSide:
    """What belongs to the decoder: its tokenizer, the prompt's facts, and the default prompt's token ids."""

    vocabulary: Vocabulary
    facts: PromptFacts
    prompt: list[int]  # as transformers renders it


def read_text(checkpoint: Checkpoint, options: ExportOptions) -> TextSide:
    """Tokenizer and prompt of a checkpoint.

    Raises:
        CheckpointError: a file is missing, broken or of a tokenizer that is not known.
        ExportError: the chat template cannot be rendered.
    """
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.text_decoder.vocab_size)
    facts = prompt_facts(checkpoint, options.overrides, adapted=bool(options.adapters))
    return TextSide(vocabulary, facts, golden_prompt(checkpoint.folder, facts))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that make a bundle.

    Raises:
        MissingExtraError: one is not installed.
    """
    versions: dict[str, str] = {}
    for names in (*((library,) for library in LIBRARIES), ONNX_RUNTIMES):
        for name in names:
            with suppress(PackageNotFoundError):
                versions[name] = version(name)
        if not versions.keys() & set(names):
            raise MissingExtraError(
                f"export needs {' or '.join(names)}, which is not installed; run {install_line('export', 'cpu')}"
            )
    return versions


@dataclass(frozen=True)
class _Plan:
    """What is exported, opened and checked before any work."""

    options: ExportOptions
    merged: MergedTensors
    text: TextSide | None  # None: the checkpoint has no decoder
    tool: str
    versions: Mapping[str, str]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint without the adapters."""
        return self.merged.checkpoint

    @property
    def limits(self) -> DecoderTolerance:
        """What the decoder's type may cost."""
        return DECODER_TOLERANCES[self.options.decoder]

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is taken for granted, a sentence each."""
        return (*self.checkpoint.assumptions, *other_bases(self.merged))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What in checkpoint and adapters may not be as their owner thinks, a sentence each."""
        adapters = self.merged.adapters
        return (
            *self.checkpoint.warnings,
            *(sentence for adapter in adapters for sentence in adapter.warnings),
            *(
                f"adapter {adapter.name} changes nothing: all its lora_B are zero, as before the first step of a "
                "training; give the adapter of a later step"
                for adapter in adapters
                if adds_nothing(adapter)
            ),
        )

    @property
    def needed_bytes(self) -> int:
        """Most that lies on the disk at a time, roughly."""
        graphs = 4 * (self.merged.parameters("audio_encoder.") + self.merged.parameters("audio_projector."))
        return graphs + (needed_bytes(self.merged, self.options.decoder) if self.text else 0) + MARGIN_BYTES


def _plan(options: ExportOptions) -> _Plan:
    """Open everything, and refuse what can be refused."""
    checkpoint = with_last_chunk(open_checkpoint(options.checkpoint), options.pad_last_chunk)
    text = read_text(checkpoint, options) if checkpoint.decoder else None
    merged = open_adapters(options.adapters, checkpoint)
    return _Plan(options, merged, text, f"dasheng-edge {version('dasheng-edge')}", library_versions())


def with_last_chunk(checkpoint: Checkpoint, pads: bool | None) -> Checkpoint:
    """A checkpoint whose last chunk is filled up with zeros or not; None: as it says itself.

    Raises:
        CheckpointVariantError: it is none of those that are known in both ways.
    """
    if pads is None:
        return checkpoint
    if checkpoint.front_end.masks_last_patch:
        raise CheckpointVariantError(
            f"--pad-last-chunk and --short-last-chunk are for a Dasheng encoder alone, and {checkpoint.name} is a "
            f"{checkpoint.variant.name}, whose last chunk always runs at its own length; leave them out"
        )
    front_end = checkpoint.front_end.model_copy(update={"pads_last_chunk": pads})
    assumed = tuple(key for key in checkpoint.assumed if key != UNSAID)
    return replace(checkpoint, front_end=front_end, assumed=assumed)


def _check_adapters(plan: _Plan, steps: Steps) -> None:
    """Measure the merge, which is computed again wherever a weight is read."""
    merged = plan.merged
    if merged.adapters:
        step = steps.begin("adapters", len(merged.adapted()), "matrices")
        for adapter in merged.adapters:
            check_finite(adapter)
        _end(step, measured_merge_error(merged, steps.progress.advance), MERGE_TOLERANCE)


def _write_graphs(plan: _Plan, writer: BundleWriter, steps: Steps) -> None:
    """Write front end, encoder and, where there is a decoder, projector."""
    step = steps.begin(FRONT_END, 1, "graphs")
    report = export_front_end(writer.path(FRONT_END), plan.checkpoint.front_end)
    _end_graph(step, report, LOG_MEL_DB, "dB")
    if report.acoustic_error is not None:
        acoustic = GraphReport(0, report.acoustic_error, report.cases)
        _end_graph(replace(step, name="acoustic mel"), acoustic, ACOUSTIC_NEPERS, "nepers")
    graphs = [(ENCODER, export_encoder, PATCHES), (PROJECTOR, export_projector, EMBEDDINGS)]
    for name, export, tolerance in graphs if plan.text else graphs[:1]:
        step = steps.begin(name, 1, "graphs")
        report = export(writer.path(name), plan.merged)
        gc.collect()
        _end_graph(step, report, tolerance, "relative RMS")


def _write_decoder(plan: _Plan, writer: BundleWriter, steps: Steps) -> None:
    """Write the GGUF, through an exact one where llama.cpp's quantizer makes it, and compare it with its source."""
    if plan.text is None:
        return
    merged, text, kind, progress = plan.merged, plan.text, plan.options.decoder, steps.progress
    path, first, tensors = writer.path(DECODER), intermediate_type(merged, kind), tensor_count(merged)
    source = path if first == kind else writer.path(f"decoder.{first}.gguf")
    step = steps.begin(DECODER, stored_bytes(merged, first), "bytes")
    write_gguf(source, merged, text.vocabulary, first, progress.advance, text.facts.sampling)
    if source != path:
        progress.begin(f"{DECODER}: quantizing", tensors, "tensors")
        quantize(source, path, DecoderOptions(kind), advance=progress.advance)
        source.unlink()
    progress.begin(f"{DECODER}: measuring", tensors, "tensors")
    report = measure(path, merged, kind, progress.advance)
    note = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
    note += f"; worst: {report.worst_matrix} {report.worst_error:.2e}" if report.relative_error else ""
    if report.fallbacks:
        note += f"; {len(report.fallbacks)} matrices have rows that {kind} cannot divide and fell back"
    _end(step, report.relative_error, plan.limits.weights, size=report.bytes, note=note)
    check_tensors(report, plan.limits)
    check_prompt(path, plan.checkpoint.name, text.facts, text.prompt)


def _write_golden(plan: _Plan, writer: BundleWriter, steps: Steps) -> float | None:
    """Write the test vectors; the margin that greedy tokens are allowed, in logits, where there is a decoder.

    Raises:
        ExportError: a graph or the decoder differs from the reference, or is not finite.
    """
    path, text = writer.path(GOLDEN), plan.text
    step = steps.begin(GOLDEN, golden_tokens(plan.merged) if text else 1, "passes")
    request = GoldenRequest(text.prompt, text.vocabulary.stop_ids) if text else None
    clips = write_golden(path, plan.merged, request, steps.progress.advance)
    save_flat_golden(path, clips)
    gc.collect()
    size, texts = path.stat().st_size, [clip.text for clip in clips if clip.text]
    if not texts:
        error = golden_mel_error(writer.path(FRONT_END), plan.checkpoint.front_end, clips)
        _end(step, error, LOG_MEL_DB, "dB", size=size, note=f"log-mel of {len(clips)} clips in the runtime")
        return None
    kind = plan.options.decoder
    check = check_golden(writer.path(DECODER), texts, kind)
    if check.problem:
        raise ExportError(
            f"{GOLDEN} differs from its source by {check.error:.3g} relative RMS: {check.problem}; nothing was written"
        )
    _end(step, check.error, plan.limits.logits, size=size, note=f"{len(clips)} clips: {check.note}")
    return token_margin(max(float(text.logits.std()) for text in texts), kind)


def _manifest(plan: _Plan, margin: float | None) -> Manifest:
    """The manifest, without the files' sizes and hashes."""
    checkpoint, parameters = plan.checkpoint, plan.merged.parameters
    encoder, decoder, origin = checkpoint.encoder, checkpoint.decoder, checkpoint.origin
    return Manifest(
        name=checkpoint.name,
        variant=checkpoint.variant.name,
        front_end=checkpoint.front_end,
        encoder=EncoderFacts(
            embed_dim=encoder.embed_dim, depth=encoder.depth, num_heads=encoder.num_heads,
            parameters=parameters("audio_encoder."), precision=plan.options.encoder,
        ),
        projector_parameters=parameters("audio_projector.") if decoder else None,
        decoder=None if decoder is None else DecoderFacts(
            arch=decoder.arch, hidden_size=decoder.hidden_size, layers=decoder.layers,
            vocab_size=decoder.vocab_size, context_length=decoder.context_length,
            parameters=parameters(PREFIX), precision=plan.options.decoder,
        ),
        prompt=plan.text.facts if plan.text else None,
        tolerances=Tolerances(
            log_mel_db=LOG_MEL_DB, patches_relative=PATCHES,
            acoustic_nepers=ACOUSTIC_NEPERS if checkpoint.front_end.acoustic else None,
            embeddings_relative=EMBEDDINGS if decoder else None,
            logits_relative=plan.limits.logits if decoder else None, token_margin=margin,
        ),
        provenance=Provenance(
            tool=plan.tool, checkpoint=origin.repo if origin else checkpoint.name,
            revision=origin.revision if origin else None, checkpoint_sha256=checkpoint.sha256(),
            adapters=tuple(adapter.provenance for adapter in plan.merged.adapters),
            versions=dict(plan.versions),
        ),
        files={},
    )  # fmt: skip


def _card(plan: _Plan, manifest: Manifest, writer: BundleWriter, reports: Sequence[StepReport]) -> str:
    """The model card, which tells what the steps measured."""
    return model_card(
        manifest, writer.sizes(), reports,
        header=card_of_checkpoint(plan.checkpoint.folder), base_model=hub_id(plan.checkpoint),
        assumptions=plan.assumptions, warnings=plan.warnings,
    )  # fmt: skip


def _end_graph(step: Step, report: GraphReport, tolerance: float, unit: str) -> None:
    step.steps.progress.advance(1)
    _end(step, report.error, tolerance, unit, size=report.bytes, note=f"worst of {report.cases} inputs")


def _end(
    step: Step, error: float, tolerance: float, unit: str = "relative RMS", *, size: int = 0, note: str = ""
) -> None:
    """End a step, and fail where it is out of tolerance."""
    step.end(error, tolerance, unit, size=size, note=note)
    if not error <= tolerance:  # written so that NaN fails, too
        raise ExportError(
            f"{step.name} differs from its source by {error:.3g} {unit}, expected at most {tolerance:.3g} ({note}); "
            "nothing was written. Use the library versions of constraints.txt, or report this with the checkpoint"
        )


@contextmanager
def _write_errors(options: ExportOptions) -> Generator[None]:
    """Failed writes that libraries report in their own ways, as OutputWriteError."""
    try:
        yield
    except DashengEdgeError:
        raise
    except OSError as error:
        # numpy's tofile has no errno: "1024 requested and 512 written".
        if "written" in str(error):
            raise OutputWriteError(
                f"cannot write {options.out}: {error}; nothing was left behind. Free some space or choose another --out"
            ) from error
        raise
