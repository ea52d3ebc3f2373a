"""What a verification that failed means: the bundle is bad, this machine computes otherwise, or a tolerance is not its.

The files were held against their SHA-256 when the bundle was opened, so what is left is found by computing the same in
other ways. Two ways that disagree are this machine's doing; two that agree, with products that NumPy confirms, are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts, AudioParts
from dasheng_edge.runtime.audio.encoder import Feed, chunk_feeds
from dasheng_edge.runtime.audio.front_end import FrontEndGraph
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.golden import GoldenClip, read_golden
from dasheng_edge.runtime.deviation import max_difference, relative_rms
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import DashengEdgeError, DeviceError
from dasheng_edge.runtime.machine.identity import ENGINES, installed
from dasheng_edge.runtime.verify import HALVES_RELATIVE, Seam, VerifyReport, tolerances_on, verify_bundle

from .plain_run import plain_run

Word: TypeAlias = Literal["good", "altered", "bundle", "machine", "tolerance", "unknown"]
# What `dasheng-edge verify` ends with: where 1, another copy of the bundle is needed; where 3 or 4, none is.
EXIT_CODES: dict[Word, int] = {"good": 0, "altered": 1, "bundle": 1, "unknown": 1, "machine": 3, "tolerance": 4}
_GRAPHS = {"log-mel": FRONT_END, "acoustic mel": FRONT_END, "patches": ENCODER, "embeddings": PROJECTOR}
# Seams of kinds whose errors have no unit, and the tolerance of each.
_LIMITS = {"patches": "patches_relative", "embeddings": "embeddings_relative", "first logits": "logits_relative",
           "greedy tokens": "token_margin"}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is wrong, as a word, and what was found and can be done, as half a sentence."""

    word: Word
    advice: str

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return EXIT_CODES[self.word]


def judge(bundle: Bundle, options: EngineOptions, report: VerifyReport, *, exact: bool = False) -> Verdict:
    """Why a verification with these options was not passed; computes parts of it again, in other ways."""
    if report.ok:
        return Verdict("good", "every seam is within its tolerance")
    if options.device == options.text_device == "cpu":
        return _on_cpu(bundle, options, report, exact=exact)
    try:
        on_cpu = verify_bundle(bundle, options.changed(device="cpu"), exact=exact)
    except DashengEdgeError as error:
        return Verdict("unknown", f"the same cannot be checked on the CPU ({error}): verify it on another machine")
    if not on_cpu.ok:
        why = judge(bundle, options.changed(device="cpu"), on_cpu, exact=exact)
        return Verdict(why.word, f"the same check on the CPU fails, too, so it is not the GPU: {why.advice}")
    if _within(bundle, options, report):
        return Verdict(
            "tolerance",
            "the same check on the CPU passes, and what the GPU adds is what it rounds in float16 or TF32: the "
            "tolerances are those of a CPU. The bundle is good; quantize or export it again where it is to run, so "
            "that it states what this device may differ by, or use the CPU",
        )
    return Verdict(
        "machine",
        "the same check on the CPU passes, so the bundle is good and the GPU computes something else: update its "
        "driver, onnxruntime-gpu and llama-cpp-python, or use the CPU",
    )


def _on_cpu(bundle: Bundle, options: EngineOptions, report: VerifyReport, *, exact: bool) -> Verdict:
    seam = next(seam for seam in report.seams if not seam.ok)
    name = _GRAPHS.get(seam.name)
    if seam.name != "prompt" and (found := _otherwise(bundle, options, seam, exact=exact)):
        if name is None:
            part, precision = "decoder", bundle.decoder_facts.precision
        else:
            part = name.removesuffix(".onnx").replace("_", " ")
            precision = "fp32" if name == FRONT_END else bundle.manifest.encoder.precision
        return Verdict(
            "machine",
            f"its files are as they were written, but the {part} in {precision} comes out otherwise here when it "
            f"is computed in another way: {found}. So this machine's kernels are wrong, and the bundle is good: "
            f"{_remedies(part, precision)}",
        )
    if _within(bundle, options, report):
        return Verdict(
            "tolerance",
            "each way of computing it here gives the same, and it differs by no more than the bundle allows on a GPU, "
            "where it was measured: its tolerances are not those of a CPU; quantize or export it again on a CPU",
        )
    versions = bundle.manifest.provenance.versions
    made = ", ".join(f"{name} {versions[name]}" for name in ENGINES if name in versions)
    return Verdict(
        "bundle",
        "its files are as they were written, and each way of computing them here gives the same, so it was bad from "
        f"the start: export the bundle again, and verify it where it was made{made and f' (with {made})'}",
    )


def _otherwise(bundle: Bundle, options: EngineOptions, seam: Seam, *, exact: bool) -> str:
    """What comes out otherwise if this machine computes a seam in another way; "" where nothing does."""
    single = options.changed(threads=1)
    try:
        if single != options and _fine(verify_bundle(bundle, single, exact=exact), seam):
            return "with --threads 1, which may be set, it is within the tolerance"
        if seam.name in _GRAPHS:
            return _graph_otherwise(bundle, single, seam)
        other = verify_bundle(bundle, single.changed(weights="repacked"), exact=not exact)
    except DashengEdgeError:
        return ""  # what fails in each way is no kernel's fault
    if _fine(other, seam):
        return "with weights repacked and attention in F32 it is within the tolerance"
    # Results are at least as far apart as their errors are.
    apart = [abs(one.error - seam.error) for one in other.seams if (one.clip, one.name) == (seam.clip, seam.name)]
    apart = [value for value in apart if np.isfinite(value) and value > seam.tolerance]
    return f"with weights repacked and attention in F32 it differs by {apart[0]:.3g}" if apart else ""


