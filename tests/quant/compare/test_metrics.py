"""Divergences, intervals and text scores against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax

from dasheng_edge.quant.compare.bootstrap import change_interval, draws_of, interval, pooled_interval, ratio_interval
from dasheng_edge.quant.compare.metrics import (
    SeamSums,
    TokenMetrics,
    decoder_scores,
    first_divergence,
    token_metrics,
)
from dasheng_edge.runtime.errors import DecoderError, QuantizeError


def logits(seed: int, rows: int = 40, vocab: int = 300) -> NDArray[np.float32]:
    return (6 * np.random.default_rng(seed).standard_normal((rows, vocab))).astype(np.float32)


def test_kl_is_scipys() -> None:
    want = logits(0)
    got = (want + 0.05 * logits(1)).astype(np.float32)
    answer = np.random.default_rng(2).integers(300, size=40).tolist()
    found = token_metrics(want, got, answer)
    exact = rel_entr(softmax(want.astype(float), axis=1), softmax(got.astype(float), axis=1)).sum(axis=1)
    np.testing.assert_allclose(found.kl, exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.log_prob, log_softmax(got.astype(float), axis=1)[np.arange(40), answer], rtol=1e-9)
    np.testing.assert_array_equal(found.same_top1, want.argmax(1) == got.argmax(1))


def test_kl_of_the_same_and_of_shifted_logits_is_nothing() -> None:
    want = logits(0)
    assert token_metrics(want, want + np.float32(8), [0] * 40).kl.max() < 1e-9


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = logits(0)
    broken[3, 4] = np.nan
    with pytest.raises(DecoderError, match="not finite"):
        token_metrics(logits(0), broken, [0] * 40)


def test_first_divergence() -> None:
    assert first_divergence((1, 2, 3), (1, 2, 3)) is None
    assert first_divergence((1, 2, 3), (1, 5, 3)) == 1
    assert first_divergence((1, 2), (1, 2, 3)) == 2
    assert first_divergence((1, 2), ()) == 0


def test_scores_of_clips_pool_tokens() -> None:
    parts = [
        token_metrics(logits(i, 3 + i), (logits(i, 3 + i) + 0.1 * logits(9, 3 + i)).astype(np.float32), [1] * (3 + i))
        for i in range(12)
    ]
    scores = decoder_scores([(part, None if i else 2) for i, part in enumerate(parts)])
    kl = np.concatenate([part.kl for part in parts])
    assert (scores.clips, scores.tokens) == (12, len(kl))
    assert scores.kl_mean.value == pytest.approx(kl.mean())
    assert scores.kl_p90.value == np.percentile(kl, 90, method="inverted_cdf")
    assert scores.kl_mean.low < scores.kl_mean.value < scores.kl_mean.high
    assert scores.perplexity.value == pytest.approx(np.exp(-np.concatenate([part.log_prob for part in parts]).mean()))
    assert scores.identical.value == pytest.approx(11 / 12)
    assert scores.first_divergence == 2.0


def test_one_clip_has_no_interval() -> None:
    one = decoder_scores([(TokenMetrics(np.array([0.5]), np.array([True]), np.array([-1.0])), None)])
    assert one.kl_mean.low == one.kl_mean.value == one.kl_mean.high == 0.5
    assert one.first_divergence is None


def test_the_interval_of_a_mean_is_scipys() -> None:
    import scipy.stats

    values = np.random.default_rng(0).gamma(2.0, size=150)
    got = interval(values, draws_of(150, 4000))
    want = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.03)


def test_a_paired_change_is_narrower_than_the_two() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=200)
    first, second = (np.stack([hard + generator.normal(0, 0.1, 200), np.ones(200)], 1) for _ in range(2))
    draws = draws_of(200)
    change, alone = change_interval(first, second, draws), ratio_interval(first, draws)
    assert change.high - change.low < 0.3 * (alone.high - alone.low)
    assert change.low < 0 < change.high


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=1, max_size=6), st.sampled_from([50, 90]))
def test_pooled_percentiles_are_those_of_the_values_that_were_drawn(rows: list[list[float]], percent: int) -> None:
    values = [np.array(row) for row in rows]
    draws = draws_of(len(values), 40)
    drawn = [np.percentile(np.concatenate([values[i] for i in draw]), percent, method="inverted_cdf") for draw in draws]
    low, high = np.percentile(drawn, (2.5, 97.5))
    got = pooled_interval(values, percent, draws)
    assert got.low == pytest.approx(min(low, got.value))
    assert got.high == pytest.approx(max(high, got.value))


def test_seams() -> None:
    import scipy.spatial

    generator = np.random.default_rng(0)
    want = generator.normal(size=(30, 8)).astype(np.float32)
    got = want + generator.normal(0, 0.01, want.shape).astype(np.float32)
    sums = SeamSums()
    sums.add(want[:10], got[:10])
    sums.add(want[10:], got[10:])
    scores = sums.scores()
    assert scores.snr_db == pytest.approx(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()), abs=1e-3)
    cosines = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(want, got, strict=True)]
    assert scores.cosine_worst == pytest.approx(min(cosines), abs=1e-6)
    assert scores.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-6)
    same = SeamSums()
    same.add(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert same.scores().snr_db is None
    assert same.scores().cosine_worst == 1.0


def test_divergences_of_a_published_vocabulary_and_of_extreme_logits_are_not_negative() -> None:
    # 20 rows are more than one block; `token_metrics` itself stops at a divergence that rounding does not explain.
    want = logits(3, 20, 152_064)
    near = np.nextafter(want, np.float32(0))
    assert 0 <= token_metrics(want, near, [0] * 20).kl.min() < 1e-9
    far = np.full((2, 4), -1e30, np.float32)
    far[:, 1] = 1e30
    found = token_metrics(far, far[:, ::-1].copy(), [1, 2])
    np.testing.assert_allclose(found.kl, 2e30, rtol=1e-6)
    np.testing.assert_allclose(found.log_prob, [-2e30, 0], rtol=1e-6)
    assert np.isfinite(decoder_scores([(found, 0)]).perplexity.value)


@pytest.mark.parametrize("row", [2, 39])
def test_it_is_said_whose_logits_are_not_finite(row: int) -> None:
    broken = logits(0)
    broken[row, 4] = np.inf
    with pytest.raises(DecoderError, match=r"the reference's decoder computed .*run `dasheng-edge verify`"):
        token_metrics(broken, logits(0), [0] * 40)
    with pytest.raises(DecoderError, match="the candidate's decoder"):
        token_metrics(logits(0), broken, [0] * 40)


def test_other_models_are_no_candidates() -> None:
    with pytest.raises(QuantizeError, match=r"logits of so many tokens: 200, the reference's are 300; .*of one model"):
        token_metrics(logits(0), logits(0)[:, :200], [0] * 40)
    with pytest.raises(QuantizeError, match="embeddings of so many values: 200, the reference's are 300"):
        SeamSums().add(logits(0), logits(0)[:, :200])


@given(st.lists(st.integers(0, 2), max_size=4), st.lists(st.integers(0, 2), max_size=4))
def test_answers_are_the_same_before_they_diverge(first: list[int], second: list[int]) -> None:
    index = first_divergence(first, second)
    if index is None:
        assert first == second
    else:
        assert first[:index] == second[:index]
        assert first[index : index + 1] != second[index : index + 1]


def test_a_gain_of_a_tenth_is_an_snr_of_20_db() -> None:
    want = logits(0)
    sums = SeamSums()
    sums.add(want, want * np.float32(1.1))
    assert sums.scores().snr_db == pytest.approx(20.0, abs=1e-4)
    assert sums.scores().cosine_worst == pytest.approx(1.0, abs=1e-9)
    assert sums.scores().cosine_worst <= 1.0


def test_rows_of_nothing() -> None:
    want = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    sums = SeamSums()
    sums.add(want, np.array([[3.0, 4.0], [1.0, 0.0]], np.float32))
    assert (sums.scores().cosine_worst, sums.scores().cosine_mean) == (0.0, 0.5)
    assert sums.scores().snr_db == pytest.approx(10 * np.log10(25 / 1))
    none = SeamSums()
    none.add(want[:0], want[:0])
    assert none.scores().snr_db is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    broken = logits(0)
    broken[3, 4] = value
    with pytest.raises(QuantizeError, match=r"the candidate's encoder computed .*try another precision of the encoder"):
        SeamSums().add(logits(0), broken)
    with pytest.raises(QuantizeError, match="the reference's encoder"):
        SeamSums().add(broken, logits(0))


def test_rows_of_one_direction_are_no_more_than_alike() -> None:
    for row in logits(0, 200, 3):  # rounding alone takes some cosines above 1
        sums = SeamSums()
        sums.add(row[None], row[None] * np.float32(1.1))
        assert 1 - 1e-6 < sums.scores().cosine_mean <= 1.0
