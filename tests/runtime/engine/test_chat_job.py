"""Conversations: each reply is that of all its messages from scratch, and little is computed twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime import Captioner, ChatOptions, Engine, Message, Reply
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine.chat_job import ChatRequest
from dasheng_edge.runtime.engine.clip_audio import ClipAudio, HeardAudio
from dasheng_edge.runtime.engine.conversation import Piece
from dasheng_edge.runtime.engine.heard_clips import HeardClips, clip_key
from dasheng_edge.runtime.engine.job import CaptionScheduler
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import (
    AudioNotFoundError,
    AudioTooLongError,
    CaptionerBusyError,
    ClipFailedError,
    PromptError,
)
from dasheng_edge.runtime.text import histories

RATE = 16_000
SHORT = ChatOptions(max_new_tokens=8)
SAMPLED = ChatOptions(8, Sampling(temperature=0.9, top_p=0.9, seed=3))


def noise(seed: int, seconds: float = 1.0) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, round(seconds * RATE)).astype(np.float32), RATE


def user(*parts: Any) -> Message:
    return Message("user", parts)


def said(reply: Reply) -> Message:
    return Message("assistant", reply.text)


def forget(captioner: Captioner) -> None:
    """As if nothing had been asked."""
    captioner._heard = HeardClips()
    captioner.sequences.close()


@pytest.fixture(autouse=True)
def nothing_is_known(captioner: Captioner) -> None:
    forget(captioner)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that are encoded."""
    names, rows = list[str](), ClipAudio.rows

    def counted(clip: ClipAudio) -> Any:
        names.append(clip.name)
        return rows(clip)

    monkeypatch.setattr(ClipAudio, "rows", counted)
    return names


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.open(tiny_bundle, options=EngineOptions().changed(threads=1), batch=4) as opened:
        yield opened


CONVERSATION = [
    Message("system", "Be brief."),
    user("Are the two speakers the same?", noise(1), "Or", noise(2, 0.7)),
    user(noise(1), "Why?"),
    user("And", noise(3), noise(2, 0.7)),
    user("So?"),
]


@pytest.mark.parametrize("options", [SHORT, SAMPLED], ids=["greedy", "sampled"])
def test_each_reply_is_that_from_scratch_and_only_what_is_new_is_computed(
    captioner: Captioner, heard: list[str], options: ChatOptions
) -> None:
    messages, before = CONVERSATION[:1], 0
    talked: list[tuple[list[Message], Reply]] = []
    for asked in CONVERSATION[1:]:
        messages = [*messages, asked]
        reply = captioner.chat(messages, options)
        usage, rows = reply.usage, reply.timings.prefill_rows
        assert rows == usage.prompt_tokens - usage.cached_tokens
        assert usage.cached_tokens >= before
        before = usage.prompt_tokens
        talked.append((messages, reply))
        messages = [*messages, said(reply)]
    assert len(heard) == 3  # each of the clips once
    for messages, reply in talked:
        forget(captioner)
        alone = captioner.chat(messages, options)
        assert alone.usage.cached_tokens == 0
        assert (alone.text, alone.tokens, alone.finish_reason) == (reply.text, reply.tokens, reply.finish_reason)
        assert alone.usage.prompt_tokens == reply.usage.prompt_tokens
        assert alone.usage.audio_tokens == reply.usage.audio_tokens > 0


def test_another_answer_to_the_same_and_another_question_need_one_row_or_few(
    captioner: Captioner, heard: list[str]
) -> None:
    first = captioner.chat([user(noise(1), "What?")], SHORT)
    again = captioner.chat([user(noise(1), "What?")], SHORT)
    assert (again.text, again.timings.prefill_rows) == (first.text, 1)
    other = captioner.chat([user(noise(1), "Who is it?")], SHORT)
    assert other.usage.cached_tokens > other.usage.audio_tokens > 0
    assert len(heard) == 1


def test_one_question_is_a_caption(captioner: Captioner) -> None:
    want = captioner.caption(noise(1), "What is it?", max_new_tokens=8)
    got = captioner.chat([user(noise(1), "What is it?")], SHORT)
    assert (got.text, got.tokens, got.finish_reason) == (want.text, want.tokens, want.finish_reason)
    assert got.usage.prompt_tokens == want.prompt_tokens + want.audio_tokens
    assert got.usage.completion_tokens == len(want.tokens)
    assert got.audio_s == want.audio_s
    assert got.confidence == pytest.approx(want.confidence)


