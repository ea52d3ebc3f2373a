"""Where captions go, as options say: to stdout, to a file for each input, or to one for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dasheng_edge.runtime.output.caption_formats import CAPTION_FORMATS, CaptionFormat, LineFormat, format_names

if TYPE_CHECKING:
    from dasheng_edge.runtime.jobs.job import Files


@dataclass(frozen=True)
class Target:
    """Where captions go, and how they look."""

    formats: list[str]
    style: str
    out: Path | None
    to_files: bool

    @classmethod
    def of(cls, out: str | None, typed: str | None, style: str, *, as_json: bool, stream: bool, watch: bool) -> Target:
        formats = format_names(typed) if typed else []
        stdout = out == "-"
        path = None if out is None or stdout else Path(out)
        if path is not None and not formats and (name := _format_of_file(path)):
            formats = [name]
        lines = len(formats) < 2 and all(issubclass(CAPTION_FORMATS[name], LineFormat) for name in formats)
        to_files = path is not None or (not stdout and (watch or not lines))
        if not to_files and as_json and formats not in ([], ["json"]):
            raise typer.BadParameter(f"--json is --format json, but --format {typed} is given too; choose one of them")
        if not to_files and len(formats) > 1:
            raise typer.BadParameter(f"--format {typed} are several files; name a folder with --out")
        formats = formats or (["json"] if as_json and not to_files else ["txt"])
        if stream and (to_files or formats != ["txt"]):
            other = "--json" if as_json else f"--format {formats[0]}" if not to_files else "--out and --watch"
            raise typer.BadParameter(f"--stream prints text as it comes, {other} whole captions; choose one of them")
        return cls(formats, style, path, to_files)

    @property
    def subtitles(self) -> bool:
        """Whether some are written."""
        return not all(issubclass(CAPTION_FORMATS[name], LineFormat) for name in self.formats)

    def printed(self, *, single_file: bool) -> CaptionFormat:
        """The format on stdout."""
        if self.subtitles and not single_file:
            raise typer.BadParameter("--out - is one file, and each input has its own subtitles; name a folder")
        return CAPTION_FORMATS[self.formats[0]](single_file=single_file, style=self.style)

    def files(self, *, single_file: bool, overwrite: bool, resume: bool) -> Files:
        """The files to write: one where --out is named like one, else one for each input."""
        from dasheng_edge.runtime.jobs.job import Files

        kinds = {name: CAPTION_FORMATS[name](style=self.style) for name in self.formats}
        if self.out is None or (name := _format_of_file(self.out)) is None:
            return Files(kinds, self.out, overwrite=overwrite, resume=resume)
        if self.formats != [name]:
            raise typer.BadParameter(
                f"--out {self.out} is one file of {name}, --format names {', '.join(self.formats)}; name a folder"
            )
        if self.subtitles and not single_file:
            raise typer.BadParameter(
                f"--out {self.out} is one file, and each input has its own subtitles; name a folder"
            )
        one = CAPTION_FORMATS[name](single_file=single_file, style=self.style)
        return Files({name: one}, file=self.out, overwrite=overwrite, resume=resume)


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
