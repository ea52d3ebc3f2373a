"""How far a job is: for people on a terminal or in a log, and as events for machines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from dasheng_edge.runtime.names import fitted, printable, printable_json, shortened
from dasheng_edge.runtime.output.rows import CaptionRow

from .inputs import Input

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .estimate import Estimate

# What the summary calls kinds of errors; their messages say more.
_WORDS = {
    "AudioNotFoundError": "not there", "AudioDecodeError": "not readable as audio", "AudioEmptyError": "without sound",
    "AudioTooLongError": "too long", "AudioError": "not usable as audio", "ClipsError": "with nothing to caption",
    "OutputExistsError": "whose output is there already", "OutputWriteError": "whose output cannot be written",
    "SubtitleError": "that take no subtitles", "MemoryShortError": "for want of memory",
    "ClipFailedError": "for an unknown reason", "DecoderError": "in the model", "DeviceError": "on the device",
}  # fmt: skip
LINE_EVERY_S = 5.0  # in a log
MAX_BAR = 60  # columns
MIN_ELAPSED_S = 2.0  # before, nothing can be said of the time that is left


@dataclass
class Tally:
    """What a job has done, and what is left."""

    files: int | None = None  # in all, if that is known
    size_bytes: int = 0  # of their files
    done: int = 0  # that were captioned now
    reused: int = 0  # that were captioned before, or as copies of others
    copies: int = 0  # of others in this run, among these
    errors: Counter[str] = field(default_factory=Counter)  # by their kind
    audio_s: float = 0.0  # that was captioned now
    last: str = ""  # caption
    start: float = field(default_factory=monotonic)
    _ended_bytes: int = 0
    _reused_bytes: int = 0
    _under_way: tuple[float, float, float | None, int] = (0.0, 0.0, None, 0)  # seconds before, to here, in all; bytes
    _source: str = ""  # of the file that these are of

    @property
    def ended(self) -> int:
        """Files that nothing is to be done about any more."""
        return self.done + self.reused + self.errors.total()

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return monotonic() - self.start

    @property
    def speed(self) -> float:
        """Seconds of audio a second."""
        return self.audio_s / max(1e-3, self.elapsed_s)

    @property
    def part(self) -> float:
        """Of the file that is captioned in windows, how much is done: 0 to 1."""
        _, here_s, whole_s, _ = self._under_way
        return min(1.0, here_s / whole_s) if whole_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Time that is left, by the bytes of the files; None if nothing is known of it."""
        before_s, _, whole_s, size = self._under_way
        ended = self._ended_bytes + self.part * size
        worked = ended - self._reused_bytes - (before_s / whole_s * size if whole_s else 0.0)
        if self.files is None or worked <= 0 or self.elapsed_s < MIN_ELAPSED_S:
            return None
        return self.elapsed_s * max(0.0, self.size_bytes - ended) / worked

    def go_on(self, item: Input, span: tuple[float, float], whole_s: float | None, *, first: bool) -> None:
        """A window of a file is done; seconds in the file, `whole_s` of all of it, if that is known."""
        before_s = span[0] if first else self._under_way[0]
        self._under_way, self._source = (before_s, span[1], whole_s, item.size_bytes), item.source

    def end(self, item: Input, *, anew: bool, copy: bool = False) -> None:
        """A file is complete."""
        self._end(item)
        if anew:
            self.done += 1
        else:
            self.reused += 1
            self.copies += copy
            self._reused_bytes += item.size_bytes

    def _end(self, item: Input) -> None:
        self._ended_bytes += item.size_bytes
        if item.source == self._source:
            before_s, _, whole_s, size = self._under_way
            self._reused_bytes += round(before_s / whole_s * size) if whole_s else 0
            self._under_way, self._source = (0.0, 0.0, None, 0), ""

    def fail(self, item: Input, row: CaptionRow) -> None:
        """A file has no caption."""
        self._end(item)
        self.errors[row.error_type or ""] += 1

    def facts(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "files": self.files, "done": self.done, "reused": self.reused, "copies": self.copies,
            "errors": dict(self.errors),
            "audio_s": round(self.audio_s, 2), "elapsed_s": round(self.elapsed_s, 2),
            "left_s": None if (left := self.left_s) is None else round(left, 1),
        }  # fmt: skip

    def line(self, width: int | None = None) -> str:
        """For people; what there is no room for is left out, not cut."""
        of = "" if self.files is None else f"/{self.files}"
        parts = [f"{self.ended}{of} files"]
        _, here_s, whole_s, _ = self._under_way
        if here_s:
            parts.append(f"{_time(here_s)}{f'/{_time(whole_s)}' if whole_s else ''} of this one")
        if self.errors:
            parts.append(f"{self.errors.total()} failed")
        if (left := self.left_s) is not None:
            parts.append(f"{_time(left)} left")
        if self.audio_s:
            parts.append(f"{self.speed:.1f} min of audio a minute")
        while width is not None and len(parts) > 1 and len(", ".join(parts)) > width:
            parts.pop()
        return ", ".join(parts)

    def summary(self) -> str:
        """What became of all, a few words for each kind of error."""
        parts = [f"{self.done} captioned ({_time(self.audio_s)} of audio in {_time(self.elapsed_s)})"]
        if self.copies:
            parts.append("1 copy of another" if self.copies == 1 else f"{self.copies} copies of others")
        if before := self.reused - self.copies:
            parts.append(f"{before} done before")
        if self.errors:
            words = Counter[str]()
            for name, count in self.errors.items():
                words[_WORDS.get(name, "for another reason")] += count
            kinds = ", ".join(f"{count} {name}" for name, count in words.most_common())
            parts.append(f"{self.errors.total()} failed ({kinds})")
        return "; ".join(parts)


