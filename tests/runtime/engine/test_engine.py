"""Many callers, one engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine import engine as engine_module
from dasheng_edge.runtime.engine import hearing
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.engine.opening import open_parts
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import (
    AudioNotFoundError,
    CaptionerBusyError,
    ClipFailedError,
    DashengEdgeError,
    MemoryShortError,
    PromptError,
)
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.sequences import Sequences

RATE = 16000


def noise(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.4, 0.4, 4000 * (2 + seed % 5)).astype(np.float32), RATE


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.open(tiny_bundle, options=EngineOptions().changed(threads=1), batch=4) as opened:
        yield opened


@pytest.mark.parametrize(
    ("options", "warm_up"),
    [(None, True), (EngineOptions(weights="mapped"), True), (EngineOptions(warm_up=False), False)],
)
def test_parts_on_a_gpu_are_warmed_up_for_many_callers(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, options: EngineOptions | None, warm_up: bool
) -> None:
    asked: list[bool | None] = []

    def opened(path: Path, options: EngineOptions, **_: object) -> tuple[Bundle, Parts]:
        asked.append(options.warm_up)
        return open_parts(path, options)

    monkeypatch.setattr(engine_module, "open_parts", opened)
    Engine.open(tiny_bundle, options=options).close()
    assert asked == [warm_up]


def test_each_caller_gets_its_own_caption(engine: Engine, captioner: Captioner) -> None:
    def call(seed: int) -> Any:
        return engine.submit(noise(seed), max_new_tokens=4 + seed % 9).result(60)

    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(call, range(36)))
    for seed, caption in enumerate(got):
        assert caption.tokens == captioner.caption(noise(seed), max_new_tokens=4 + seed % 9).tokens
    assert not engine._tickets


def test_text_is_told_as_it_comes_and_changes_where_asked(engine: Engine, captioner: Captioner) -> None:
    told: list[list[str]] = [[], [], []]
    tickets = [engine.submit(noise(seed), on_text=told[seed].append) for seed in range(3)]
    for seed, ticket in enumerate(tickets):
        caption = ticket.result(60)
        assert "".join(told[seed]) == caption.text == captioner.caption(noise(seed)).text
        assert len(told[seed]) > 1
    sets_in = np.concatenate([np.full(RATE, 1e-4, np.float32), noise(0)[0]]), RATE
    assert [bool(engine.submit(sets_in, changes=yes).result(60).changes) for yes in (False, True)] == [False, True]

    def leaves(_: str) -> None:
        raise RuntimeError

    assert engine.submit(noise(0), on_text=leaves).result(60).text == "".join(told[0])


def test_what_fails_is_that_callers_alone(engine: Engine) -> None:
    tickets = [engine.submit(audio, max_new_tokens=3) for audio in ("nowhere.wav", noise(1), 5, noise(2))]  # type: ignore[arg-type]
    with pytest.raises(AudioNotFoundError):
        tickets[0].result(60)
    assert tickets[1].result(60).tokens
    assert tickets[3].result(60).tokens
    with pytest.raises(PromptError):
        engine.submit(noise(1), max_new_tokens=0)


def test_cancelling(engine: Engine) -> None:
    held = threading.Event()

    def slow() -> Iterator[np.ndarray]:
        held.wait(20)
        yield noise(1)[0]

    first = engine.submit((slow(), RATE), max_new_tokens=3)
    waiting = engine.submit(noise(2), max_new_tokens=3)
    waiting.cancel()
    waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result()
    assert not first.done()
    with pytest.raises(TimeoutError, match="no caption after"):
        first.result(0.01)
    held.set()
    assert first.result(60).tokens
    assert engine.submit(noise(3), max_new_tokens=3).result(60).tokens


def test_captions_come_as_they_are_done_too(engine: Engine) -> None:
    tickets = [engine.submit(noise(seed), max_new_tokens=1 + 40 * (seed == 0)) for seed in range(4)]
    told: list[Any] = []
    for ticket in tickets:
        ticket.add_done_callback(told.append)
    tickets[2].cancel()
    done = list(as_completed(tickets, 60))
    assert done[-1] is tickets[0]
    assert told[0] is tickets[2]
    assert sorted(map(id, told)) == sorted(map(id, tickets))
    assert [ticket.cancelled() for ticket in tickets] == [False, False, True, False]
    assert tickets[0].cancel() is False
    assert tickets[2].cancel() is True


def test_a_callback_may_ask_for_the_next(engine: Engine) -> None:
    later: list[Any] = []
    called = threading.Event()

    def asks(_: Any) -> None:
        later.append(engine.submit(noise(2), max_new_tokens=2))
        later[0].cancel()
        called.set()

    first = engine.submit(noise(1), max_new_tokens=2)
    first.add_done_callback(asks)
    assert first.result(60).tokens
    assert called.wait(60)
    with pytest.raises(CancelledError):
        later[0].result(60)
    assert engine.submit(noise(3), max_new_tokens=2).result(60).tokens


def test_tickets_can_be_awaited(engine: Engine) -> None:
    async def both() -> list[Any]:
        asked = [asyncio.wrap_future(engine.submit(noise(seed), max_new_tokens=3)) for seed in range(2)]
        return await asyncio.gather(*asked)

    assert all(caption.tokens for caption in asyncio.run(both()))


def test_an_error_of_the_engine_itself_is_told_and_the_next_are_served(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError("step")

    monkeypatch.setattr(Sequences, "step", broken)
    scheduler = engine._scheduler = engine._new_scheduler()
    with pytest.raises(ClipFailedError, match="ZeroDivisionError"):
        engine.submit(noise(1), max_new_tokens=3).result(60)
    assert engine._scheduler is not scheduler
    assert engine.submit(noise(1), max_new_tokens=3).result(60).tokens


def test_closing_cancels_what_is_left(tiny_bundle: Path) -> None:
    engine = Engine.open(tiny_bundle, options=EngineOptions().changed(threads=1), batch=2)
    tickets = [engine.submit(noise(seed), max_new_tokens=200) for seed in range(8)]
    time.sleep(0.05)
    engine.close()
    engine.close()
    assert all(ticket.done() for ticket in tickets)
    with pytest.raises(CancelledError):
        tickets[-1].result()
    with pytest.raises(CaptionerBusyError, match="closed"):
        engine.submit(noise(1))


def test_a_cancelled_request_leaves_within_a_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, steps, after = threading.Event(), list[int](), list[int]()
    step = Sequences.step

    def counted(self: Sequences) -> None:
        if len(self):
            begun.set()
            steps.append(len(self))
            time.sleep(0.002)
        step(self)

    monkeypatch.setattr(Sequences, "step", counted)
    engine._scheduler._places.step = lambda: counted(engine._scheduler._places._sequences)  # type: ignore[attr-defined, method-assign]
    ticket = engine.submit(noise(1), max_new_tokens=150)
    assert begun.wait(20)
    ticket.cancel()
    before = len(steps)
    time.sleep(0.1)
    after.append(len(steps))
    assert after[0] - before <= 2
    assert ticket.job is None  # nor does it keep the audio


def stalled(held: threading.Event, seconds: int = 1) -> tuple[Iterator[np.ndarray], int]:
    """Audio of which so much comes, and then nothing until it is let go."""

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(seconds):
            yield np.resize(noise(1)[0], RATE)
        held.wait(60)

    return blocks(), RATE


@pytest.mark.parametrize("seconds", [1, 70])  # before and behind what is read ahead of a file
def test_nobody_waits_for_audio_of_another_that_does_not_come(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(hearing, "PATIENCE_S", 0.05)
    held = threading.Event()
    with Engine.open(tiny_bundle, options=EngineOptions().changed(threads=1), batch=2) as engine:
        late = [engine.submit(stalled(held, seconds), max_new_tokens=3) for _ in range(4)]
        assert all(engine.submit(noise(seed), max_new_tokens=3).result(30).tokens for seed in range(5))
        late[0].cancel()
        assert engine.submit(noise(1), max_new_tokens=3).result(30).tokens
        held.set()
        assert all(ticket.result(30).tokens for ticket in late[1:])


def test_audio_that_does_not_come_keeps_neither_answers_nor_closing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "CLOSING_S", 0.01)
    held = threading.Event()
    engine = Engine.open(tiny_bundle, options=EngineOptions().changed(threads=1), batch=2)
    begun = engine.submit(noise(1), max_new_tokens=60)
    late = engine.submit(stalled(held), max_new_tokens=3)
    assert begun.result(30).tokens
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(CancelledError):
        late.result(0)
    held.set()


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, GeneratorExit, ZeroDivisionError])
def test_whatever_the_callers_audio_raises_is_told(engine: Engine, raised: type[BaseException]) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield noise(1)[0]
        raise raised

    tickets = [engine.submit((blocks(), RATE), max_new_tokens=3), engine.submit(noise(2), max_new_tokens=3)]
    with pytest.raises(ClipFailedError, match=raised.__name__):
        tickets[0].result(30)
    assert tickets[1].result(30).tokens


def test_a_path_of_the_callers_own_kind_may_raise(engine: Engine) -> None:
    class Odd(os.PathLike[str]):
        def __fspath__(self) -> str:
            raise ZeroDivisionError

    with pytest.raises(DashengEdgeError):
        engine.submit(Odd(), max_new_tokens=3).result(30)
    assert engine.submit(noise(1), max_new_tokens=3).result(30).tokens


@pytest.mark.parametrize("raised", [MemoryError, ZeroDivisionError])
def test_what_fails_as_an_answer_is_put_into_words_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    def broken(_: object) -> str:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(engine.parts.decoder, "detokenize", broken)
        with pytest.raises(DashengEdgeError):
            engine.submit(noise(1), max_new_tokens=3).result(30)
    assert engine.submit(noise(1), max_new_tokens=3).result(30).tokens


def test_without_memory_for_a_new_start_it_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    def short(_: str, __: Callable[[], object]) -> threading.Thread:
        raise MemoryShortError("a thread")

    with monkeypatch.context() as patched:
        patched.setattr(hearing, "started_thread", short)
        patched.setattr(engine._scheduler, "advance", broken)
        with pytest.raises(ClipFailedError):
            engine.submit(noise(1), max_new_tokens=3).result(30)
        with pytest.raises(MemoryShortError):
            engine.submit(noise(1))
    assert engine.submit(noise(1), max_new_tokens=3).result(30).tokens


_LEFT_OPEN = """
import sys, numpy
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.engine_options import EngineOptions
engine = Engine.open(sys.argv[1], options=EngineOptions().changed(threads=1), batch=4)
noise = numpy.random.default_rng(1).uniform(-0.4, 0.4, 8000).astype(numpy.float32), 16000
asked = [engine.submit(noise, max_new_tokens=100) for _ in range(200)]
asked[3].result()
"""


@pytest.mark.slow
def test_a_program_may_end_without_closing(tiny_bundle: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LEFT_OPEN, tiny_bundle], check=False, capture_output=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_in_a_forked_child_nobody_waits_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    ticket = engine.submit(stalled(held), max_new_tokens=3)
    monkeypatch.setattr(engine._home, "_process", os.getpid() + 1)  # as a child sees it
    with pytest.raises(CaptionerBusyError, match="forked"):
        ticket.result()
    ticket.cancel()
    engine.close()
    monkeypatch.undo()
    held.set()
    assert ticket.result(30).tokens


def test_callers_who_cancel_and_fail_leave_the_others_their_answers(engine: Engine, captioner: Captioner) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield noise(0)[0]
        raise SystemExit

    def call(number: int) -> str:
        kind, seed = number % 5, number % 7
        audio = [noise(seed), noise(seed), noise(seed), (failing(), RATE), (np.full(99, np.nan), RATE)][kind]
        ticket = engine.submit(audio, max_new_tokens=40 if kind == 0 else 1 + seed)
        if kind == 0:
            time.sleep(0.001 * seed)
            ticket.cancel()
        try:
            return "equal" if ticket.result(30).tokens == alone[seed] or kind == 0 else "different"
        except CancelledError:
            return "cancelled"
        except DashengEdgeError:
            return "failed"

    alone = [captioner.caption(noise(seed), max_new_tokens=1 + seed).tokens for seed in range(7)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(call, range(140)))
    assert set(got[0::5]) <= {"cancelled", "equal"}
    assert set(got[1::5] + got[2::5]) == {"equal"}
    assert set(got[3::5] + got[4::5]) == {"failed"}
    assert not engine._tickets
    assert len(engine._scheduler) == 0