def _fine(report: VerifyReport, seam: Seam) -> bool:
    """Whether the same seam is within its tolerance in another report."""
    return any(one.ok for one in report.seams if (one.clip, one.name) == (seam.clip, seam.name))


def _graph_otherwise(bundle: Bundle, options: EngineOptions, seam: Seam) -> str:
    """As `_otherwise`, of a graph: it is run without optimisation, and NumPy computes some of its products."""
    name = _GRAPHS[seam.name]
    clip = next(one for one in read_golden(bundle) if one.name == seam.clip)
    feeds, got, want = _runs(bundle, options, seam, clip)
    try:
        runs = [plain_run(bundle.path(name), feed) for feed in feeds]
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        if isinstance(error, MemoryError):
            raise
        return ""
    if wrong := dict.fromkeys(operator for run in runs for operator in run.wrong):
        return f"NumPy computes other products of the same numbers than {' and '.join(wrong)} of ONNX Runtime"
    plain = np.concatenate([run.outputs[seam.name.replace("-", "_").replace(" ", "_")][0] for run in runs])
    distance = max_difference if name == FRONT_END else relative_rms
    if distance(plain, want) <= seam.tolerance:
        return "without ONNX Runtime's graph optimisation it is within the tolerance"
    apart = distance(plain, got)
    if np.isfinite(plain).all() and not apart <= max(seam.tolerance, HALVES_RELATIVE):
        return f"without ONNX Runtime's graph optimisation it differs by {apart:.3g}"
    return ""


def _runs(
    bundle: Bundle, options: EngineOptions, seam: Seam, clip: GoldenClip
) -> tuple[list[Feed], NDArray[np.float32], NDArray[np.float32]]:
    """What the graph behind a seam is given for a clip, what it makes of that here, and what it should.

    What a graph refuses to give, as NaN, is an empty array.
    """
    spec = bundle.manifest.front_end
    if _GRAPHS[seam.name] == FRONT_END:
        graph, wanted = FrontEndGraph(bundle.path(FRONT_END), spec), clip.log_mel
        features = graph.features(clip.samples)
        got = features.log_mel
        if seam.name != "log-mel" and features.acoustic is not None and clip.acoustic_mel is not None:
            got, wanted = features.acoustic, clip.acoustic_mel
        padded = np.pad(clip.samples, (0, spec.padded_samples_of(len(clip.samples)) - len(clip.samples)))
        return [{"waveform": padded[None]}], got, wanted
    audio = AudioInputParts.open(bundle, options) if bundle.manifest.decoder else AudioParts.open(bundle, options)
    features = audio.front_end.features([clip.samples])
    if seam.name == "patches":
        return list(chunk_feeds(spec, features)), _given(lambda: audio.encoder.patches(features)), clip.patches
    assert isinstance(audio, AudioInputParts)
    assert clip.text
    patches = audio.encoder.patches(features)
    whole = patches[None, : len(patches) // spec.tokens_patches * spec.tokens_patches]
    return [{"patches": whole}], _given(lambda: audio.projector.embeddings(patches)), clip.text.embeddings


def _given(compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    try:
        return compute()
    except DeviceError:
        return np.zeros((0, 0), np.float32)


def _within(bundle: Bundle, options: EngineOptions, report: VerifyReport) -> bool:
    """Whether what is outside its tolerance is within that of another device.

    For a GPU that is what float16 and TF32 cost there, and for a CPU what the bundle itself allows on a GPU.
    """
    stated = bundle.manifest.tolerances
    if options.device == options.text_device == "cpu":
        if stated.cuda_patches_relative is None:
            return False
        limits = tolerances_on(bundle, EngineOptions("cuda"))
    else:
        limits = tolerances_on(bundle, replace(options, allow_tf32=True))
        patches = max(limits.patches_relative, HALVES_RELATIVE)
        limits = limits.model_copy(update={"patches_relative": patches})
    allowed = {name: getattr(limits, key) for name, key in _LIMITS.items()}
    return all(seam.ok or seam.error <= (allowed.get(seam.name) or 0.0) for seam in report.seams)


def _remedies(part: str, precision: str) -> str:
    """What can be done where kernels of this machine are wrong."""
    here = " and ".join(f"{name} {version}" for name, version in installed().items())
    other = {
        "decoder": "another version of llama-cpp-python, compiled on this machine",
        "encoder": "another version or execution provider of ONNX Runtime",
    }.get(part, "another version of ONNX Runtime")
    exact = "F16" if part == "decoder" else "fp32"
    stored = f", a bundle with its {part} in {exact}" if precision not in ("fp32", "F32", "F16") else ""
    return (
        f"try {other} (here: {here}){stored}, or, if this machine is emulated, another processor "
        "(qemu 7.2 computes int8 wrongly with -cpu max: take -cpu cortex-a76, or qemu 10)"
    )
