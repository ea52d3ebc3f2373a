"""Answers made together, against each alone; what one of them does is its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import DecoderError, MemoryShortError
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.context import Context
from dasheng_edge.runtime.text.decoder import CONTEXT_STEP, Decoder
from dasheng_edge.runtime.text.sequences import Sequences
from tests.fixtures.together import together

LEAD, TAIL = (5, 6, 7, 8, 9), (3, 4)


def prompt(decoder: Decoder, rows: int, seed: int = 0) -> list[Any]:
    audio = np.random.default_rng(seed).normal(0, 0.5, (rows, decoder.n_embd)).astype(np.float32)
    return [LEAD, audio, TAIL] if rows else [LEAD + TAIL]


def alone(decoder: Decoder, asked: list[Any], limit: int, sampling: Sampling = Sampling()) -> list[int]:  # noqa: B008
    decoder.prefill(asked, reserve=limit)
    return list(decoder.generate(limit, sampling))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=8),
    most=st.integers(1, 5),
    choose=st.booleans(),
)
def test_answers_are_those_alone(decoder: Decoder, asked: list[tuple[int, int]], most: int, choose: bool) -> None:
    prompts = [prompt(decoder, rows, seed) for seed, (rows, _) in enumerate(asked)]
    answers = together(decoder, prompts, [limit for _, limit in asked], most=most, choose=choose)
    for answer, given_prompt, (_, limit) in zip(answers, prompts, asked, strict=True):
        assert answer.error is None
        assert answer.tokens == alone(decoder, given_prompt, limit)
        assert len(answer.spent_ms) == len(answer.tokens)


def test_tokens_are_chosen_by_llama_or_here_in_one_batch(decoder: Decoder) -> None:
    samplings = [Sampling(), Sampling(temperature=0.8, seed=2), Sampling(no_repeat_ngram_size=2), Sampling()] * 2
    prompts = [prompt(decoder, 9 + seed, seed) for seed in range(len(samplings))]
    answers = [Answer(*one, sampling) for one, sampling in zip(((p, 14) for p in prompts), samplings, strict=True)]
    sequences, waiting = Sequences(decoder, 3, choose=True), list(answers)
    while waiting or len(sequences):
        del waiting[: sequences.begin(waiting)]
        sequences.step()
    sequences.close()
    for answer, asked, sampling in zip(answers, prompts, samplings, strict=True):
        assert answer.tokens == alone(decoder, asked, 14, sampling)


def test_a_place_that_is_left_is_taken_at_once(decoder: Decoder) -> None:
    sequences = Sequences(decoder, 2)
    first, second, third = (Answer(prompt(decoder, 8, seed), 20, Sampling()) for seed in range(3))
    assert sequences.begin([first, second, third]) == 2
    assert sequences.begin([third]) == 0
    sequences.step()
    sequences.stop(first)
    assert len(sequences) == 1
    assert sequences.begin([third]) == 1
    while len(sequences):
        sequences.step()
    sequences.close()
    assert not first.ended
    assert second.tokens == alone(decoder, second.prompt, 20)  # type: ignore[arg-type]
    assert third.tokens == alone(decoder, third.prompt, 20)  # type: ignore[arg-type]


def test_what_cannot_be_begun_is_the_error_of_that_one(decoder: Decoder) -> None:
    nan = [np.full((2, decoder.n_embd), np.nan, np.float32)]
    wide = [np.zeros((2, decoder.n_embd + 1), np.float32)]
    long = [tuple([5] * (decoder.context_length + 1))]
    good = prompt(decoder, 4)
    answers = together(decoder, [good, nan, [()], wide, long, good], 4)
    assert answers[0].tokens == answers[5].tokens == alone(decoder, good, 4)
    for answer, words in zip(answers[1:5], ("NaN", "empty", "shape", "positions"), strict=True):
        assert isinstance(answer.error, DecoderError)
        assert words in str(answer.error)


@pytest.mark.parametrize("error", [DecoderError, MemoryShortError])
def test_a_step_that_fails_is_made_one_by_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    decode, bad = Context.decode, 40  # positions from which the longer prompt's steps fail

    def failing(self: Context, rows: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        if len(rows) <= 2 and rows.ndim == 1 and positions.max() >= bad:
            raise error("no room")
        decode(self, rows, positions, sequences, wanted)

    short, long = prompt(decoder, 4), prompt(decoder, 60)
    want = alone(decoder, short, 6)
    monkeypatch.setattr(Context, "decode", failing)
    good, failed = together(decoder, [short, long], 6)
    assert good.tokens == want
    assert "no room" in str(failed.error)


def test_nan_of_one_is_its_own(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Context.logits
    prompts = [prompt(decoder, 4, seed) for seed in range(3)]
    want = [alone(decoder, one, 6) for one in prompts]

    def once(self: Context, row: int) -> Any:
        if row == 1:
            monkeypatch.setattr(Context, "logits", logits)
            raise DecoderError("the decoder computed NaN")
        return logits(self, row)

    monkeypatch.setattr(Context, "logits", once)
    first, second, third = together(decoder, prompts, 6)
    assert "NaN" in str(second.error)
    assert (first.tokens, third.tokens) == (want[0], want[2])


def test_without_memory_for_more_there_are_fewer(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    new_context, opened = decoder.new_context, []

    def scarce(n_ctx: int, *, sequences: int = 1, **given: Any) -> Context:
        if n_ctx > 2 * CONTEXT_STEP:
            raise MemoryShortError("a context needs more")
        opened.append(sequences)
        return new_context(n_ctx, sequences=sequences, **given)

    prompts = [prompt(decoder, 8 + seed, seed) for seed in range(6)]
    want = [alone(decoder, one, 5) for one in prompts]
    monkeypatch.setattr(decoder, "new_context", scarce)
    answers = together(decoder, [*prompts, prompt(decoder, 3 * CONTEXT_STEP)], 5, most=4)
    assert [answer.tokens for answer in answers[:-1]] == want
    assert isinstance(answers[-1].error, MemoryShortError)
    assert max(opened) <= 2


def test_without_memory_for_what_there_was_all_are_told(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    new_context, opened = decoder.new_context, []

    def scarce(*arguments: Any, **given: Any) -> Any:
        opened.append(1)
        if len(opened) in (2, 3):  # neither the larger one, nor the one before again
            raise MemoryShortError("a context needs more")
        return new_context(*arguments, **given)

    monkeypatch.setattr(decoder, "new_context", scarce)
    places = Sequences(decoder, 4)
    first, second, third = (Answer(prompt(decoder, 3), 4, Sampling()) for _ in range(3))
    assert places.begin([first]) == 1
    assert places.begin([second, third]) == 2
    assert isinstance(first.error, MemoryShortError)
    assert isinstance(second.error, MemoryShortError)
    while not third.ended:
        places.step()
    assert third.error is None
    places.close()
