"""Several questions about a clip, which is heard once, against each question alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    AudioTooLongError,
    ClipFailedError,
    DashengEdgeError,
    PromptError,
)
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.text.context import Context

RATE = 16_000
QUESTIONS = {
    "caption": None,
    "speech": "Transcribe the speech.",
    "language": "What language is spoken?",
    "labels": "Which labels describe the sound?",
    "again": "Transcribe the speech.",
}


def noise(seed: int = 0, seconds: float = 2.0) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, round(seconds * RATE)).astype(np.float32), RATE


@pytest.fixture(params=["audio first", "text first"])
def bundle_order(request: pytest.FixtureRequest, captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "text first":
        facts = captioner.bundle.prompt_facts.model_copy(update={"audio_first": False})
        prompts = PromptBuilder(captioner.parts.decoder.chat_template, facts, captioner.parts.decoder)
        monkeypatch.setattr(captioner, "parts", dataclasses.replace(captioner.parts, prompts=prompts))
    return str(request.param)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=4)])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_each_answer_is_that_alone(
    captioner: Captioner, bundle_order: str, sampling: Sampling, system: str | None
) -> None:
    def asked(prompt: str | None) -> Caption:
        return captioner.caption(noise(), prompt, system=system, max_new_tokens=12, sampling=sampling)

    got = captioner.ask(noise(), QUESTIONS, system=system, max_new_tokens=12, sampling=sampling)
    assert list(got) == list(QUESTIONS), bundle_order
    for name, prompt in QUESTIONS.items():
        want = asked(prompt)
        assert (got[name].tokens, got[name].text) == (want.tokens, want.text)
        assert got[name].confidence == pytest.approx(want.confidence, abs=1e-3)
        assert (got[name].prompt_tokens, got[name].audio_tokens) == (want.prompt_tokens, want.audio_tokens)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_clips_and_questions_are_not_mixed_up(captioner: Captioner, bundle_order: str, batch: int) -> None:
    clips = [noise(seed, 0.5 + seed) for seed in range(4)]
    questions = list(QUESTIONS.values())[1:4]
    got = list(captioner.ask_each(clips, questions, max_new_tokens=8, batch=batch))  # type: ignore[arg-type]
    for clip, answers in zip(clips, got, strict=True):
        for question, answer in answers.items():
            assert isinstance(answer, Caption), bundle_order
            assert answer.tokens == captioner.caption(clip, question, max_new_tokens=8).tokens


def test_a_clip_is_heard_once_and_read_once_by_the_decoder(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, rows_of, decode = list[int](), ClipAudio.rows, Context.decode
    decoded = list[int]()

    def rows(self: ClipAudio) -> Any:
        heard.append(1)
        return rows_of(self)

    def counted(self: Context, rows: Any, *rest: Any) -> None:
        decoded.append(len(rows))
        decode(self, rows, *rest)

    monkeypatch.setattr(ClipAudio, "rows", rows)
    monkeypatch.setattr(Context, "decode", counted)
    answers = captioner.ask(noise(seconds=20), QUESTIONS, max_new_tokens=1)
    (audio_tokens,) = {answer.audio_tokens for answer in answers.values()}
    assert len(heard) == 1
    text = sum(answer.prompt_tokens for answer in answers.values())
    assert audio_tokens <= sum(decoded) <= audio_tokens + text


def test_what_is_wrong_with_a_question_is_its_own(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = noise(seconds=6)  # 29 rows
    monkeypatch.setattr(captioner.parts.decoder, "context_length", 80)
    questions = {"fine": "Why?", "no room for audio": "why " * 40, "no room for all of it": "why " * 15, "good": None}
    (answers,) = captioner.ask_each([clip], questions, max_new_tokens=9)
    assert isinstance(answers["no room for audio"], PromptError)
    assert isinstance(answers["no room for all of it"], AudioTooLongError)
    for name in ("fine", "good"):
        answer = answers[name]
        assert isinstance(answer, Caption)
        assert answer.tokens == captioner.caption(clip, questions[name], max_new_tokens=9).tokens
    with pytest.raises(PromptError, match="leave none for audio"):
        captioner.ask(clip, questions, max_new_tokens=9)
    (none,) = captioner.ask_each([clip], {"a": "why " * 40, "b": "why " * 50}, max_new_tokens=9)
    assert {type(answer) for answer in none.values()} == {PromptError}


def test_what_is_wrong_with_a_clip_is_the_error_of_its_questions(captioner: Captioner) -> None:
    clips: list[Any] = [noise(1), "nowhere.wav", b"no audio", noise(2)]
    kinds: list[type] = [Caption, AudioNotFoundError, AudioDecodeError, Caption]
    for answers, kind in zip(captioner.ask_each(clips, ["Why?", "Where?"], max_new_tokens=3), kinds, strict=True):
        assert {type(answer) for answer in answers.values()} == {kind}
    with pytest.raises(AudioNotFoundError):
        captioner.ask("nowhere.wav", ["Why?"])


def test_what_fails_in_an_unforeseen_way_is_said_of_the_clip(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: ClipAudio) -> None:
        raise ZeroDivisionError("frames")

    monkeypatch.setattr(ClipAudio, "rows", crash)
    (answers,) = captioner.ask_each([noise()], ["Why?", "Where?"])
    assert all(isinstance(answer, ClipFailedError) for answer in answers.values())


@pytest.mark.parametrize("questions", [{}, [], (), "Why?", 5, None, [5], {"a": 5}])
def test_what_is_no_question_is_refused(captioner: Captioner, questions: Any) -> None:
    with pytest.raises(PromptError):
        captioner.ask(noise(), questions)
    with pytest.raises(PromptError):
        captioner.ask_each([noise()], questions)


def test_a_captioner_goes_on_after_questions(captioner: Captioner) -> None:
    want = captioner.caption(noise(), max_new_tokens=5).tokens
    answers = captioner.ask_each([noise(seed) for seed in range(5)], ["Why?", "Where?"], max_new_tokens=5, batch=2)
    assert all(not isinstance(answer, DashengEdgeError) for answer in next(answers).values())
    answers.close()
    assert captioner.caption(noise(), max_new_tokens=5).tokens == want
