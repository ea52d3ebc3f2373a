"""The export from end to end: checkpoint and adapters in, a bundle that carries its own proof out.

Each step reports its error against its own source, and the export fails when one is out of tolerance.
Whatever happens before the end, nothing stays on the disk.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from dasheng_edge.runtime.bundle import (
    DECODER,
    ENCODER,
    FRONT_END,
    GOLDEN,
    PROJECTOR,
    Bundle,
    BundleWriter,
    DecoderFacts,
    EncoderFacts,
    Manifest,
    PromptFacts,
    Provenance,
    Sampling,
    Tolerances,
)
from dasheng_edge.runtime.errors import (
    CheckpointFileError,
    DashengEdgeError,
    ExportError,
    MissingExtraError,
    OutputWriteError,
)

from .adapter import MergedTensors, adapted_matrices, check_finite, measured_merge_error, open_adapters
from .checkpoint import Checkpoint, open_checkpoint, read_json
from .decoder_gguf import (
    PREFIX,
    intermediate_type,
    measure,
    quantize,
    stored_bytes,
    tensor_count,
    write_gguf,
)
from .encoder_onnx import (
    GraphReport,
    export_encoder,
    export_front_end,
    export_projector,
    load_encoder,
    load_projector,
)
from .golden import check_memory, golden_clips, golden_prompt, write_golden
from .options import ExportOptions
from .tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, Vocabulary, check_audio_token, read_vocabulary
from .tolerances import DECODER_TOLERANCES, check_prompt, check_tensors, golden_logits_error, token_margin

CAPTION_PROMPT = "Write an audio caption describing the sound"  # MiDashengLM's evaluation prompt for captions
LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "gguf", "llama-cpp-python")
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # two distributions of one library; one is installed
MERGE_TOLERANCE = 1e-6  # float32 against float64


# The fp32 encoder's seams.
LOG_MEL_DB, PATCHES, EMBEDDINGS = 1e-3, 1e-4, 1e-4


@dataclass(frozen=True)
class StepReport:
    """One step: what it wrote, and how far that is from its source."""

    name: str
    error: float
    tolerance: float
    unit: str  # "dB" or "relative RMS"
    seconds: float
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class ExportReport:
    """A finished export."""

    bundle: Bundle
    steps: tuple[StepReport, ...]
    seconds: float
    bytes: int


class Progress(Protocol):
    """Who is told how the export goes on."""

    def begin(self, step: str, total: int, unit: str) -> None:
        """A step begins; it will advance to `total` of `unit` (bytes, graphs, clips)."""

    def advance(self, amount: int) -> None:
        """The current step went on by so much."""

    def end(self, report: StepReport) -> None:
        """The current step is done."""


class NoProgress:
    """Tells nobody."""

    def begin(self, step: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def end(self, report: StepReport) -> None:
        """Nothing."""


def export_bundle(options: ExportOptions, progress: Progress | None = None) -> ExportReport:
    """Export a checkpoint, with its adapters merged in, to a bundle.

    Raises:
        CheckpointError, AdapterError: an input cannot be used; found out before work begins, but for weights
            that are not finite.
        MissingExtraError: a library is not installed.
        OutputExistsError: the output is there and `overwrite` is False.
        OutputWriteError: the output cannot be written.
        ExportError: a step failed, or differs from its source by more than its tolerance.
    """
    start = time.perf_counter()
    checkpoint = open_checkpoint(options.checkpoint)
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.decoder.vocab_size)
    check_audio_token(checkpoint, vocabulary)
    facts = prompt_facts(checkpoint)
    merged = open_adapters(options.adapters, checkpoint)
    prompt = golden_prompt(checkpoint.folder, facts)
    check_memory(merged)
    export = _Export(options, merged, vocabulary, (facts, prompt), progress or NoProgress())
    with _write_errors(options), BundleWriter(options.out, overwrite=options.overwrite) as writer:
        export.run(writer)
        bundle = writer.finish(export.manifest())
    return ExportReport(bundle, tuple(export.steps), time.perf_counter() - start, bundle.manifest.total_bytes)


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
                f"export needs {' or '.join(names)}, which is not installed; run pip install 'dasheng-edge[export,cpu]'"
            )
    return versions


def prompt_facts(checkpoint: Checkpoint) -> PromptFacts:
    """Prompt defaults: the caption prompt, and sampling as `generation_config.json` says."""
    path = checkpoint.folder / "generation_config.json"
    config = read_json(path, missing_ok=True)
    try:
        sampling = Sampling(repetition_penalty=config.get("repetition_penalty") or 1.0)
        if config.get("do_sample"):  # what is not stated has the defaults of transformers' GenerationConfig
            sampling = Sampling(
                temperature=config.get("temperature", 1.0),
                top_k=config.get("top_k", 50),
                top_p=config.get("top_p", 1.0),
                min_p=config.get("min_p") or 0.0,
                repetition_penalty=sampling.repetition_penalty,
            )
        return PromptFacts(
            prompt=CAPTION_PROMPT,
            audio_token=AUDIO,
            audio_bos_token=AUDIO_BOS,
            audio_eos_token=AUDIO_EOS,
            max_new_tokens=config.get("max_new_tokens") or 128,
            sampling=sampling,
        )
    except ValueError as error:  # pydantic's
        raise CheckpointFileError(f"{path} holds a value out of range: {error}") from error


class _Export:
    """The steps of one export, in order."""

    def __init__(
        self,
        options: ExportOptions,
        merged: MergedTensors,
        vocabulary: Vocabulary,
        prompt: tuple[PromptFacts, list[int]],
        progress: Progress,
    ) -> None:
        self.options, self.merged, self.vocabulary = options, merged, vocabulary
        self.facts, self.prompt = prompt  # and as transformers renders it
        self.progress = progress
        # Before the work begins, since one may be missing.
        self.tool, self.versions = f"dasheng-edge {version('dasheng-edge')}", library_versions()
        self.limits = DECODER_TOLERANCES[options.decoder]
        self.steps: list[StepReport] = []
        self.token_margin = 0.0  # in logits, whose scale the golden step learns
        self._began = 0.0

    def run(self, writer: BundleWriter) -> None:
        """Write all files of the bundle but the manifest."""
        if self.merged.adapters:
            self._begin("adapters", len(adapted_matrices(self.merged)), "matrices")
            for adapter in self.merged.adapters:
                check_finite(adapter)
            self._end("adapters", measured_merge_error(self.merged, self.progress.advance), MERGE_TOLERANCE, 0)
        self._graphs(writer)
        self._decoder(writer)
        check_prompt(writer.path(DECODER), self.merged.checkpoint.folder.name, self.facts, self.prompt)
        self._begin(GOLDEN, len(golden_clips(self.merged.checkpoint.front_end)), "clips")
        path = writer.path(GOLDEN)
        vectors = write_golden(path, self.merged, self.vocabulary, self.prompt, self.progress.advance)
        gc.collect()
        scale = max(float(vectors[f"logits_{i}"].std()) for i in range(len(vectors["names"])))
        self.token_margin = token_margin(scale, self.options.decoder)
        size = writer.path(GOLDEN).stat().st_size
        error = golden_logits_error(writer.path(DECODER), vectors)
        note = f"first logits of {DECODER} in llama.cpp, {len(vectors['names'])} clips"
        self._end(GOLDEN, error, self.limits.logits, size, note=note)

    def manifest(self) -> Manifest:
        """The manifest, without the files' sizes and hashes."""
        checkpoint, limits = self.merged.checkpoint, self.limits
        encoder, decoder = checkpoint.encoder, checkpoint.decoder
        adapters = tuple(f"{adapter.name} {adapter.sha256}" for adapter in self.merged.adapters)
        name = checkpoint.folder.resolve().name
        return Manifest(
            name=name,
            variant="midashenglm",
            front_end=checkpoint.front_end,
            encoder=EncoderFacts(
                embed_dim=encoder.embed_dim, depth=encoder.depth, num_heads=encoder.num_heads,
                parameters=checkpoint.parameters("audio_encoder."), precision=self.options.encoder,
            ),
            decoder=DecoderFacts(
                arch="qwen2", hidden_size=decoder.hidden_size, layers=decoder.layers, vocab_size=decoder.vocab_size,
                context_length=decoder.context_length, parameters=checkpoint.parameters(PREFIX),
                precision=self.options.decoder,
            ),
            prompt=self.facts,
            tolerances=Tolerances(
                log_mel_db=LOG_MEL_DB, patches_relative=PATCHES, embeddings_relative=EMBEDDINGS,
                logits_relative=limits.logits, token_margin=self.token_margin,
            ),
            provenance=Provenance(
                tool=self.tool, checkpoint=name,
                checkpoint_sha256=checkpoint.sha256(), adapters=adapters,
                versions=self.versions,
            ),
            files={},
        )  # fmt: skip

    def _graphs(self, writer: BundleWriter) -> None:
        checkpoint = self.merged.checkpoint
        self._begin(FRONT_END, 1, "graphs")
        report = export_front_end(writer.path(FRONT_END), checkpoint.front_end)
        self._end_graph(FRONT_END, report, LOG_MEL_DB, "dB")
        self._begin(ENCODER, 1, "graphs")
        report = export_encoder(writer.path(ENCODER), load_encoder(self.merged))
        gc.collect()
        self._end_graph(ENCODER, report, PATCHES, "relative RMS")
        self._begin(PROJECTOR, 1, "graphs")
        report = export_projector(writer.path(PROJECTOR), load_projector(self.merged), checkpoint.encoder.embed_dim)
        gc.collect()
        self._end_graph(PROJECTOR, report, EMBEDDINGS, "relative RMS")

    def _decoder(self, writer: BundleWriter) -> None:
        kind, path = self.options.decoder, writer.path(DECODER)
        first = intermediate_type(self.merged, kind)
        source = path if first == kind else writer.path(f"decoder.{first}.gguf")
        self._begin(DECODER, stored_bytes(self.merged, first), "bytes")
        write_gguf(source, self.merged, self.vocabulary, first, self.progress.advance)
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
