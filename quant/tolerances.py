"""What `verify` may find of a quantized bundle on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dasheng_edge.quant.decoder.types import (
    DECODER_TOLERANCES,
    MAX_TOKEN_MARGIN,
    TOKEN_MARGIN_DEVIATIONS,
    DecoderType,
)
from dasheng_edge.quant.encoder.quantize import EncoderOptions
from dasheng_edge.runtime.bundle.manifest import KvType, Manifest, Tolerances
from dasheng_edge.runtime.deviation import relative_rms_of
from dasheng_edge.runtime.verify import HALVES_RELATIVE, VerifyReport

# What `verify` may find is this many times what was measured here: other processors round differently.
SLACK = 2.0
# What keys and values in a type may add to the logits' relative error; measured on micro: 0.013 and 0.3.
KV_LOGITS: Mapping[KvType, float] = {"f16": 0.0, "q8_0": 0.05, "q4_0": 0.7}
MAX_LOGITS_RELATIVE = 0.95  # of relative RMS: 1 is what logits that are zero lose
MIXED_SLACK_DB = 10.0  # golden clips may lose more than the clips that a mixture was chosen by


def widest_tolerances(
    manifest: Manifest,
    encoder: EncoderOptions,
    decoder: tuple[DecoderType, KvType] | None = None,
    logits_std: float = 0.0,
) -> Tolerances:
    """What the precisions explain, at most; `logits_std` is of the golden logits."""
    limits, snr_db = manifest.tolerances, encoder.limit_snr_db
    if snr_db is not None and encoder.precision == "mixed":
        snr_db -= MIXED_SLACK_DB
    audio = limits.patches_relative if snr_db is None else max(relative_rms_of(snr_db), limits.patches_relative)
    update: dict[str, float] = {"patches_relative": audio}
    if decoder is not None:
        kind, kv_type = decoder
        logits = min(DECODER_TOLERANCES[kind].logits + KV_LOGITS[kv_type] + 3 * audio, MAX_LOGITS_RELATIVE)
        margin = MAX_TOKEN_MARGIN * logits_std
        update |= {"embeddings_relative": audio, "logits_relative": logits, "token_margin": margin}
    return limits.model_copy(update=update)


def measured_tolerances(
    report: VerifyReport, widest: Tolerances, logits_std: float, halves: Mapping[str, float]
) -> Tolerances:
    """What `verify` shall accept elsewhere: twice what was measured here, and never more than `widest`.

    `halves` are the errors of graphs for GPUs: see `halves_errors`.
    A greedy token may differ where four standard deviations of a logit's error explain it, as in exports.
    """
    names = {"patches": "patches_relative", "embeddings": "embeddings_relative", "first logits": "logits_relative"}
    update = {}
    for seam, key in names.items():
        errors = [compared.error for compared in report.seams if compared.name == seam]
        if errors:
            update[key] = _accepted(errors, getattr(widest, key))
        if seam in halves:
            update[f"cuda_{key}"] = _accepted([halves[seam]], max(getattr(widest, key), HALVES_RELATIVE))
    if "logits_relative" in update:
        deviations = min(TOKEN_MARGIN_DEVIATIONS * update["logits_relative"], MAX_TOKEN_MARGIN)
        seen = max(seam.error for seam in report.seams if seam.name == "greedy tokens")
        update["token_margin"] = float(f"{max(deviations * logits_std, seen):.3g}")
    return widest.model_copy(update=update)


def _accepted(errors: Sequence[float], widest: float) -> float:
    return float(f"{min(max(SLACK * max(errors), 1e-4), widest):.3g}")
