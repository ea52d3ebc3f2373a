"""What subtitles are made of, and what comes out.

    from dasheng_edge.runtime.output.subtitle_formats import srt
    from dasheng_edge.runtime.subtitles.cue import Window
    from dasheng_edge.runtime.subtitles.cues import cues

    print(srt(cues([Window(0.0, 10.0, "A dog barks while an engine runs.")], style="sdh")))

Times are in seconds; those of windows and cues are times of the file, those of changes of their window.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S, HOP_S = 4.0, 2.0  # for subtitles: short ones tell when


@dataclass(frozen=True)
class Change:
    """A moment at which what is heard changes."""

    time_s: float  # from the start of the window
    strength: float  # above 0; 1 is a plain beginning of a sound, see `changes`


@dataclass(frozen=True)
class Window:
    """What was said about a part of a file, and the changes in it, if they were asked for."""

    start_s: float
    end_s: float
    text: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Cue:
    """One or two lines that are shown from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]
