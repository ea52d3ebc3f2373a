from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.gate import SILENT_DB
from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.clip_audio import HeardAudio
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.errors import DecoderError, PromptError
from dasheng_edge.runtime.live.ear import CUT_SHARE, Window, WindowPlan
from dasheng_edge.runtime.live.listening import Heard, Listening
from dasheng_edge.runtime.live.source import FileSource, Piece
from tests.runtime.live.test_ear import RATE, Counting, Samples, sounds

PLAN = WindowPlan(2, 2)


class FakeClock:
    """Time passes when somebody sleeps or works."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.time += seconds


def said(text: str) -> Caption:
    timings = Timings(0, 0, 0, 0, 0, 0, 0, 0, 0, decode_tokens=1)
    return Caption(text, (1,), "stop", 1.0, 1, 1, timings)


@dataclass
class SlowTicket:
    """An answer that is there after so much time of the decoder, which makes one after another."""

    decoder: SlowDecoder
    text: str
    ready_s: float
    cancelled: bool = False

    def done(self) -> bool:
        return self.decoder.clock.now() >= self.ready_s

    def result(self) -> Caption:
        assert not self.cancelled
        self.decoder.clock.time = max(self.decoder.clock.time, self.ready_s)
        return said(self.text)

    def cancel(self) -> None:
        self.cancelled = True
        self.decoder.free_s -= self.decoder.needs_s


@dataclass
class SlowDecoder:
    clock: FakeClock
    needs_s: float
    texts: list[str] = field(default_factory=lambda: ["{count}"])
    free_s: float = 0.0
    asked: list[Window] = field(default_factory=list)

    def ask(self, window: Window) -> SlowTicket:
        self.free_s = max(self.free_s, self.clock.now()) + self.needs_s
        text = self.texts[len(self.asked) % len(self.texts)].format(count=len(self.asked))
        self.asked.append(window)
        return SlowTicket(self, text, self.free_s)


def listen(samples: Samples, decoder: SlowDecoder, *, waits: bool = False, plan: WindowPlan = PLAN) -> list[Heard]:
    clock = decoder.clock
    source = FileSource((samples, RATE), RATE, None if waits else clock)
    return list(Listening(source, parts(), plan, decoder.ask, waits=waits).run())


def parts() -> AudioInputParts:
    return cast(AudioInputParts, Counting())


def test_each_sound_has_its_caption_soon() -> None:
    decoder = SlowDecoder(FakeClock(), 0.3)
    first, second = listen(sounds(12, (2, 3), (7, 8)), decoder)
    assert [first.window.sounded_s, second.window.sounded_s] == pytest.approx([3, 8], abs=0.21)
    assert [heard.caption.text for heard in (first, second) if heard.caption] == ["0", "1"]
    assert all(heard.late_s is not None and 0.5 < heard.late_s < 1.5 for heard in (first, second))
    assert decoder.clock.now() == pytest.approx(112, abs=0.1)  # at the speed of time


@given(st.floats(0.1, 8), st.integers(0, 3), st.booleans())
@settings(max_examples=6, deadline=None)
def test_a_slow_machine_drops_whole_windows_and_is_never_far_behind(needs_s: float, seed: int, overlap: bool) -> None:
    decoder = SlowDecoder(FakeClock(), needs_s)
    plan = WindowPlan(2, 1) if overlap else PLAN
    heard = listen(sounds(30, (1, 8), (9, 15), (16, 22), (23, 29), seed=seed), decoder, plan=plan)
    ends = [one.window.end_s for one in heard]
    assert ends == sorted(ends)  # order is kept, dropped ones included
    captions = [one for one in heard if one.caption]
    assert len(captions) + sum(one.dropped for one in heard) == len(heard) >= 12
    asked = [window.end_s for window in decoder.asked]
    assert {one.window.end_s for one in captions} <= set(asked)
    # A window waits for the one before it, but no longer than a window, and for itself.
    cut_s = CUT_SHARE * plan.window_s + 1.0  # until it is known where it ends
    late_s = [one.late_s or 0 for one in captions if one.window.end_s < asked[-1]]  # the last ones are waited for
    assert max(late_s) <= min(needs_s, plan.window_s) + needs_s + cut_s
    if needs_s < 0.8:
        assert not any(one.dropped for one in heard)
    if needs_s > 3:
        assert any(one.dropped for one in heard)


def test_a_source_that_is_behind_by_more_than_a_window_is_not_encoded() -> None:
    clock = FakeClock()
    decoder, counting = SlowDecoder(clock, 0.0), Counting()
    source = FileSource((sounds(30, (1, 8), (9, 15), (16, 22), (23, 29)), RATE), RATE, clock)
    listening = Listening(source, cast(AudioInputParts, counting), PLAN, decoder.ask, waits=False)
    heard = []
    for one in listening.run():
        heard.append(one)
        if len(heard) == 3:
            clock.sleep(6)  # something else took the machine
    dropped = [one for one in heard if one.dropped]
    assert 1 <= len(dropped) <= 3
    assert listening.tally.dropped == len(dropped)
    assert not heard[-1].dropped  # it catches up
    assert sum(counting.blocks) < listening.ear.ticks


def test_a_file_is_heard_the_same_however_slow_the_machine_is() -> None:
    samples = sounds(20, (1, 7), (8, 8.5), (12, 19))
    runs = [listen(samples, SlowDecoder(FakeClock(), needs_s), waits=True) for needs_s in (0.0, 50.0)]
    assert [(one.window.end_s, one.caption) for one in runs[0]] == [(one.window.end_s, one.caption) for one in runs[1]]
    assert not any(one.dropped or one.late_s for one in runs[1])


def test_what_was_just_said_is_a_repeat() -> None:
    both = ("a dog barks while rain falls", "rain falls and a dog barks")
    decoder = SlowDecoder(FakeClock(), 0.0, ["a dog barks", "A dog barks.", "rain falls", *both, "a dog barks"])
    heard = listen(sounds(40, (2, 3), (5, 6), (9, 10), (12, 13), (15, 16), (30, 31)), decoder, waits=True)
    assert [one.repeats for one in heard] == [False, True, False, False, True, False]
    again = listen(sounds(40, (2, 3), (30, 31)), SlowDecoder(FakeClock(), 0.0, ["a dog barks"]), waits=True)
    assert not any(one.repeats for one in again)  # long after


def test_errors_of_a_window_are_told_and_others_end_it() -> None:
    class Failing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def done(self) -> bool:
            return True

        def result(self) -> Caption:
            raise self.error

        def cancel(self) -> None:
            raise AssertionError

    def run(error: Exception) -> Listening:
        source = FileSource((sounds(8, (1, 2), (4, 5)), RATE), RATE)
        listening = Listening(source, parts(), PLAN, lambda _: Failing(error), waits=True)
        assert all(heard.error is error for heard in listening.run())
        return listening

    assert run(DecoderError("no")).tally.failed == 2
    with pytest.raises(PromptError):
        run(PromptError("no"))


def test_it_stops_when_told_and_says_what_was_heard() -> None:
    class Endless:
        name = "endless"

        def pieces(self) -> Iterator[Piece]:
            for piece in np.array_split(sounds(60, (1, 60)), 600):
                yield Piece(piece)

        def behind_s(self) -> float:
            return 0.0

    decoder, calls = SlowDecoder(FakeClock(), 0.0), 0

    def watch() -> None:
        nonlocal calls
        calls += 1
        if calls == 25:
            listening.stop()

    listening = Listening(Endless(), parts(), WindowPlan(10, 10), decoder.ask, waits=True)
    (heard,) = listening.run(watch)
    assert listening.seconds == pytest.approx(2.5)
    assert heard.window.end_s == pytest.approx(2.6, abs=0.11)


@pytest.mark.parametrize("seconds", [1.0, 2.05, 2.999, 4.13])
def test_no_wait_is_negative_and_nothing_ends_behind_the_file(seconds: float) -> None:
    samples = sounds(seconds, (0.5, seconds))
    clock = FakeClock()
    source = FileSource((samples, RATE), RATE, clock)
    listening = Listening(source, parts(), PLAN, SlowDecoder(clock, 0.0).ask, waits=False)
    behind_s: list[float] = []
    heard = [*listening.run(lambda: behind_s.append(source.behind_s()))]
    assert min(behind_s) >= 0
    assert listening.seconds == pytest.approx(len(samples) / RATE)
    assert heard
    assert all(one.window.sounded_s <= one.window.end_s <= seconds + 0.001 for one in heard)
    assert min(listening.tally.late_s) >= 0


def test_time_that_is_missing_is_in_the_times() -> None:
    class Unplugged:
        name = "gone"

        def pieces(self) -> Iterator[Piece]:
            yield Piece(sounds(3, (1, 2)))
            yield Piece(sounds(4, (1, 2)), lost_s=60.0)

        def behind_s(self) -> float:
            return 0.0

    listening = Listening(Unplugged(), parts(), PLAN, SlowDecoder(FakeClock(), 0).ask, waits=True)
    assert [one.window.sounded_s for one in listening.run()] == pytest.approx([2, 65], abs=0.21)
    assert listening.seconds == pytest.approx(67)


def test_times_do_not_drift_however_often_it_is_unplugged() -> None:
    class Loose:
        name = "loose"

        def pieces(self) -> Iterator[Piece]:
            for _ in range(30):
                yield Piece(sounds(1.03, (0.5, 1.03)), lost_s=1.01)
                yield Piece(np.zeros(0, np.float32), ends=True)

        def behind_s(self) -> float:
            return 0.0

    listening = Listening(Loose(), parts(), PLAN, SlowDecoder(FakeClock(), 0).ask, waits=True)
    expected = [2.04 * count + 2.04 for count in range(30)]
    assert [one.window.sounded_s for one in listening.run()] == pytest.approx(expected, abs=0.33)


def test_a_sound_that_is_cut_off_is_captioned_at_once() -> None:
    told: list[tuple[float, float]] = []

    class Unplugged:
        name = "gone"

        def pieces(self) -> Iterator[Piece]:
            yield Piece(sounds(1.5, (1, 1.5)))
            yield Piece(np.zeros(0, np.float32), ends=True)
            told.append((listening.tally.captions, listening.ear.level_db))
            yield Piece(sounds(4, (1, 2)), lost_s=60.0)

        def behind_s(self) -> float:
            return 0.0

    listening = Listening(Unplugged(), parts(), PLAN, SlowDecoder(FakeClock(), 0).ask, waits=True)
    assert [one.window.sounded_s for one in listening.run()] == pytest.approx([1.5, 63.5], abs=0.31)
    assert told == [(1, SILENT_DB)]


def test_a_caption_of_embeddings_is_that_of_the_clip(captioner: Captioner, tiny_bundle: Path) -> None:
    clip = sounds(2, (0, 2))
    want = captioner.caption((clip, RATE), max_new_tokens=6)
    with Engine.open(tiny_bundle, batch=1) as engine:
        heard = HeardAudio(engine.parts.audio.embeddings([clip]), 2.0, "the room", encoding_ms=5.0)
        got = engine.submit(heard, max_new_tokens=6).result()
    assert (got.text, got.tokens, got.audio_s, got.audio_tokens) == (want.text, want.tokens, 2.0, want.audio_tokens)
    assert got.timings.encoder_ms == 5.0
    assert math.isfinite(got.timings.total_ms)
