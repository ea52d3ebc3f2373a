"""What keeps answers from going round in circles: n-grams that come once, and loops that are ended and told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.sampler import (
    LOOP_TOKENS,
    MAX_PHRASE,
    MIN_TIMES,
    Sampler,
    log_probability,
    phrase_of_loop,
)
from tests.fixtures.together import together

CLIP = (np.random.default_rng(0).uniform(-0.4, 0.4, 16_000).astype(np.float32), 16_000)


def ngrams(tokens: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[start:] for start in range(size)), strict=False))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_ngram_comes_twice_in_any_way_of_captioning(captioner: Captioner, size: int, temperature: float) -> None:
    # A penalty below 1 makes the model say the same again, which it would do at once.
    sampling = Sampling(temperature=temperature, top_k=40, repetition_penalty=0.2, no_repeat_ngram_size=size, seed=1)
    free = captioner.caption(CLIP, max_new_tokens=30, sampling=sampling.model_copy(update={"no_repeat_ngram_size": 0}))
    assert len({*ngrams(free.tokens, size)}) < len(ngrams(free.tokens, size))
    caption = captioner.caption(CLIP, max_new_tokens=30, sampling=sampling)
    assert len({*ngrams(caption.tokens, size)}) == len(ngrams(caption.tokens, size)) > 10
    for batch in (1, 2):
        for one in captioner.caption_batch([CLIP, CLIP], max_new_tokens=30, sampling=sampling, batch=batch):
            assert one.tokens == caption.tokens


LOGIT = st.floats(-1e4, 1e4, width=32) | st.just(-np.inf)


@given(logits=st.lists(LOGIT, min_size=1, max_size=50), likeliest=st.floats(-1e4, 1e4, width=32), data=st.data())
def test_log_probabilities_are_those_of_a_softmax(logits: list[float], likeliest: float, data: st.DataObject) -> None:
    values = np.array([*logits, likeliest], np.float32)
    exact = values.astype(np.float64) - values.max()
    exact -= np.log(np.exp(exact).sum())
    token = data.draw(st.sampled_from(np.flatnonzero(np.isfinite(values)).tolist()))
    assert log_probability(values, token) == pytest.approx(exact[token], rel=1e-6, abs=1e-6)
    assert log_probability(values, token) <= 0


SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=1.5, top_k=50, seed=3),
    "penalised": Sampling(repetition_penalty=1.5),
    "no n-gram twice": Sampling(no_repeat_ngram_size=1),
    "all of it": Sampling(temperature=0.8, repetition_penalty=1.3, no_repeat_ngram_size=2, seed=5),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_confidence_is_what_the_model_alone_gave_its_tokens(decoder: Decoder, sampling: Sampling) -> None:
    audio = np.random.default_rng(0).normal(0, 0.5, (9, decoder.n_embd)).astype(np.float32)
    prompt: list[Any] = [(5, 6, 7, 8), audio, (3, 4)]
    for limit in (1, 2, 40):
        (answer,) = together(decoder, [prompt], limit, sampling=sampling)
        tokens = tuple(answer.tokens)
        own = decoder.score(prompt, tokens).astype(np.float64)
        own -= own.max(axis=1, keepdims=True)
        own -= np.log(np.exp(own).sum(axis=1, keepdims=True))
        assert answer.confidence == pytest.approx(own[np.arange(len(tokens)), tokens].mean(), rel=1e-4)


@given(
    head=st.lists(st.integers(10, 20), max_size=20),
    phrase=st.lists(st.integers(0, 9), min_size=1, max_size=MAX_PHRASE),
    stretch=st.integers(1, LOOP_TOKENS),
)
def test_a_phrase_over_and_over_is_a_loop_from_its_length_on(head: list[int], phrase: list[int], stretch: int) -> None:
    tokens, size = list[int](), 0
    for token in itertools.chain(head, itertools.islice(itertools.cycle(phrase), 2 * LOOP_TOKENS + 4 * len(phrase))):
        tokens.append(token)
        if size := phrase_of_loop(tokens, stretch):
            break
    assert 1 <= size <= len(phrase)
    length = max(stretch, MIN_TIMES * size)
    assert tokens[-length + size :] == tokens[-length:-size]
    assert len(tokens) <= len(head) + max(stretch, MIN_TIMES * len(phrase))


@given(st.lists(st.integers(0, 1), max_size=LOOP_TOKENS - 1))
def test_short_answers_are_never_ended(tokens: list[int]) -> None:
    assert phrase_of_loop(tokens) == 0


def looping(monkeypatch: pytest.MonkeyPatch, phrase: tuple[int, ...]) -> None:
    places: dict[int, tuple[Sampler, Iterator[int]]] = {}

    def token(self: Sampler, *_: object) -> int:
        return next(places.setdefault(id(self), (self, itertools.cycle(phrase)))[1])  # the sampler, to keep its id

    monkeypatch.setattr(Sampler, "next", token)


def test_an_answer_in_a_loop_is_ended_and_said(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    phrase = captioner.parts.decoder.tokenize(" a dog barks.")
    looping(monkeypatch, phrase)
    caption = captioner.caption(CLIP, max_new_tokens=400)
    assert (len(caption.tokens), caption.finish_reason) == (LOOP_TOKENS, "length")
    (warning,) = caption.warnings
    for fact in ("dog", "over and over", f"ended after {LOOP_TOKENS} tokens", "no_repeat_ngram_size"):
        assert fact in warning
    (together,) = captioner.caption_batch([CLIP], max_new_tokens=400)
    assert (together.tokens, together.warnings) == (caption.tokens, caption.warnings)
    assert "".join(captioner.stream(CLIP, max_new_tokens=400)) == caption.text
    short = captioner.caption(CLIP, max_new_tokens=60)
    assert [("over and over" in warning, "cut at 60" in warning) for warning in short.warnings] == [
        (True, False),
        (False, True),
    ]


def test_each_answer_of_a_batch_ends_by_itself(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    looping(monkeypatch, (5, 6, 7))
    answers = together(decoder, [[(1, 2)], [(1, 2, 3)]], 200)
    assert [len(answer.tokens) for answer in answers] == [LOOP_TOKENS, LOOP_TOKENS]


def test_the_key_is_written_where_it_says_something(tiny_bundle: Path) -> None:
    assert "no_repeat_ngram_size" not in Sampling().model_dump_json()
    assert Sampling.model_validate_json(Sampling().model_dump_json()) == Sampling()
    kept = Sampling(no_repeat_ngram_size=3)
    assert Sampling.model_validate_json(kept.model_dump_json()) == kept
    assert "no_repeat_ngram_size" not in (tiny_bundle / "manifest.json").read_text()
