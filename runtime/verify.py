"""Replays a bundle's golden vectors on this machine and compares every seam with the fp32 reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenClip, GoldenText, read_golden
from dasheng_edge.runtime.bundle.manifest import Tolerances
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.text.prompt import Prompt

from .deviation import logits_relative_rms, max_difference, relative_rms
from .errors import DashengEdgeError, DecoderError, DeviceError, PromptError
from .parts import Parts

Array = NDArray[np.float32]


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
class VerifyReport:
    """All comparisons of one bundle."""

    bundle: str
    seams: tuple[Seam, ...]

    @property
    def ok(self) -> bool:
        """Whether all seams are within tolerance."""
        return bool(self.seams) and all(seam.ok for seam in self.seams)


def verify_bundle(bundle: Bundle, options: EngineOptions | None = None) -> VerifyReport:
    """Run every golden clip through the runtime's own sessions; runs all of them, whatever fails.

    What `dasheng-edge tune` chose is not taken: it may change the numbers.

    Raises:
        BundleFileError: the golden file is damaged or holds no clip.
        DashengEdgeError: what `Parts.open` raises, where a part cannot be opened.
    """
    options = options or EngineOptions()
    clips, limits = read_golden(bundle), bundle.manifest.tolerances
    if bundle.manifest.decoder is None:
        audio = AudioParts.open(bundle, options)
        return VerifyReport(str(bundle.folder), tuple(seam for clip in clips for seam in _seams(audio, clip, limits)))
    parts = Parts.open(bundle, options)
    try:
        seams = tuple(seam for clip in clips for seam in _seams(parts.audio, clip, limits, parts))
    finally:
        parts.decoder.close()
    return VerifyReport(str(bundle.folder), seams)


def _seams(audio: AudioParts, clip: GoldenClip, limits: Tolerances, parts: Parts | None = None) -> Iterator[Seam]:
    """The comparisons of one clip. Behind a part that fails there is nothing to compare, so its seam is the last."""
    try:
        features = audio.front_end.features([clip.samples])
    except DeviceError as failure:
        yield _failed(clip.name, "log-mel", limits.log_mel_db, "dB", failure)
        return
    yield Seam(clip.name, "log-mel", max_difference(features.log_mel, clip.log_mel), limits.log_mel_db, "dB")
    if features.acoustic is not None and clip.acoustic_mel is not None:
        error = max_difference(features.acoustic, clip.acoustic_mel)
        yield Seam(clip.name, "acoustic mel", error, _stated(limits.acoustic_nepers), "nepers")
    try:
        patches = audio.encoder.patches(features)
    except DeviceError as failure:
        yield _failed(clip.name, "patches", limits.patches_relative, "relative", failure)
        return
    yield Seam(clip.name, "patches", relative_rms(patches, clip.patches), limits.patches_relative, "relative")
    if parts is not None and clip.text is not None:
        yield from _text_seams(parts, clip.name, patches, clip.text, limits)


def _text_seams(parts: Parts, name: str, patches: Array, text: GoldenText, limits: Tolerances) -> Iterator[Seam]:
    embeddings_limit, logits_limit = _stated(limits.embeddings_relative), _stated(limits.logits_relative)
    try:
        embeddings = parts.audio.projector.embeddings(patches)
    except DeviceError as failure:  # the patches are of another width, mostly
        yield _failed(name, "embeddings", embeddings_limit, "relative", failure)
        return
    yield Seam(name, "embeddings", relative_rms(embeddings, text.embeddings), embeddings_limit, "relative")
    try:
        prompt = parts.prompts.build()
    except PromptError as failure:
        yield _failed(name, "prompt", 0.0, "tokens", failure)
        return
    yield Seam(name, "prompt", 0.0 if prompt.ids(AUDIO_MARK) == text.prompt.tolist() else float("inf"), 0.0, "tokens")
    try:
        logits, tokens = _decode(parts, prompt, embeddings, len(text.tokens))
    except DecoderError as failure:  # NaN on the way, mostly
        yield _failed(name, "first logits", logits_limit, "relative", failure)
        return
    yield Seam(name, "first logits", logits_relative_rms(logits, text.logits), logits_limit, "relative")
    yield Seam(name, "greedy tokens", token_margin(tokens, text), _stated(limits.token_margin), "logits")


def _failed(clip: str, name: str, tolerance: float, unit: str, failure: DashengEdgeError) -> Seam:
    return Seam(clip, name, float("nan"), tolerance, unit, str(failure))


def _stated(limit: float | None) -> float:
    """A tolerance that the manifest's own check has asked for."""
    assert limit is not None
    return limit


def _decode(parts: Parts, prompt: Prompt, embeddings: Array, count: int) -> tuple[Array, list[int]]:
    """The first logits and `count` greedy tokens, fewer if generation ends by itself."""
    parts.decoder.prefill(prompt.rows(embeddings), reserve=count)
    return parts.decoder.logits(), list(parts.decoder.generate(count))


def token_margin(tokens: list[int], text: GoldenText) -> float:
    """By how much the reference preferred its token at the first one that differs; 0 where none does.

    Behind that place the two continue different texts, so later tokens say nothing.
    """
    for got, want, margin in zip(tokens, text.tokens.tolist(), text.margins.tolist(), strict=False):
        if got != want:
            return float(margin)
    return 0.0 if len(tokens) == len(text.tokens) else float("inf")