class View(Protocol):
    """Where progress is shown."""

    quiet: bool  # whether errors alone are

    def update(self, tally: Tally) -> None:
        """It went on."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Something that a machine may want to know."""

    def close(self) -> None:
        """Nothing more comes."""


class Progress:
    """What results tell of; it counts, and hands on to a view."""

    def __init__(
        self, view: View, *, out: Path | None = None, expected: tuple[int, int] | None = None,
        duration_of: Callable[[Input], float | None] = lambda item: item.duration_s,
    ) -> None:  # fmt: skip
        """`expected` files, and the bytes in them; `out` is where outputs are, if a later run can go on there."""
        self._duration_of = duration_of
        self.tally, self.view, self._out = Tally(), view, out
        self._source, self._window_end_s = "", 0.0  # of the last window
        self._whole_s: float | None = None  # of its file
        self._outputs: tuple[str, ...] = ()  # of the last input that is complete
        self._warned: set[str] = set()
        self._warned_of = ""
        if expected is not None:
            self.tally.files, self.tally.size_bytes = expected
        view.event("begin", {"files": self.tally.files, "bytes": self.tally.size_bytes})

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """It is over, or was stopped; says what became of all, and how to go on."""
        self.view.close()
        gone = (self.tally.files or 0) - self.tally.ended if kind is None else 0
        if self.tally.ended or kind is None:
            left = f"; {gone} gone since they were counted" if gone > 0 else ""
            self.view.say(self.tally.summary() + left + self._places())
        if kind is not None and self._out is not None and (self.tally.ended or self.tally.audio_s):
            self.view.say("note: what is done is stored; give the same command again to go on")
        self.view.event("end", self.tally.facts())

    def _places(self) -> str:
        """Where people find what was written; "" if nothing was."""
        if self._out is not None:
            return f"; see {self._out}"
        complete = self.tally.done + self.tally.reused
        return f"; see {', '.join(self._outputs)}" if complete == 1 else "; see beside the inputs" if complete else ""

    def foretell(self, told: Estimate) -> None:
        """What all of it will take."""
        self.note(str(told))
        self.view.event("estimate", {"seconds": round(told.seconds, 1), "memory_bytes": told.memory_bytes})

    def row(self, item: Input, row: CaptionRow) -> None:
        """There is a caption."""
        if row.start_s is None or row.end_s is None:
            self.tally.audio_s += row.audio_s
        else:  # of windows that overlap, what is new
            if first := self._source != item.source:
                self._whole_s, self._window_end_s = self._duration_of(item), row.start_s
            self.tally.audio_s += row.end_s - max(row.start_s, self._window_end_s)
            self._source, self._window_end_s = item.source, row.end_s
            span = row.start_s - item.offset_s, row.end_s - item.offset_s
            self.tally.go_on(item, span, self._whole_s, first=first)
        self.tally.last = " ".join(printable(row.text, keep="\n\t").split())
        if self._warned_of != item.source:
            self._warned, self._warned_of = set(), item.source
        for warning in row.warnings:
            if warning not in self._warned:  # a window's is mostly that of all
                self.view.say(f"warning: {item.audio}: {warning}")
                self._warned.add(warning)
        self.view.event("caption", {"row": row.fields()})
        self.view.update(self.tally)

    def end(self, item: Input, *, anew: bool, copy: bool = False, outputs: tuple[str, ...] = ()) -> None:
        """An input is complete, now or by an earlier run, or as a copy of another."""
        self.tally.end(item, anew=anew, copy=copy)
        self._outputs = outputs
        self.view.event("file", {"audio": item.audio, "reused": not anew, "outputs": outputs})
        self.view.update(self.tally)

    def fail(self, item: Input, row: CaptionRow) -> None:
        """An input has no caption."""
        self.tally.fail(item, row)
        self.view.say(f"error: {row.error}")
        self.view.event("error", row.fields())
        self.view.update(self.tally)

    def note(self, text: str) -> None:
        """What people should know."""
        self.view.say(f"note: {text}")