def test_the_system_text_of_the_bundle_holds_unless_there_is_another(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = captioner.bundle.prompt_facts.model_copy(update={"system": "Be kind."})
    monkeypatch.setattr(type(captioner.bundle), "prompt_facts", facts)

    def rows(*messages: Message) -> int:
        return captioner.chat(messages, SHORT).usage.prompt_tokens

    asked = user(noise(1), "What?")
    assert rows(asked) == rows(Message("system", "Be kind."), asked) > rows(Message("system", ""), asked)


def test_pieces_make_the_reply(captioner: Captioner) -> None:
    stream = captioner.chat_stream([user(noise(1), "What?")], SHORT)
    with pytest.raises(CaptionerBusyError):
        captioner.chat([user(next(stream))])
    stream.close()
    pieces = list(stream := captioner.chat_stream([user(noise(1), "What?")], SHORT))
    assert "".join(pieces) == stream.reply.text
    assert len(pieces) > 2


def test_an_answer_that_was_broken_off_is_a_part_of_the_history(captioner: Captioner) -> None:
    stream = captioner.chat_stream([user(noise(1, 3.0), "What?")], SHORT)
    begun = next(stream) + next(stream)
    stream.close()
    reply = captioner.chat([user(noise(1, 3.0), "What?"), Message("assistant", begun), user("Go on.")], SHORT)
    assert reply.usage.cached_tokens > reply.usage.audio_tokens


def test_logprobs_are_those_of_the_model_and_of_the_tokens(captioner: Captioner) -> None:
    messages = [user(noise(1), "What?")]
    greedy = captioner.chat(messages, ChatOptions(8, top_logprobs=3))
    assert greedy.logprobs is not None
    assert tuple(one.token for one in greedy.logprobs) == greedy.tokens
    assert b"".join(one.text for one in greedy.logprobs).decode("utf-8", "replace") == greedy.text
    for one in greedy.logprobs:
        assert len(one.top) == 3
        assert one.top[0][0] == one.token
        values = [logprob for _, _, logprob in one.top]
        assert values == sorted(values, reverse=True)
        assert one.logprob == pytest.approx(values[0])
        assert sum(map(np.exp, values)) <= 1.0 + 1e-6
    alone = captioner.chat(messages, ChatOptions(8, top_logprobs=0)).logprobs
    assert alone is not None
    assert [one.logprob for one in alone] == pytest.approx([one.logprob for one in greedy.logprobs], abs=1e-3)
    assert alone[0].top == ()
    assert captioner.chat(messages, SHORT).logprobs is None


@pytest.mark.parametrize("beside", [False, True])
def test_the_same_where_a_gpu_would_choose_tokens(captioner: Captioner, beside: bool) -> None:
    asked = [
        ([user(noise(1), "What?", noise(2))], SHORT),
        ([user(noise(2), "What?")], ChatOptions(8, top_logprobs=1)),
        ([user(noise(3), "Yes?")], ChatOptions(8, schema={"enum": ["yes", "no"]})),
    ]
    scheduler = CaptionScheduler(captioner.bundle, captioner.parts, 3, beside=beside)
    scheduler._places._sequences._choose_there = beside  # type: ignore[attr-defined]
    requests = [ChatRequest(captioner.bundle, captioner.parts, messages, options) for messages, options in asked]
    jobs = [scheduler.chat(request, HeardClips(), None) for request in requests]
    for job in jobs:
        scheduler.add(job)
    while len(scheduler):
        scheduler.advance(lambda _: None)
    scheduler.close()
    for job, (messages, options) in zip(jobs, asked, strict=True):
        got, want = job.result(), captioner.chat(messages, options)
        assert isinstance(got, Reply)
        assert (got.text, got.tokens, len(got.logprobs or ())) == (want.text, want.tokens, len(want.logprobs or ()))
    assert captioner.chat(*asked[2]).text in ('"yes"', '"no"')


def test_a_text_that_stops_the_answer_is_not_in_it(captioner: Captioner) -> None:
    messages = [user(noise(1), "What?")]
    whole = captioner.chat(messages, ChatOptions(24))
    stop = whole.text[4:6]
    reply = captioner.chat(messages, ChatOptions(24, stop=["never", stop], top_logprobs=0))
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert reply.finish_reason == "stop"
    assert reply.logprobs is not None
    assert len(reply.logprobs) <= len(reply.tokens) < len(whole.tokens)


def test_many_clients_get_their_own_replies(engine: Engine, captioner: Captioner) -> None:
    def talk(seed: int) -> list[Reply]:
        messages, replies = list[Message](), list[Reply]()
        for parts in ((noise(seed % 5), f"What {seed}?"), ("Why?",), (noise(seed % 3), "And?")):
            pieces: list[Piece] = []
            messages.append(user(*parts))
            options = ChatOptions(3 + seed % 4, top_logprobs=0 if seed % 2 else None)
            replies.append(engine.chat(messages, options, on_piece=pieces.append).result(60))
            assert "".join(piece.text for piece in pieces) == replies[-1].text
            assert (seed % 2 == 0) == (sum(len(piece.logprobs) for piece in pieces) == 0)
            messages.append(said(replies[-1]))
        return replies

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(talk, range(12)))
    for seed, replies in enumerate(got):
        messages: list[Message] = []
        for parts, reply in zip(
            ((noise(seed % 5), f"What {seed}?"), ("Why?",), (noise(seed % 3), "And?")), replies, strict=True
        ):
            messages.append(user(*parts))
            forget(captioner)
            assert captioner.chat(messages, ChatOptions(3 + seed % 4)).tokens == reply.tokens
            messages.append(said(reply))
    assert not engine._tickets


