"""A bundle's graphs in other forms, for tool chains that do not take them as they are; each is measured.

They are made of a bundle, not of a checkpoint: a bundle is what people have, it is all that the graphs need, and no
PyTorch is. A form is a folder of graphs and `graphs.json`, which says what they take and give.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dasheng_edge.quant.encoder.graphs import load_graph, save_graph
from dasheng_edge.quant.static.fixed import cut_frames, fix_shapes
from dasheng_edge.quant.static.forms import GraphForm, Opset, StaticOptions
from dasheng_edge.quant.static.opsets import lower
from dasheng_edge.quant.static.ort_format import check_sizes, convert_to_ort, ort_name
from dasheng_edge.quant.static.parts import StaticLayout, StaticParts, lengths, projector_runs, random_features
from dasheng_edge.quant.static.qdq import batchless, check_optimum, quantize_static
from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.front_end import FrontEndGraph
from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle, sha256_of, weights_file
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.clips.clips import ClipSet, find_clips
from dasheng_edge.runtime.deviation import Deviation, relative_rms, relative_rms_of
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import OutputExistsError, QuantizeError
from dasheng_edge.runtime.machine.devices import checked_threads
from dasheng_edge.runtime.progress import NoProgress, Progress, StepReport, Steps

from .calibration import calibrate_on

GRAPHS = "graphs.json"
MAX_RELATIVE = 1e-5  # of graphs in float32, which compute the same in another order
MAX_RELATIVE_ORT = 0.05  # of quantized ones: other kernels round other products
MIN_SNR_DB = 10.0  # of static int8, below which something is wrong; golden clips of micro: 34.8 dB, by entropy 19.5


@dataclass(frozen=True)
class GraphsOptions:
    """One set of graphs. `opset` and what follows are of static and qdq, `calibrate` and `quantized` of qdq alone."""

    source: Path
    out: Path
    form: GraphForm = "static"
    opset: Opset = 17
    frames: int | None = None  # of a chunk that the encoder takes; None: a whole one of the bundle
    full_chunks: bool = False  # without `valid_patches` and its mask
    calibrate: Path | None = None
    quantized: StaticOptions = field(default_factory=StaticOptions)
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class GraphsReport:
    """What was written."""

    out: Path
    steps: tuple[StepReport, ...]
    seconds: float
    bytes: int
    facts: Mapping[str, Any]  # what graphs.json says
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    options: GraphsOptions
    source: Bundle
    layout: StaticLayout
    clips: ClipSet | None
    threads: int
    names: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)


def write_graphs(options: GraphsOptions, progress: Progress | None = None) -> GraphsReport:
    """Write a bundle's graphs in a form, each held against the bundle's own, and tell `progress` about it.

    Raises:
        BundleError: the source cannot be used.
        ClipsError, AudioError: the clips cannot be used.
        MissingExtraError: static int8 was asked for, and optimum is not installed.
        QuantizeError: the form cannot be made of this bundle, or differs too much from it.
        OutputExistsError, OutputWriteError: the output is there, or cannot be written.
    """
    start, steps = time.perf_counter(), Steps(progress or NoProgress())
    plan = _plan(options, Bundle.open(options.source))
    partial = PartialOutput(options.out, overwrite=options.overwrite, what="a folder of graphs", why_not=_why_no_graphs)
    try:
        partial.open(folder=True)
        with partial.write_errors():
            measured = _FORMS[options.form](plan, partial.path, steps)
            facts = _facts(plan, partial.path, measured, steps.reports)
            (partial.path / GRAPHS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
            size = sum(path.stat().st_size for path in partial.path.iterdir())
            partial.move()
    finally:
        partial.discard()
    seconds = time.perf_counter() - start
    return GraphsReport(options.out, tuple(steps.reports), seconds, size, facts, tuple(plan.warnings))


def _plan(options: GraphsOptions, source: Bundle) -> _Plan:
    """Refuse what can be refused before any work."""
    if options.out.resolve().is_relative_to(options.source.resolve()):
        raise OutputExistsError(f"{options.out} is or lies in the bundle; choose another --out")
    manifest = source.manifest
    spec, precision = manifest.front_end, manifest.encoder.precision
    names = tuple(name for name in (FRONT_END, ENCODER, PROJECTOR) if name in manifest.files)
    frames, shortest = options.frames or spec.chunk_frames, spec.tokens_patches * spec.patch_frames
    if options.form == "ort":
        check_sizes([source.path(name) for name in names])
    elif precision != "fp32":
        raise QuantizeError(
            f"the encoder of {options.source} is {precision}, and --form {options.form} starts from fp32, since tool "
            "chains quantize by themselves; take the bundle as `dasheng-edge export` made it"
        )
    if frames % spec.patch_frames or not shortest <= frames <= spec.chunk_frames:
        raise QuantizeError(
            f"--frames is {frames}, expected a multiple of {spec.patch_frames} from {shortest} to {spec.chunk_frames}"
        )
    clips = None
    if options.form == "qdq":
        check_optimum()
        if options.calibrate is None:
            raise QuantizeError("--form qdq measures the ranges of activations on audio; pass --calibrate CLIPS")
        clips = find_clips(options.calibrate)
    layout = StaticLayout(spec, frames, full_chunks=options.full_chunks)
    return _Plan(options, source, layout, clips, checked_threads(options.threads), names)


def _static(plan: _Plan, folder: Path, steps: Steps) -> dict[str, Any]:
    """Graphs of fixed shapes."""
    for name in plan.names:
        step = steps.begin(name, 1, "graphs")
        model = load_graph(plan.source.path(name))
        path = folder / name
        shapes = plan.layout.shapes
        if name == PROJECTOR:
            rows = plan.layout.tokens * plan.layout.spec.tokens_patches
            shapes = {"patches": (1, rows, plan.source.manifest.encoder.embed_dim)}
        if name == FRONT_END:
            cut_frames(model, plan.layout.frames)
        fix_shapes(model, shapes, plan.layout.constants if name == ENCODER else {})
        lower(model, plan.options.opset)
        size = save_graph(model, path)
        onnx.checker.check_model(path, full_check=True)
        error, cases = _CHECKS[name](plan, path)
        steps.progress.advance(1)
        note = f"worst of {cases} inputs, opset {plan.options.opset}, {model.graph.num_nodes()} nodes"
        step.end(error, MAX_RELATIVE, "relative RMS", size=size, note=note)
        _check_error(name, error, MAX_RELATIVE)
    return {}


def _check_front_end(plan: _Plan, path: Path) -> tuple[float, int]:
    graph, session = FrontEndGraph(plan.source.path(FRONT_END), plan.layout.spec), onnx_session(path, "cpu", 1)
    errors = []
    for samples in lengths(plan.layout):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)
        features, given = graph.features(noise), session.run(None, {"waveform": plan.layout.waveform(noise)})
        wanted = [features.log_mel, *([] if features.acoustic is None else [features.acoustic])]
        for got, want in zip(given, wanted, strict=True):
            frames = min(want.shape[1], plan.layout.frames)
            errors.append(relative_rms(got[0, :, :frames], want[:, :frames]))
    return float(np.max(errors)), len(errors)


def _check_encoder(plan: _Plan, path: Path) -> tuple[float, int]:
    clips = random_features(plan.layout.spec, lengths(plan.layout))
    whole = Encoder(plan.source.path(ENCODER), plan.layout.spec, threads=plan.threads)
    wanted = [whole.patches(clip) for clip in clips]
    del whole
    parts = StaticParts(path.parent, plan.layout, plan.threads, ())
    errors = [relative_rms(parts.patches(clip), want) for clip, want in zip(clips, wanted, strict=True)]
    return float(np.max(errors)), len(errors)


def _check_projector(plan: _Plan, path: Path) -> tuple[float, int]:
    spec, width = plan.layout.spec, plan.source.manifest.encoder.embed_dim
    rows = np.random.default_rng(0).standard_normal((spec.chunk_patches, width), dtype=np.float32)
    cases = [rows, rows[: spec.tokens_patches]]
    whole, session = Projector(plan.source.path(PROJECTOR), spec, threads=plan.threads), onnx_session(path, "cpu", 1)
    errors = []
    for case in cases:
        runs = [session.run(None, {"patches": run})[0][0] for run in projector_runs(plan.layout, case)]
        errors.append(relative_rms(np.concatenate(runs)[: len(case) // spec.tokens_patches], whole.embeddings(case)))
    return float(np.max(errors)), len(errors)


def _qdq(plan: _Plan, folder: Path, steps: Steps) -> dict[str, Any]:
    """The graphs of fixed shapes, and of those with matrices static int8 in their place."""
    assert plan.clips is not None
    _static(plan, folder, steps)
    step = steps.begin("calibration", len(plan.clips.clips), "clips")
    audio = AudioParts.open(plan.source, EngineOptions().changed(threads=plan.threads))
    calibration = calibrate_on(plan.clips, audio, steps.progress.advance)
    plan.warnings.extend(calibration.warnings)
    clips = [clip for clip in calibration.features if plan.layout.fits(clip)]
    step.end(note=f"{len(clips)} of {len(plan.clips.clips)} clips in {plan.clips.name!r}")
    if not clips:
        raise QuantizeError(f"no clip fits into {plan.layout.frames} frames; pass other clips, or another --frames")
    names = tuple(name for name in plan.names if name != FRONT_END)
    step = steps.begin("static int8", len(names), "graphs")
    exact = StaticParts(folder, plan.layout, plan.threads, names)
    patches = [exact.patches(clip) for clip in clips]
    wanted = [exact.embeddings(one) for one in patches] if PROJECTOR in names else patches
    del exact  # and its memory
    rows = {
        ENCODER: (feed for clip in clips for feed, _ in plan.layout.feeds(clip)),
        PROJECTOR: ({"patches": run} for clip in patches for run in projector_runs(plan.layout, clip)),
    }
    size = 0
    for name in names:
        made = folder / f"made.{name}"
        quantize_static(folder / name, made, map(batchless, rows[name]), plan.options.quantized)
        weights_file(folder / name).unlink(missing_ok=True)
        size += save_graph(load_graph(made), folder / name)
        for file in (made, weights_file(made)):
            file.unlink(missing_ok=True)
        steps.progress.advance(1)
    parts = StaticParts(folder, plan.layout, plan.threads, names)
    snr_db = Deviation.of(zip(map(parts.outputs, clips), wanted, strict=True)).snr_db
    assert snr_db is not None
    chosen = plan.options.quantized
    note = f"{snr_db:.1f} dB SNR at its output, {chosen.activations} activations, {chosen.method}"
    step.end(relative_rms_of(snr_db), relative_rms_of(MIN_SNR_DB), "relative RMS", size=size, note=note)
    if not snr_db >= MIN_SNR_DB:  # written so that NaN fails, too
        raise QuantizeError(
            f"static int8 keeps {snr_db:.1f} dB of signal to noise at its output, expected at least {MIN_SNR_DB:g}; "
            "nothing was written. Try another --method, --activations uint8, or other clips"
        )
    facts = calibration.facts.model_dump() if calibration.facts else None
    return {
        "method": chosen.method, "activations": chosen.activations, "calibration": facts,
        "output_snr_db": round(snr_db, 2),
    }  # fmt: skip


def _ort(plan: _Plan, folder: Path, steps: Steps) -> dict[str, Any]:
    """The bundle's graphs, with the shapes and precisions that they have."""
    step = steps.begin("ORT format", len(plan.names), "graphs")
    files = convert_to_ort([plan.source.path(name) for name in plan.names], folder)
    worst, limit = 0.0, MAX_RELATIVE if plan.source.manifest.encoder.precision == "fp32" else MAX_RELATIVE_ORT
    for name in plan.names:
        feed = _example(plan, name)
        sessions = [onnx_session(path, "cpu", 1) for path in (folder / ort_name(name), plan.source.path(name))]
        got, want = (session.run(None, feed)[0] for session in sessions)
        worst = max(worst, relative_rms(got, want))
        steps.progress.advance(1)
    size = sum(file.stat().st_size for file in files)
    step.end(worst, limit, "relative RMS", size=size, note=f"worst of {len(plan.names)} graphs; {files[-1].name}")
    _check_error("ORT format", worst, limit)
    return {}


