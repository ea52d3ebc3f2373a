"""What is heard -> captions as they come; whole windows are dropped where the machine is too slow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine.clip_audio import HeardAudio
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.errors import NOT_OF_A_CLIP, DashengEdgeError
from dasheng_edge.runtime.subtitles.labels import labels

from .ear import Ear, Window, WindowPlan
from .source import Piece, Source

REPEAT_S = 7.0  # between windows that say the same, if the second is no news: as long as a subtitle stays


class Asked(Protocol):
    """A caption that was asked for: as `engine.Ticket`."""

    def done(self) -> bool: ...
    def result(self) -> Caption: ...
    def cancel(self) -> object: ...


def captions_of(
    engine: Engine,
    name: str,
    prompt: str | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
) -> Callable[[Window], Asked]:
    """Has windows of a source captioned by an engine; arguments and errors as in `Engine.submit`."""
    engine.parts.prompts.build(prompt, system=system)  # what is wrong with it is said before there is a sound

    def ask(window: Window) -> Asked:
        assert window.embeddings is not None
        audio = HeardAudio(window.embeddings, window.end_s - window.start_s, name, window.encoding_ms)
        return engine.submit(audio, prompt, system=system, max_new_tokens=max_new_tokens)

    return ask


@dataclass(frozen=True)
class Heard:
    """A window and what is said about it: a caption or an error; neither if it was dropped."""

    window: Window
    caption: Caption | None = None
    error: DashengEdgeError | None = None
    repeats: bool = False  # what was said before
    late_s: float | None = None  # from its last sound to now; None of a file that is heard faster than time

    @property
    def dropped(self) -> bool:
        """Whether there was no time for it."""
        return self.caption is None and self.error is None


@dataclass
class Tally:
    """What became of the windows."""

    captions: int = 0  # those that repeat what was said included
    repeats: int = 0
    dropped: int = 0
    failed: int = 0
    late_s: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))  # of the last captions, of about a day

    def add(self, heard: Heard) -> None:
        """One more."""
        self.captions += heard.caption is not None
        self.repeats += heard.repeats
        self.dropped += heard.dropped
        self.failed += heard.error is not None
        if heard.caption is not None and heard.late_s is not None:
            self.late_s.append(heard.late_s)


class Listening:
    """Listens to a source; `ask` has a window captioned, in another thread.

    With `waits`, it waits for each caption, so that nothing depends on how fast the machine is. `watch` is called after
    each piece of audio.
    """

    def __init__(
        self, source: Source, audio: AudioInputParts, plan: WindowPlan, ask: Callable[[Window], Asked], *, waits: bool
    ) -> None:
        self.source, self.tally = source, Tally()
        self.ear = Ear(audio, plan, lambda: not waits and source.behind_s() > plan.window_s)
        self.seconds = 0.0  # of audio so far, what is missing included
        self._rate_hz = audio.front_end.spec.sample_rate_hz
        self._ask, self._waits, self._longest_s = ask, waits, plan.window_s
        self._asked: deque[tuple[Window, Asked | None]] = deque()  # None: it was dropped
        self._said: frozenset[str] = frozenset()  # sounds of the last caption
        self._said_until_s = -REPEAT_S
        self._stopped = False

    def stop(self) -> None:
        """Listen no more; what was heard is still captioned. For a signal handler or another thread."""
        self._stopped = True

    def run(self, watch: Callable[[], None] = lambda: None) -> Generator[Heard]:
        """What is heard, in its order, as soon as it is known.

        Raises:
            AudioError: the source cannot be had.
            DashengEdgeError: what is wrong is not one window: see `NOT_OF_A_CLIP`.
        """
        for piece in self.source.pieces():
            for window in self._heard(piece):
                yield from self._begin(window)
            self._drop_waiting(self._longest_s)
            yield from self._answers(wait=self._waits)
            watch()
            if self._stopped:
                break
        for window in self.ear.end():
            yield from self._begin(window)
        yield from self._answers(wait=True)

    def _heard(self, piece: Piece) -> Iterator[Window]:
        if piece.lost_s:
            yield from self.ear.end(piece.lost_s)
        self.seconds += piece.lost_s + len(piece.samples) / self._rate_hz
        if len(piece.samples):
            yield from self.ear.hear(piece.samples)
        if piece.ends:
            yield from self.ear.end()

    def _begin(self, window: Window) -> Iterator[Heard]:
        """Ask for a caption; another one is let go of where too many wait."""
        ends = {name: min(getattr(window, name), round(self.seconds, 3)) for name in ("end_s", "sounded_s")}
        window = replace(window, **ends)  # the last tick is filled up
        yield from self._answers(wait=False)
        if window.embeddings is None:
            self._asked.append((window, None))
            return
        self._drop_waiting(-math.inf)
        self._asked.append((window, self._ask(window)))
        yield from self._answers(wait=self._waits)

    def _drop_waiting(self, longest_s: float) -> None:
        """Let go of windows that ended longer ago and wait for another's caption, which is in the making."""
        making, now_s = False, self.seconds + self.source.behind_s()
        for place, (window, ticket) in enumerate(self._asked):
            if ticket is not None and making and not self._waits and now_s - window.end_s > longest_s:
                ticket.cancel()
                self._asked[place] = (window, None)
            making = making or ticket is not None

    def _answers(self, *, wait: bool) -> Iterator[Heard]:
        while self._asked and (wait or (ticket := self._asked[0][1]) is None or ticket.done()):
            window, ticket = self._asked.popleft()
            if ticket is None:
                yield self._counted(Heard(window))
                continue
            try:
                caption = ticket.result()
            except NOT_OF_A_CLIP:
                raise
            except DashengEdgeError as error:
                yield self._counted(Heard(window, error=error))
                continue
            late_s = None if self._waits else max(0.0, self.seconds + self.source.behind_s() - window.sounded_s)
            yield self._counted(Heard(window, caption, repeats=self._repeats(window, caption.text), late_s=late_s))

    def _repeats(self, window: Window, text: str) -> bool:
        """Whether the same sounds were said of what came just before, in any order and words."""
        sounds = frozenset(label.key for label in labels(text))
        repeats = sounds == self._said and window.start_s < self._said_until_s + REPEAT_S
        self._said, self._said_until_s = sounds, window.end_s
        return repeats

    def _counted(self, heard: Heard) -> Heard:
        self.tally.add(heard)
        return heard
