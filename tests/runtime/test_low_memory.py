"""`memory="low"`: the same captions, by parts that are never in memory together."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime import Captioner, ChatOptions, EngineOptions, Message
from dasheng_edge.runtime.audio import encoder
from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.engine.job import HEARD_APART
from dasheng_edge.runtime.errors import AudioError, CaptionerBusyError, DeviceError, PromptError
from dasheng_edge.runtime.parts import choose_placement
from dasheng_edge.runtime.text import apart_decoder
from dasheng_edge.runtime.verify import verify_bundle

LOW = EngineOptions(memory="low").changed(threads=1)


class Alive:
    """Which sides have something in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.together, self.opened = Counter[str](), set[frozenset[str]](), Counter[str]()
        session, weights = onnx_session, apart_decoder._Weights
        monkeypatch.setattr(encoder, "onnx_session", self._noting("audio", session))
        monkeypatch.setattr(apart_decoder, "_Weights", self._noting("text", weights))

    def _noting(self, side: str, opened: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: object, **named: object) -> Any:
            thing = opened(*given, **named)
            self.now[side] += 1
            self.opened[side] += 1
            weakref.finalize(thing, self.now.subtract, [side])
            self.together.add(frozenset(+self.now))
            return thing

        return noted

    def check(self) -> None:
        """Both sides were there, and never together."""
        assert self.together == {frozenset({"audio"}), frozenset({"text"})}


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    return Alive(monkeypatch)


@pytest.fixture
def low(tiny_bundle: Path, alive: Alive) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle, options=LOW) as captioner:
        yield captioner
    alive.check()


def clip(seed: int, seconds: float = 1.0) -> AudioSource:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32), 16_000


def same(got: Caption, want: Caption) -> None:
    for name in ("text", "tokens", "finish_reason", "audio_s", "prompt_tokens", "audio_tokens", "warnings", "reason"):
        assert getattr(got, name) == getattr(want, name)


def test_a_clip_after_the_other(low: Captioner, shared_captioner: Captioner) -> None:
    for seed, prompt in ((0, None), (1, "What is that?"), (2, None)):
        same(
            low.caption(clip(seed), prompt, max_new_tokens=8),
            shared_captioner.caption(clip(seed), prompt, max_new_tokens=8),
        )


def test_longer_than_a_chunk_streamed_and_live(low: Captioner, shared_captioner: Captioner) -> None:
    for live in (False, True):
        streams = [one.stream(clip(3, 12.0), max_new_tokens=6, live=live) for one in (low, shared_captioner)]
        ours, theirs = (list(stream) for stream in streams)
        assert ours == theirs
        same(streams[0].finish(), streams[1].finish())


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_many_clips_are_heard_a_few_at_a_time(
    low: Captioner, shared_captioner: Captioner, alive: Alive, batch: int | None
) -> None:
    count = HEARD_APART + 3
    clips = [clip(seed, 0.3 + 0.1 * seed) for seed in range(count)]
    want = [shared_captioner.caption(audio, max_new_tokens=4 + seed % 3) for seed, audio in enumerate(clips[:2])]
    del want
    alive.opened.clear()
    for got, audio in zip(low.caption_each(clips, max_new_tokens=4, batch=batch), clips, strict=True):
        assert isinstance(got, Caption)
        same(got, shared_captioner.caption(audio, max_new_tokens=4))
    assert alive.opened["text"] <= 6  # and not once for each


def test_what_cannot_be_read_costs_itself(low: Captioner, shared_captioner: Captioner) -> None:
    clips: list[AudioSource] = [clip(0), b"no audio", clip(1), (np.zeros(16_000, np.float32), 16_000)]
    first, error, second, silent = low.caption_each(clips, max_new_tokens=4)
    assert isinstance(first, Caption)
    assert isinstance(second, Caption)
    assert isinstance(silent, Caption)
    assert isinstance(error, AudioError)
    same(first, shared_captioner.caption(clip(0), max_new_tokens=4))
    same(second, shared_captioner.caption(clip(1), max_new_tokens=4))
    assert silent.reason == "silence"


def test_several_questions(low: Captioner, shared_captioner: Captioner) -> None:
    questions = {"what": None, "where": "Where is that?"}
    ours, theirs = (one.ask(clip(5), questions, max_new_tokens=5) for one in (low, shared_captioner))
    for name in questions:
        same(ours[name], theirs[name])
    each = list(low.ask_each([clip(5), clip(6)], questions, max_new_tokens=5))
    for name in questions:
        got = each[0][name]
        assert isinstance(got, Caption)
        same(got, theirs[name])


def test_a_caption_between_those_of_many_waits_for_them(low: Captioner) -> None:
    results = low.caption_each([clip(seed, 1 + seed) for seed in range(3)], max_new_tokens=40, batch=3)
    first = next(results)
    assert isinstance(first, Caption)
    with pytest.raises(CaptionerBusyError, match="other captions are being made"):
        low.caption(clip(9), max_new_tokens=2)
    assert len([first, *results]) == 3
    assert low.caption(clip(9), max_new_tokens=2).tokens


def test_an_engine_takes_turns_too(tiny_bundle: Path, alive: Alive, shared_captioner: Captioner) -> None:
    with Engine.open(tiny_bundle, options=LOW) as engine:
        tickets = [engine.submit(clip(seed), f"What is {seed}?", max_new_tokens=5) for seed in range(4)]
        for seed, ticket in enumerate(tickets):
            same(ticket.result(60), shared_captioner.caption(clip(seed), f"What is {seed}?", max_new_tokens=5))
        again = engine.submit(clip(7), "What else?", max_new_tokens=5)
        same(again.result(60), shared_captioner.caption(clip(7), "What else?", max_new_tokens=5))
    alive.check()


def test_a_conversation_hears_its_clips_once(tiny_bundle: Path, alive: Alive, shared_captioner: Captioner) -> None:
    options, messages = ChatOptions(5), [Message("user", [clip(0), "What?", clip(1)])]
    with Captioner.open(tiny_bundle, options=LOW) as captioner, Engine.open(tiny_bundle, options=LOW) as engine:
        for ask in (captioner.chat, lambda *given: engine.chat(*given).result(60)):
            talked, heard = [*messages], 0
            for turn in range(3):
                reply = ask(talked, options)
                assert reply.tokens == shared_captioner.chat(talked, options).tokens
                talked += [Message("assistant", reply.text), Message("user", "So?")]
                assert turn == 0 or alive.opened["audio"] == heard
                heard = alive.opened["audio"]
                assert turn == 0 or reply.usage.cached_tokens > reply.usage.audio_tokens > 0
        with pytest.raises(PromptError, match="no prescribed form"):
            captioner.chat(messages, ChatOptions(5, schema="object"))


def test_a_bundle_is_verified_in_turns(tiny_bundle: Path, alive: Alive) -> None:
    report = verify_bundle(Bundle.open(tiny_bundle), LOW)
    assert report.seams
    alive.check()


def test_it_is_for_the_cpu(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match='memory="low" is for the CPU'):
        EngineOptions(memory="low", device="cuda")
    with pytest.raises(DeviceError, match="expected one of normal, low"):
        EngineOptions(memory="little")  # type: ignore[arg-type]
    place, why = choose_placement(tiny_bundle, LOW)
    assert str(place) == "cpu"
    assert "turns" in why
