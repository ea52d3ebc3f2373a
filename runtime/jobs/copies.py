"""Copies of videos with a track of subtitles, among the outputs of a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.output.caption_formats import SPEECH, SubtitleFormat
from dasheng_edge.runtime.output.rows import CaptionRow

from .inputs import SUBTITLED

MUX = "mux"  # among formats
TITLE, SPEECH_TITLE = "Sounds", "Sounds and speech"  # by which players name tracks


@dataclass(frozen=True)
class Mux:
    """Copies of videos with a track of subtitles."""

    subtitles: SubtitleFormat
    language: str = "en"

    @property
    def look(self) -> str:
        """What a copy depends on beside rows."""
        return f"{MUX} {self.subtitles.look} {self.language}"

    def suffix(self, video: str) -> str:
        """Of the copy's name."""
        return f"{SUBTITLED}{Path(video).suffix}"

    def write(self, video: str, rows: Iterable[CaptionRow], out: Path) -> list[str]:
        """Write a copy; a sentence for each thing that could not be copied.

        Raises:
            SubtitleError: it is no video that takes subtitles.
            OutputWriteError: it cannot be written.
        """
        from dasheng_edge.runtime.subtitles.mux import mux

        rows = [*rows]
        title = SPEECH_TITLE if any(SPEECH in (row.answers or ()) for row in rows) else TITLE
        return mux(video, self.subtitles.cues(rows), out, language=self.language, title=title, overwrite=True)
