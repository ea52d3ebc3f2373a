"""The export from end to end: checkpoint and adapters in, a bundle that carries its own proof out.

Each step reports its error against its own source, and the export fails when one is out of tolerance.
Whatever happens before the end, nothing stays on the disk.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dasheng_edge.export.adapter.merge import MergedTensors, check_finite, measured_merge_error, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.gguf.checks import check_prompt, check_tensors, golden_logits_error
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
from dasheng_edge.export.graphs.check import GraphReport
from dasheng_edge.export.graphs.encoder import export_encoder, export_projector
from dasheng_edge.export.graphs.front_end import export_front_end
from dasheng_edge.export.prompt.facts import golden_prompt, prompt_facts
from dasheng_edge.export.reference.golden import GoldenRequest, golden_mel_error, golden_tokens, write_golden
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, token_margin
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, MODEL_CARD, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.manifest import (
    DecoderFacts,
    EncoderFacts,
    Manifest,
    PromptFacts,
    Provenance,
    Tolerances,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.errors import DashengEdgeError, ExportError, MissingExtraError, OutputWriteError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.progress import NoProgress, Progress, StepReport

from .model_card import model_card
from .options import ExportOptions

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
    checkpoint = open_checkpoint(options.checkpoint)
    text = read_text(checkpoint, options) if checkpoint.decoder else None
    merged = open_adapters(options.adapters, checkpoint)
    export = _Export(options, merged, text, progress or NoProgress())
    with _write_errors(options), BundleWriter(options.out, overwrite=options.overwrite) as writer:
        check_space(writer.out.parent, export.needed_bytes())
        export.run(writer)
        bundle = export.finish(writer)
    return ExportReport(
        bundle, tuple(export.steps), time.perf_counter() - start, bundle.manifest.total_bytes, export.assumed
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
    assert checkpoint.decoder is not None
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.decoder.vocab_size)
    facts = prompt_facts(checkpoint, options.overrides, adapted=bool(options.adapters))
    return TextSide(vocabulary, facts, golden_prompt(checkpoint.folder, facts))


def check_space(folder: Path, needed: int) -> None:
    """Running out of disk after a quarter of an hour helps nobody.

    Raises:
        OutputWriteError: there is less free space than needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputWriteError(
            f"the export needs about {needed / 1e9:.1f} GB in {folder}, the intermediate file of the decoder included, "
            f"and {free / 1e9:.1f} GB are free; free some space or choose another --out"
        )


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


