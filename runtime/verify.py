"""Replays a bundle's golden vectors on this machine and compares every seam with the fp32 reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import FrontEndGraph
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, Bundle
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenClip, GoldenText, check_flat_golden, read_golden
from dasheng_edge.runtime.bundle.manifest import Tolerances
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.text.decoder import Decoder

from .deviation import logits_relative_rms, max_difference, relative_rms
from .errors import DecoderError, DeviceError, PromptError
from .parts import Parts

# What float16 may cost an encoder, 50 dB: `quantize` stores none that costs more. Of graphs whose bundle does not say
# what they cost on a GPU, and of float32 there in TF32, which keeps as many bits.
HALVES_RELATIVE = 10 ** (-50 / 20)
# What a GPU may add to the first logits. llama.cpp multiplies F32 in TF32 there and sums F16 in halves, and has no
# switch for either: 8e-4 was seen on micro. It is what an export allows a decoder in F16.
GPU_LOGITS = 5e-3
EXACT_LOGITS = 1e-5  # relative RMS of an F32 decoder's first logits where nothing else rounds; 5e-7 is seen


@dataclass(frozen=True)
class Seam:
    """One comparison: what was measured on which clip, and the largest value that is accepted."""

    clip: str
    name: str
    error: float
    tolerance: float
    unit: str
    note: str = ""  # why there is no number

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class AttentionError:
    """Relative RMS of a decoder's first logits, given the reference's own embeddings, the largest of all golden clips.

    NaN where they are not finite.
    """

    exact: float  # keys and values in F32, no flash attention: the cost of the weights' type alone
    default: float  # keys and values of the bundle's type, and attention as llama.cpp chooses


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons of one bundle."""

    bundle: str
    seams: tuple[Seam, ...]
    attention: AttentionError | None = None  # where there is a decoder

    @property
    def ok(self) -> bool:
        """Whether all seams are within tolerance."""
        return bool(self.seams) and all(seam.ok for seam in self.seams)


def verify_bundle(bundle: Bundle, options: EngineOptions | None = None, *, exact: bool = False) -> VerifyReport:
    """Run every golden clip through the runtime's own sessions; runs all of them, whatever fails.

    What a seam may differ by hangs on where it is computed: see `tolerances_on`.
    What `dasheng-edge tune` chose is not taken: it may change the numbers. `exact` lets the decoder attend with keys
    and values in F32 and without flash attention, and judges its first logits alone, too, given the reference's
    embeddings: an F32 decoder must keep `EXACT_LOGITS`, another one what the bundle allows.

    Raises:
        BundleFileError: a golden file is damaged, holds no clip, or other vectors than the other one.
        DashengEdgeError: what `Parts.open` raises, where a part cannot be opened.
    """
    options = options or EngineOptions()
    options = replace(options, exact=True) if exact else options
    clips, limits = read_golden(bundle), tolerances_on(bundle, options)
    check_flat_golden(bundle, clips)
    attention, texts = None, [clip.text for clip in clips if clip.text]
    parts = Parts.open(bundle, options) if bundle.manifest.decoder else None
    audio = parts.audio if parts else AudioParts.open(bundle, options)
    try:
        graph = FrontEndGraph(bundle.path(FRONT_END), bundle.manifest.front_end)
        seams = tuple(seam for clip in clips for seam in _seams(audio, graph, clip, limits, parts))
        if parts is not None:
            attention = attention_error(parts.decoder, texts)
    finally:
        if parts is not None:
            parts.decoder.close()
    if exact and attention:
        limit = EXACT_LOGITS if options.text_device == "cpu" else GPU_LOGITS
        limit = limit if bundle.decoder_facts.precision == "F32" else _stated(limits.logits_relative)
        seams = (*seams, Seam("all", "decoder, exact", attention.exact, limit, "relative"))
    return VerifyReport(str(bundle.folder), seams, attention)