def _example(plan: _Plan, name: str) -> dict[str, Any]:
    """What a graph of the bundle takes, for a clip of one chunk."""
    spec = plan.layout.spec
    if name == FRONT_END:
        return {"waveform": np.random.default_rng(0).uniform(-0.5, 0.5, (1, spec.chunk_samples)).astype(np.float32)}
    if name == PROJECTOR:
        shape = (1, 2 * spec.tokens_patches, plan.source.manifest.encoder.embed_dim)
        return {"patches": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    whole = StaticLayout(spec, spec.chunk_frames)
    feed, _ = next(whole.feeds(random_features(spec, [whole.samples])[0]))
    return {**feed, **whole.constants}


def _check_error(name: str, error: float, limit: float) -> None:
    if not error <= limit:  # written so that NaN fails, too
        raise QuantizeError(
            f"{name} differs from the bundle's graph by {error:.3g} relative RMS, expected at most {limit:g}; nothing "
            "was written. Use the library versions of constraints.txt, or report this with the bundle"
        )


_FORMS: Mapping[GraphForm, Callable[[_Plan, Path, Steps], dict[str, Any]]] = {
    "static": _static, "qdq": _qdq, "ort": _ort,
}  # fmt: skip
_CHECKS: Mapping[str, Callable[[_Plan, Path], tuple[float, int]]] = {
    FRONT_END: _check_front_end, ENCODER: _check_encoder, PROJECTOR: _check_projector,
}  # fmt: skip


def _facts(plan: _Plan, folder: Path, measured: dict[str, Any], steps: Sequence[StepReport]) -> dict[str, Any]:
    """What a program has to know of the graphs, and where they are from."""
    manifest, static = plan.source.manifest, plan.options.form != "ort"
    return {
        "tool": f"dasheng-edge {version('dasheng-edge')}",
        "form": plan.options.form,
        "model": manifest.name,
        "source_sha256": sha256_of(plan.source.path(MANIFEST)),
        **({"opset": plan.options.opset, "frames": plan.layout.frames} if static else {}),
        **measured,
        "deviations": {step.name: step.error for step in steps if step.unit},
        "graphs": {path.name: _graph_facts(path) for path in sorted(folder.glob("*.onnx"))},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())
        },
    }


def _graph_facts(path: Path) -> dict[str, Any]:
    """Inputs, outputs and operators of a graph."""
    model = ir.load(path)

    def kinds(values: Sequence[ir.Value]) -> dict[str, Any]:
        return {
            value.name or "": {"dtype": value.dtype.numpy().name, "shape": list(value.shape.numpy())}
            for value in values
            if value.shape is not None and value.dtype is not None
        }

    operators = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph)
    return {
        "inputs": kinds(model.graph.inputs),
        "outputs": kinds(model.graph.outputs),
        "operators": dict(sorted(operators.items())),
    }


def _why_no_graphs(folder: Path) -> str:
    """Why a folder may not be replaced: it holds something else than what this module writes; "" if it may."""
    if not folder.is_dir():
        return "it is a file"
    entries = list(folder.iterdir())
    try:
        files = json.loads((folder / GRAPHS).read_text("utf-8"))["files"] if entries else {}
        foreign = [path.name for path in entries if path.name not in (GRAPHS, *files)]
    except (OSError, ValueError, TypeError, KeyError):
        return f"it has no {GRAPHS} of ours"
    return f"{foreign[0]} is not one of its files" if foreign else ""
