"""Rows to stdout, as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import typer

from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.output.caption_formats import LineFormat, TextFormat

from .inputs import Input
from .pieces import Piece


class PrintedResults:
    """A line for each row; errors and warnings are said beside. With `stream`, text is printed as it comes."""

    def __init__(self, lines: LineFormat, say: Callable[[str], None], *, stream: bool = False) -> None:
        self._lines, self._say, self._stream = lines, say, stream
        self.failed = 0
        if head := lines.head():
            typer.echo(head)

    def begin(self, _: Input) -> int:
        return 0

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def take(self, piece: Piece, result: Caption | DashengEdgeError) -> None:
        row = piece.row(result)
        if not (self._stream and row.error is None):  # its pieces were printed
            line = self._lines.line(row)
            if line or row.error is None:
                typer.echo(line)
        if row.error is not None:
            self.failed += 1
            self._say(f"error: {row.error}")
        for warning in row.warnings:
            self._say(f"warning: {row.audio}: {warning}")

    def show(self, piece: Piece, pieces: Iterator[str]) -> None:
        """Read an answer to its end, with `stream` printing what comes."""
        text, started = TextFormat(single_file=self._lines.single_file), False
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
