"""How far a model's distributions and embeddings are from the reference's. Divergences are in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.errors import DecoderError, QuantizeError

from .bootstrap import draws_of, interval, pooled_interval, ratio_interval
from .record import DecoderScores, SeamScores

Logits = NDArray[np.float32]
Values = NDArray[np.float64]
BLOCK_ROWS = 16  # rows in float64 at a time; of 152,064 tokens, 19 MB each copy
KL_ROUNDING = 1e-9  # a divergence below minus this is no rounding; of 152,064 tokens it stays below 1e-12
MAX_EXPONENT = 700.0  # of a perplexity: beyond, a double is infinite, which no report holds


@dataclass(frozen=True)
class TokenMetrics:
    """One clip, a value for each position of the reference's answer."""

    kl: Values  # of the model from the reference
    same_top1: NDArray[np.bool_]
    log_prob: Values  # of the answer's token, for the model


def token_metrics(reference: Logits, logits: Logits, answer: Sequence[int]) -> TokenMetrics:
    """Compare logits float32 [n, vocab] at the positions of an answer of n tokens.

    KL = sum over tokens of p_ref (log p_ref - log p), which is not negative; what rounding makes of zero is cut.

    Raises:
        DecoderError: a logit is not finite.
        QuantizeError: the two are of different vocabularies.
    """
    assert len(reference) == len(logits) == len(answer)
    if reference.shape != logits.shape:
        raise QuantizeError(_differing("logits of so many tokens", reference, logits))
    if whose := _not_finite(reference, logits):
        raise DecoderError(
            f"the {whose} decoder computed logits that are not finite; run `dasheng-edge verify` on its bundle"
        )
    kl, log_prob = np.empty(len(answer)), np.empty(len(answer))
    for start in range(0, len(answer), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        want, got = log_softmax(reference[rows]), log_softmax(logits[rows])
        kl[rows] = (np.exp(want) * (want - got)).sum(axis=1)
        log_prob[rows] = got[np.arange(len(got)), np.asarray(answer)[rows]]
    assert kl.min(initial=0.0) > -KL_ROUNDING
    kl = np.maximum(kl, 0.0)
    return TokenMetrics(kl, reference.argmax(axis=1) == logits.argmax(axis=1), log_prob)


def _differing(what: str, reference: Logits, got: Logits) -> str:
    return (
        f"cannot compare {what}: {got.shape[1]}, the reference's are {reference.shape[1]}; expected bundles of one "
        "model: quantize the reference itself"
    )


def _not_finite(reference: Logits, got: Logits) -> str:
    """Whose values are not finite; "" if all are."""
    values = {"reference's": reference, "candidate's": got}
    return next((whose for whose, each in values.items() if not np.isfinite(each).all()), "")


def log_softmax(logits: Logits) -> Values:
    """Natural logarithms of probabilities, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def first_divergence(reference: Sequence[int], answer: Sequence[int]) -> int | None:
    """Index of the first token that differs; an answer that only goes on or ends earlier differs at its end."""
    for index, (want, got) in enumerate(zip(reference, answer, strict=False)):
        if want != got:
            return index
    return None if len(reference) == len(answer) else min(len(reference), len(answer))


def decoder_scores(clips: Sequence[tuple[TokenMetrics, int | None]]) -> DecoderScores:
    """Scores over clips, with intervals from a bootstrap that draws whole clips.

    Of each clip its metrics, and the index of the first token of the free greedy answer that differs; None: the same
    answer.
    """
    draws = draws_of(len(clips))
    kl = [tokens.kl for tokens, _ in clips]
    hits = np.array([[tokens.same_top1.sum(), tokens.kl.size] for tokens, _ in clips], np.float64)
    surprise = np.array([[-tokens.log_prob.sum(), tokens.kl.size] for tokens, _ in clips], np.float64)
    diverging = [divergence for _, divergence in clips if divergence is not None]
    return DecoderScores(
        clips=len(clips),
        tokens=int(hits[:, 1].sum()),
        kl_mean=ratio_interval(np.array([[clip.sum(), clip.size] for clip in kl]), draws),
        kl_median=pooled_interval(kl, 50, draws),
        kl_p90=pooled_interval(kl, 90, draws),
        kl_p99=pooled_interval(kl, 99, draws),
        same_top1=ratio_interval(hits, draws),
        perplexity=ratio_interval(surprise, draws, lambda nats: np.exp(np.minimum(nats, MAX_EXPONENT))),
        identical=interval(np.array([float(divergence is None) for _, divergence in clips]), draws),
        first_divergence=float(np.median(diverging)) if diverging else None,
    )


@dataclass
class SeamSums:
    """Embeddings against the reference's, added up over clips."""

    deviation: Deviation = field(default_factory=Deviation)
    cosine_sum: float = 0.0
    cosine_worst: float = 1.0
    rows: int = 0

    def add(self, reference: Logits, got: Logits) -> None:
        """Rows float32 [n, width] of one clip.

        Raises:
            QuantizeError: the widths differ, or a value is not finite.
        """
        if reference.shape[1] != got.shape[1]:
            raise QuantizeError(_differing("embeddings of so many values", reference, got))
        assert len(reference) == len(got)
        if whose := _not_finite(reference, got):
            raise QuantizeError(
                f"the {whose} encoder computed embeddings that are not finite; run `dasheng-edge verify` on its "
                "bundle, and try another precision of the encoder"
            )
        want, have = reference.astype(np.float64), got.astype(np.float64)
        self.deviation.add(have, want)
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(have, axis=1)
        cosines = np.divide((want * have).sum(axis=1), norms, out=np.zeros(len(want)), where=norms > 0)
        cosines = np.clip(cosines, -1.0, 1.0)
        cosines[(want == have).all(axis=1)] = 1.0  # rows of zeros, too
        self.cosine_sum += float(cosines.sum())
        self.cosine_worst = min(self.cosine_worst, float(cosines.min(initial=1.0)))
        self.rows += len(want)

    def scores(self) -> SeamScores:
        """Over all rows so far."""
        mean = self.cosine_sum / max(self.rows, 1)
        return SeamScores(snr_db=self.deviation.snr_db, cosine_mean=mean, cosine_worst=self.cosine_worst)