class _Export:
    """The steps of one export, in order."""

    def __init__(
        self, options: ExportOptions, merged: MergedTensors, text: TextSide | None, progress: Progress
    ) -> None:
        self.options, self.merged, self.text, self.progress = options, merged, text, progress
        # Before the work begins, since one may be missing.
        self.tool, self.versions = f"dasheng-edge {version('dasheng-edge')}", library_versions()
        self.limits = DECODER_TOLERANCES[options.decoder]
        self.assumed = (*merged.checkpoint.assumptions, *other_bases(merged))
        self.steps: list[StepReport] = []
        self.token_margin = 0.0  # in logits, whose scale the golden step learns
        self._began = 0.0

    def needed_bytes(self) -> int:
        """Most that lies on the disk at a time, roughly."""
        parameters = self.merged.parameters
        graphs = 4 * (parameters("audio_encoder.") + parameters("audio_projector."))
        return graphs + (needed_bytes(self.merged, self.options.decoder) if self.text else 0) + MARGIN_BYTES

    def run(self, writer: BundleWriter) -> None:
        """Write all files of the bundle but model card and manifest."""
        if self.merged.adapters:
            self._begin("adapters", len(self.merged.adapted()), "matrices")
            for adapter in self.merged.adapters:
                check_finite(adapter)
            self._end("adapters", measured_merge_error(self.merged, self.progress.advance), MERGE_TOLERANCE, 0)
        self._graphs(writer)
        if self.text is not None:
            self._decoder(writer)
            check_prompt(writer.path(DECODER), self.merged.checkpoint.name, self.text.facts, self.text.prompt)
        self._golden(writer, self.text)

    def finish(self, writer: BundleWriter) -> Bundle:
        """Write the model card, which tells what the steps measured, and the manifest."""
        manifest = self._manifest()
        checkpoint = self.merged.checkpoint
        card = model_card(
            manifest, writer.sizes(), self.steps,
            header=card_of_checkpoint(checkpoint.folder), base_model=hub_id(checkpoint),
            assumptions=self.assumed,
        )  # fmt: skip
        writer.path(MODEL_CARD).write_text(card, encoding="utf-8")
        return writer.finish(manifest)

    def _manifest(self) -> Manifest:
        """The manifest, without the files' sizes and hashes."""
        checkpoint, limits, text = self.merged.checkpoint, self.limits, self.text
        parameters = self.merged.parameters
        encoder, decoder, origin = checkpoint.encoder, checkpoint.decoder, checkpoint.origin
        tolerances = Tolerances(
            log_mel_db=LOG_MEL_DB, patches_relative=PATCHES,
            acoustic_nepers=ACOUSTIC_NEPERS if checkpoint.front_end.acoustic else None,
            embeddings_relative=EMBEDDINGS if decoder else None,
            logits_relative=limits.logits if decoder else None, token_margin=self.token_margin if decoder else None,
        )  # fmt: skip
        return Manifest(
            name=checkpoint.name,
            variant=checkpoint.variant.name,
            front_end=checkpoint.front_end,
            encoder=EncoderFacts(
                embed_dim=encoder.embed_dim, depth=encoder.depth, num_heads=encoder.num_heads,
                parameters=parameters("audio_encoder."), precision=self.options.encoder,
            ),
            projector_parameters=parameters("audio_projector.") if decoder else None,
            decoder=None if decoder is None else DecoderFacts(
                arch=decoder.arch, hidden_size=decoder.hidden_size, layers=decoder.layers,
                vocab_size=decoder.vocab_size, context_length=decoder.context_length,
                parameters=parameters(PREFIX), precision=self.options.decoder,
            ),
            prompt=None if text is None else text.facts,
            tolerances=tolerances,
            provenance=Provenance(
                tool=self.tool, checkpoint=origin.repo if origin else checkpoint.name,
                revision=origin.revision if origin else None, checkpoint_sha256=checkpoint.sha256(),
                adapters=tuple(adapter.provenance for adapter in self.merged.adapters),
                versions=self.versions,
            ),
            files={},
        )  # fmt: skip

    def _graphs(self, writer: BundleWriter) -> None:
        self._begin(FRONT_END, 1, "graphs")
        report = export_front_end(writer.path(FRONT_END), self.merged.checkpoint.front_end)
        self._end_graph(FRONT_END, report, LOG_MEL_DB, "dB")
        if report.acoustic_error is not None:
            acoustic = GraphReport(0, report.acoustic_error, report.cases)
            self._end_graph("acoustic mel", acoustic, ACOUSTIC_NEPERS, "nepers")
        self._begin(ENCODER, 1, "graphs")
        report = export_encoder(writer.path(ENCODER), self.merged)
        gc.collect()
        self._end_graph(ENCODER, report, PATCHES, "relative RMS")
        if self.text is None:
            return
        self._begin(PROJECTOR, 1, "graphs")
        report = export_projector(writer.path(PROJECTOR), self.merged)
        gc.collect()
        self._end_graph(PROJECTOR, report, EMBEDDINGS, "relative RMS")

    def _decoder(self, writer: BundleWriter) -> None:
        assert self.text is not None
        kind, path = self.options.decoder, writer.path(DECODER)
        first = intermediate_type(self.merged, kind)
        source = path if first == kind else writer.path(f"decoder.{first}.gguf")
        self._begin(DECODER, stored_bytes(self.merged, first), "bytes")
        write_gguf(source, self.merged, self.text.vocabulary, first, self.progress.advance, self.text.facts.sampling)
        tensors = tensor_count(self.merged)
        if source != path:
            self.progress.begin(f"{DECODER}: quantizing", tensors, "tensors")
            quantize(source, path, kind, advance=self.progress.advance)
            source.unlink()
        self.progress.begin(f"{DECODER}: measuring", tensors, "tensors")
        report = measure(path, self.merged, kind, self.progress.advance)
        note = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
        note += f"; worst: {report.worst_matrix} {report.worst_error:.2e}" if report.relative_error else ""
        if report.fallbacks:
            note += f"; {len(report.fallbacks)} matrices have rows that {kind} cannot divide and fell back"
        self._end(DECODER, report.relative_error, self.limits.weights, report.bytes, note=note)
        check_tensors(report, self.limits)

    def _golden(self, writer: BundleWriter, text: TextSide | None) -> None:
        path = writer.path(GOLDEN)
        self._begin(GOLDEN, golden_tokens(self.merged) if text else 1, "passes")
        request = GoldenRequest(text.prompt, text.vocabulary.stop_ids) if text else None
        clips = write_golden(path, self.merged, request, self.progress.advance)
        gc.collect()
        size, texts = path.stat().st_size, [clip.text for clip in clips if clip.text]
        if text is None:
            error = golden_mel_error(writer.path(FRONT_END), self.merged.checkpoint.front_end, clips)
            self._end(GOLDEN, error, LOG_MEL_DB, size, unit="dB", note=f"log-mel of {len(clips)} clips in the runtime")
            return
        scale = max(float(text.logits.std()) for text in texts)
        self.token_margin = token_margin(scale, self.options.decoder)
        error = golden_logits_error(writer.path(DECODER), texts)
        self._end(
            GOLDEN, error, self.limits.logits, size, note=f"first logits of {DECODER} in llama.cpp, {len(clips)} clips"
        )

    def _begin(self, step: str, total: int, unit: str) -> None:
        self._began = time.perf_counter()
        self.progress.begin(step, total, unit)

    def _end_graph(self, name: str, report: GraphReport, tolerance: float, unit: str) -> None:
        self.progress.advance(1)
        self._end(name, report.error, tolerance, report.bytes, unit=unit, note=f"worst of {report.cases} inputs")

    def _end(
        self, name: str, error: float, tolerance: float, size: int, *, unit: str = "relative RMS", note: str = ""
    ) -> None:
        report = StepReport(name, error, tolerance, unit, time.perf_counter() - self._began, size, note)
        self.progress.end(report)
        self.steps.append(report)
        if not error <= tolerance:  # written so that NaN fails, too
            raise ExportError(
                f"{name} differs from its source by {error:.3g} {unit}, expected at most {tolerance:.3g} ({note}); "
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