class QuietView:
    """Errors alone."""

    quiet = True

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def update(self, tally: Tally) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        if line.startswith("error: "):
            self._say(line)

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LinesView(QuietView):
    """A line every few seconds, for logs."""

    quiet = False

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._shown = monotonic()

    def update(self, tally: Tally) -> None:
        if monotonic() - self._shown >= LINE_EVERY_S:
            self._shown = monotonic()
            self._say(f"{tally.line()}: {tally.last}" if tally.last else tally.line())

    def say(self, line: str) -> None:
        self._say(line)


class EventsView(LinesView):
    """JSON objects on stdout, one on a line; stderr as for a log."""

    def update(self, tally: Tally) -> None:
        if monotonic() - self._shown >= LINE_EVERY_S:
            self.event("progress", tally.facts())
        super().update(tally)

    def event(self, name: str, facts: dict[str, Any]) -> None:
        sys.stdout.write(printable_json(json.dumps({"event": name, **facts}, ensure_ascii=False)) + "\n")
        sys.stdout.flush()


class BarView:
    """A bar on a terminal, how fast it goes, and the last caption below."""

    quiet = False

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
        self._drawn = 0.0

    def update(self, tally: Tally) -> None:
        if monotonic() - self._drawn >= 0.1:
            self._drawn = monotonic()
            self._live.start()  # nothing if it is
            self._live.update(self._drawing(tally), refresh=True)

    def _drawing(self, tally: Tally) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        lines = Table.grid()
        width = max(1, self._console.width - len("^C") - 1)  # which terminals write at Ctrl-C: no line may break by it
        if tally.files:
            lines.add_row(ProgressBar(tally.files, tally.ended + tally.part, width=min(width, MAX_BAR)))
        for shown, style in ((tally.line(width), ""), (tally.last, "dim")):
            if shown:
                lines.add_row(Text(shortened(shown, width), style=style, no_wrap=True))
        return lines

    def say(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text(fitted(printable(line), sys.stderr)), soft_wrap=True)  # a path stays in one piece

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        self._live.stop()


def _time(seconds: float) -> str:
    """A duration as "0:05" or "1:00:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
