"""Where captions go, as options say: to stdout, to a file for each input, or to one for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dasheng_edge.runtime.output.caption_formats import (
    CAPTION_FORMATS,
    CaptionFormat,
    LineFormat,
    SrtFormat,
    format_names,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.jobs.job import Files
    from dasheng_edge.runtime.languages.language import Language


@dataclass(frozen=True)
class Target:
    """Where captions go, and how they look."""

    formats: list[str]
    style: str
    out: Path | None
    to_files: bool
    mux: Language | None = None  # of subtitles in copies of videos
    speech: Language | None = None  # that is transcribed

    @classmethod
    def of(
        cls,
        out: str | None,
        typed: str | None,
        style: str,
        mux: Language | None,
        speech: Language | None,
        *,
        as_json: bool,
        stream: bool,
    ) -> Target:
        """What options say.

        Raises:
            BadParameter: they contradict each other.
        """
        formats = format_names(typed) if typed else []
        stdout = out == "-"
        path = None if out is None or stdout else Path(out)
        if path is not None and not formats and (name := _format_of_file(path)):
            formats = [name]
        lines = len(formats) < 2 and all(issubclass(CAPTION_FORMATS[name], LineFormat) for name in formats)
        to_files = path is not None or (not stdout and not lines) or mux is not None
        if not to_files and as_json and formats not in ([], ["json"]):
            raise typer.BadParameter(f"--json is --format json, but --format {typed} is given too; choose one of them")
        if not to_files and len(formats) > 1:
            raise typer.BadParameter(f"--format {typed} are several files; name a folder with --out")
        if mux is not None and (stdout or (path is not None and _format_of_file(path))):
            raise typer.BadParameter(f"--mux writes copies of videos, and --out {out} is one file; name a folder")
        if mux is None:
            formats = formats or (["json"] if as_json and not to_files else ["txt"])
        if stream and (to_files or formats != ["txt"]):
            other = "--json" if as_json else f"--format {formats[0]}" if not to_files else "--out"
            raise typer.BadParameter(f"--stream prints text as it comes, {other} whole captions; choose one of them")
        return cls(formats, style, path, to_files, mux, speech)

    @property
    def subtitles(self) -> bool:
        """Whether some are written."""
        return self.mux is not None or not all(issubclass(CAPTION_FORMATS[name], LineFormat) for name in self.formats)

    def check(self, *, single_file: bool) -> None:
        """Refuse subtitles of several files in one, and a name that says otherwise than --format."""
        one = self.out is None if not self.to_files else self._file is not None
        if one and self.subtitles and not single_file:
            raise typer.BadParameter("each input has its own subtitles, and --out is one file; name a folder")
        if self._file is not None and self.formats != [self._file]:
            raise typer.BadParameter(
                f"--out {self.out} is one file of {self._file}, --format names {', '.join(self.formats)}; name a folder"
            )

    @property
    def _file(self) -> str | None:
        """The format of the one file for all inputs, if there is one."""
        return None if self.out is None else _format_of_file(self.out)

    def printed(self, *, single_file: bool) -> CaptionFormat:
        """The format on stdout."""
        return self._format(self.formats[0], single_file=single_file)

    def _format(self, name: str, *, single_file: bool) -> CaptionFormat:
        language = self.speech.tag if self.speech is not None else "en"
        return CAPTION_FORMATS[name](single_file=single_file, style=self.style, language=language)

    def files(self, *, single_file: bool, overwrite: bool, resume: bool) -> Files:
        """The files to write: one where --out is named like one, else one for each input."""
        from dasheng_edge.runtime.jobs.copies import Mux
        from dasheng_edge.runtime.jobs.job import Files

        is_file = self._file is not None
        single = single_file or not is_file
        kinds = {name: self._format(name, single_file=single) for name in self.formats}
        mux = None if self.mux is None else Mux(SrtFormat(style=self.style), self.mux.tag)
        folder, file = (None, self.out) if is_file else (self.out, None)
        return Files(kinds, folder, file, overwrite=overwrite, resume=resume, mux=mux)


def parse_formats(typed: str) -> str:
    """The same, if all formats in it are known."""
    try:
        format_names(typed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return typed


def _format_of_file(path: Path) -> str | None:
    """The format that a file's name ends in; None for a folder."""
    if path.is_dir():
        return None
    return next((name for name, kind in CAPTION_FORMATS.items() if kind.suffix == path.suffix.lower()), None)