def test_a_reply_that_is_cancelled_frees_its_place(engine: Engine) -> None:
    begun = threading.Event()
    slow = [engine.chat([user("Talk.")], ChatOptions(400), on_piece=lambda _: begun.set()) for _ in range(4)]
    assert begun.wait(60)
    for ticket in slow:
        ticket.cancel()
    assert engine.chat([user("Hm?")], SHORT).result(60).tokens
    for ticket in slow:
        if ticket.cancelled():
            with pytest.raises(CancelledError):
                ticket.result()


def test_who_does_not_listen_ends_the_own_answer_only(engine: Engine) -> None:
    def gone(_: Piece) -> None:
        raise ConnectionResetError("gone")

    lost, kept = engine.chat([user("Talk.")], SHORT, on_piece=gone), engine.chat([user("Talk.")], SHORT)
    with pytest.raises(ClipFailedError, match="gone"):
        lost.result(60)
    assert kept.result(60).tokens


def test_what_fails_is_said_by_name(engine: Engine, captioner: Captioner) -> None:
    usage = captioner.chat([user(noise(1, 3.0), "What?")], SHORT).usage
    words = usage.prompt_tokens - usage.audio_tokens
    for ask in (captioner.chat, lambda *asked: engine.chat(*asked).result(60)):
        with pytest.raises(AudioNotFoundError, match="nowhere"):
            ask([user(noise(1), Path("nowhere.wav"), "What?")])
        with pytest.raises(AudioTooLongError):
            ask([user(noise(1, 3.0), "What?")], ChatOptions(captioner.parts.decoder.context_length - words - 3))


def test_silence_is_asked_about_and_said(captioner: Captioner) -> None:
    reply = captioner.chat([user((np.zeros(RATE, np.float32), RATE), "What?")], SHORT)
    assert reply.tokens
    assert any("nothing to be heard" in warning for warning in reply.warnings)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "0 messages"),
        ("What?", "of type str"),
        ([{"role": "user"}], "of type list"),
        ([Message("user", "What?"), Message("assistant", "That.")], "last message is of the assistant"),
        ([Message("user", "a" * 20_000)], "begin a new one"),
    ],
)
def test_what_is_no_conversation(captioner: Captioner, messages: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        captioner.chat(messages)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Message("robot", "a"), "the role"),  # type: ignore[arg-type]
        (lambda: Message("user", 5), "of type int"),  # type: ignore[arg-type]
        (lambda: Message("assistant", [b""]), "holds audio"),
        (lambda: ChatOptions(0), "max_new_tokens"),
        (lambda: ChatOptions(sampling=1), "sampling"),  # type: ignore[arg-type]
        (lambda: ChatOptions(stop="a"), "stop"),
        (lambda: ChatOptions(stop=[""]), "stop"),
        (lambda: ChatOptions(stop=["a"] * 17), "stop"),
        (lambda: ChatOptions(top_logprobs=21), "top_logprobs"),
        (lambda: ChatOptions(top_logprobs=-1), "top_logprobs"),
    ],
)
def test_what_is_no_message_and_no_option(made: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        made()


def test_options_of_another_kind(captioner: Captioner) -> None:
    with pytest.raises(PromptError, match="of type dict"):
        captioner.chat([user("a")], {})  # type: ignore[arg-type]


def test_what_is_kept_is_bounded_and_the_last_used_stays(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(seed: int) -> int:
        return captioner.chat([user(noise(seed), "What?")], SHORT).usage.cached_tokens

    cached(1)
    ((_, state),) = captioner.sequences._beginnings._histories._kept
    monkeypatch.setattr(captioner.sequences._beginnings._histories, "_most", int(2.6 * len(state)))
    cached(2)
    assert cached(1) > 8
    cached(3)
    assert cached(1) > 8
    assert cached(2) < 8
    kept = captioner.sequences._beginnings._histories._kept
    assert sum(len(state) for _, state in kept) <= int(2.6 * len(state))
    assert histories.LOW_BYTES < histories.MAX_BYTES


def test_clips_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    samples, rate = noise(1)
    before = clip_key(path)
    assert before == clip_key(str(path)) != clip_key(b"one")
    path.write_bytes(b"other")
    assert clip_key(path) != before
    assert clip_key(bytearray(b"one")) == clip_key(memoryview(b"one")) == clip_key(b"one")
    assert clip_key((samples, rate)) == clip_key((samples.copy(), rate))
    others = ((samples, 8000), (samples[:-1], rate), (samples.astype(np.float64), rate), (-samples, rate))
    assert len({clip_key((samples, rate)), *map(clip_key, others)}) == 5
    assert clip_key((iter([samples]), rate)) is None
    assert clip_key(tmp_path / "none.wav") is None
    clips, one = HeardClips(), HeardAudio(np.zeros((3, 4), np.float32), 1.0, "a")
    assert clips.put(None, one) is one
    assert clips.get(None) is None
    assert clips.put(before, one) is clips.put(before, HeardAudio(one.embeddings.copy(), 1.0, "b")) is one