def tolerances_on(bundle: Bundle, options: EngineOptions) -> Tolerances:
    """What the manifest allows, where the bundle's parts are to run: it was measured on a CPU, but for `cuda_...`.

    Graphs that are the same on both devices have one tolerance, since float32 is float32 on both.
    """
    stated = bundle.manifest.tolerances
    if options.device == options.text_device == "cpu":
        return stated
    patches, embeddings = stated.patches_relative, stated.embeddings_relative or 0.0
    if bundle.graph(ENCODER, options.device) != bundle.path(ENCODER):
        patches = max(patches, stated.cuda_patches_relative or HALVES_RELATIVE)
        embeddings = max(embeddings, stated.cuda_embeddings_relative or HALVES_RELATIVE)
    if options.device != "cpu" and options.allow_tf32:
        patches, embeddings = max(patches, HALVES_RELATIVE), max(embeddings, HALVES_RELATIVE)
    update = {"patches_relative": patches}
    if stated.logits_relative is not None:
        heard = 3 * embeddings if embeddings != stated.embeddings_relative else 0.0  # as in quantized bundles
        logits = math.hypot(stated.logits_relative, heard, GPU_LOGITS if options.text_device != "cpu" else 0.0)
        margin = _stated(stated.token_margin) * logits / max(stated.logits_relative, 1e-9)
        update |= {"embeddings_relative": embeddings, "logits_relative": logits, "token_margin": margin}
    return stated.model_copy(update={key: float(f"{value:.3g}") for key, value in update.items()})


def attention_error(decoder: Decoder, texts: Sequence[GoldenText]) -> AttentionError:
    """A decoder against the reference in both ways of attending; it is left as it was.

    Raises nothing: a decoder that fails has an error of NaN.
    """
    usual = decoder.settings.exact
    errors = []
    for exact in (True, False):
        decoder.attend(exact=exact)
        errors.append(float(np.max([_logits_error(decoder, text) for text in texts])))
    decoder.attend(exact=usual)
    return AttentionError(*errors)


def _logits_error(decoder: Decoder, text: GoldenText) -> float:
    try:
        decoder.prefill(text.segments)
        return logits_relative_rms(decoder.logits(), text.logits)
    except DecoderError:
        return float("nan")


def _seams(
    audio: AudioParts, graph: FrontEndGraph, clip: GoldenClip, limits: Tolerances, parts: Parts | None
) -> Iterator[Seam]:
    """The comparisons of one clip. Behind a part that fails there is nothing to compare, so its seam is the last.

    Spectrograms are those of the runtime and those of the bundle's graph; the larger error counts.
    """
    seam = Seam(clip.name, "log-mel", np.nan, limits.log_mel_db, "dB")  # the one that is next
    try:
        features, of_graph = audio.front_end.features([clip.samples]), graph.features(clip.samples)
        errors = [max_difference(one.log_mel, clip.log_mel) for one in (features, of_graph)]
        yield replace(seam, error=float(np.max(errors)))
        if features.acoustic is not None and of_graph.acoustic is not None and clip.acoustic_mel is not None:
            errors = [max_difference(one, clip.acoustic_mel) for one in (features.acoustic, of_graph.acoustic)]
            error = float(np.max(errors))
            yield Seam(clip.name, "acoustic mel", error, _stated(limits.acoustic_nepers), "nepers")
        seam = Seam(clip.name, "patches", np.nan, limits.patches_relative, "relative")
        patches = audio.encoder.patches(features)
        yield replace(seam, error=relative_rms(patches, clip.patches))
        if parts is None or clip.text is None:
            return
        seam = Seam(clip.name, "embeddings", np.nan, _stated(limits.embeddings_relative), "relative")
        embeddings = parts.audio.projector.embeddings(patches)
        yield replace(seam, error=relative_rms(embeddings, clip.text.embeddings))
        seam = Seam(clip.name, "prompt", np.nan, 0.0, "tokens")
        prompt = parts.prompts.build()
        yield replace(seam, error=0.0 if prompt.ids(AUDIO_MARK) == clip.text.prompt.tolist() else np.inf)
        seam = Seam(clip.name, "first logits", np.nan, _stated(limits.logits_relative), "relative")
        parts.decoder.prefill(prompt.rows(embeddings), reserve=len(clip.text.tokens))
        logits, tokens = parts.decoder.logits(), list(parts.decoder.generate(len(clip.text.tokens)))
        yield replace(seam, error=logits_relative_rms(logits, clip.text.logits))
        yield Seam(clip.name, "greedy tokens", token_margin(tokens, clip.text), _stated(limits.token_margin), "logits")
    except (DeviceError, PromptError, DecoderError) as failure:  # another width or NaN, mostly
        yield replace(seam, note=str(failure))


def _stated(limit: float | None) -> float:
    """A tolerance that the manifest's own check has asked for."""
    assert limit is not None
    return limit


def token_margin(tokens: list[int], text: GoldenText) -> float:
    """By how much the reference preferred its token at the first one that differs; 0 where none does.

    Behind that place the two continue different texts, so later tokens say nothing.
    """
    for got, want, margin in zip(tokens, text.tokens.tolist(), text.margins.tolist(), strict=False):
        if got != want:
            return float(margin)
    return 0.0 if len(tokens) == len(text.tokens) else float("inf")
