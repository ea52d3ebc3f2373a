"""Rows to stdout, as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import typer

from dasheng_edge.runtime.output.caption_formats import CaptionFormat, LineFormat, TextFormat
from dasheng_edge.runtime.output.rows import CaptionRow

from .inputs import Input
from .pieces import Piece


class PrintedResults:
    """A line for each row; errors and warnings are said beside. With `stream`, text is printed as it comes.

    What is no format of lines is printed when all is there.
    """

    def __init__(self, kind: CaptionFormat, say: Callable[[str], None], *, stream: bool = False) -> None:
        self._kind, self._say, self._stream = kind, say, stream
        self._rows: list[CaptionRow] = []
        self.failed = 0
        if isinstance(kind, LineFormat) and (head := kind.head()):
            typer.echo(head)

    def begin(self, item: Input) -> int:  # noqa: ARG002  # as `Results` has it
        return 0

    def known(self, item: Input, number: int) -> None:
        """Nothing is kept."""

    def keep(self, piece: Piece, row: CaptionRow) -> None:
        """Lines come in their order."""

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def take(self, piece: Piece, row: CaptionRow) -> None:  # noqa: ARG002  # as above
        if not isinstance(self._kind, LineFormat):
            self._rows.append(row)
        elif row.error is None and not self._stream:  # or its pieces were printed
            typer.echo(self._kind.line(row))
        elif row.error is not None and (line := self._kind.line(row)):
            typer.echo(line)
        if row.error is not None:
            self.failed += 1
            self._say(f"error: {row.error}")
        for warning in row.warnings:
            self._say(f"warning: {row.audio}: {warning}")

    def complete(self) -> None:
        """All rows came."""
        if not isinstance(self._kind, LineFormat) and not self.failed:
            typer.echo("".join(self._kind.document(self._rows)), nl=False)

    def show(self, piece: Piece, pieces: Iterator[str]) -> None:
        """Read an answer to its end, with `stream` printing what comes."""
        text, started = TextFormat(single_file=self._kind.single_file), False
        times = None if (window := piece.window) is None else (window.start_s, window.end_s)
        try:
            for part in map(text.piece, pieces):
                if self._stream:
                    typer.echo(part if started else text.label(piece.item.audio, times) + part, nl=False)
                    sys.stdout.flush()
                    started = True
        finally:
            if started:
                typer.echo()
