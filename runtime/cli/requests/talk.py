"""A conversation in a terminal: lines that are typed, and what becomes of each."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import typer

from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError
from dasheng_edge.runtime.names import printable

if TYPE_CHECKING:
    from dasheng_edge.runtime.audio.read import ReadAudio
    from dasheng_edge.runtime.engine.conversation import ChatOptions, Message, Part, Piece
    from dasheng_edge.runtime.engine.engine import Engine

PROMPT = "> "
HELP = (
    "/audio FILE  add a file to your next question; an empty line then asks the bundle's own",
    "/new         forget all and begin anew",
    "/help        show this",
    "/quit        end, as Ctrl-D does; Ctrl-C stops an answer",
)
_LOOK_S = 0.2  # after which Ctrl-C is seen where waiting is not interrupted


def typed_line() -> str | None:
    """A line from a terminal, where it can be edited and lines before it recalled, or from whatever stdin is.

    None: there are no more.
    """
    if sys.stdin is None:
        return None
    if not (_at_terminal() and sys.stdout.isatty()):
        if _at_terminal():
            typer.echo(PROMPT, nl=False, err=True)
        return sys.stdin.readline() or None
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  # `input` edits by it
    try:
        return input(PROMPT)
    except EOFError:
        typer.echo()
        return None


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


class Talk:
    """What was said so far, and the next question in the making."""

    def __init__(
        self, engine: Engine, options: ChatOptions, beginning: Sequence[Message], say: Callable[[str], None]
    ) -> None:
        self._engine, self._options, self._say = engine, options, say
        self._beginning = list(beginning)
        self._messages = list(beginning)
        self._clips: list[ReadAudio] = []  # of the next question
        self._ok = True

    def run(self, read: Callable[[], str | None]) -> bool:
        """Take lines until there are no more, or /quit; whether all went well, or a person saw that it did not."""
        if _at_terminal():
            self._say(f"{self._engine.bundle.manifest.name}: ask, /audio FILE adds audio, /help says more, Ctrl-D ends")
        while True:
            try:
                if (line := read()) is None or not self._take(line.strip()):
                    return self._ok or _at_terminal()
            except KeyboardInterrupt:  # noqa: PERF203  # of one line
                if not _at_terminal():
                    raise
                typer.echo()
                self._say("(/quit or Ctrl-D ends)")

    def _take(self, line: str) -> bool:
        """Do what a line says; False if that is to end."""
        command, _, rest = line.partition(" ")
        if command == "/audio":
            self.add(rest.strip())
        elif command == "/new":
            self._messages, self._clips = [*self._beginning], []
        elif command == "/help":
            for text in HELP:
                self._say(text)
        elif command.startswith("/") and command != "/quit":
            self._failed(f"there is no {command}; /help says what there is")
        elif command != "/quit" and (line or self._clips):
            self._ask(line)
        return command != "/quit"

    def add(self, name: str) -> None:
        """Have a file in the next question."""
        if not name:
            self._failed("/audio needs a file, as in /audio recording.wav")
            return
        try:
            clip = self._read(_path(name))
        except DashengEdgeError as error:
            self._failed(str(error))
            return
        self._clips.append(clip)
        seconds = len(clip.samples) / self._rate_hz
        self._say(f"{clip.name}: {seconds:.1f} s, for your next question")
        for warning in clip.warnings:
            self._say(f"warning: {clip.name}: {warning}")

    @property
    def _rate_hz(self) -> int:
        return self._engine.bundle.manifest.front_end.sample_rate_hz

    def _read(self, path: Path) -> ReadAudio:
        """All of a file, if the decoder has room for so much."""
        import numpy as np

        from dasheng_edge.runtime.audio.read import ReadAudio, read_audio

        most = self._engine.bundle.manifest.front_end.samples_for_tokens(self._engine.parts.decoder.context_length)
        blocks, count = [], 0
        stream = read_audio(path, sample_rate_hz=self._rate_hz)
        for block in stream:
            blocks.append(block)
            count += len(block)
            if count > most:
                longest = f"{most / self._rate_hz:.0f} s"
                raise AudioTooLongError(f"{path} is longer than {longest}, which is all that the model takes; cut it")
        return ReadAudio(np.concatenate(blocks), 0.0, str(path), stream.warnings)

    def _ask(self, question: str) -> None:
        from dasheng_edge.runtime.engine.conversation import Message

        facts = self._engine.bundle.prompt_facts
        clips: list[Part] = [*self._clips]
        text = question or facts.prompt
        asked = Message("user", [*clips, text] if facts.audio_first else [text, *clips])
        pieces: SimpleQueue[Piece | None] = SimpleQueue()
        try:
            ticket = self._engine.chat([*self._messages, asked], self._options, on_piece=pieces.put)
        except DashengEdgeError as error:
            self._failed(str(error))
            return
        ticket.add_done_callback(lambda _: pieces.put(None))
        try:
            answer, stopped = self._shown(pieces)
            if not stopped:
                for warning in ticket.result().warnings:
                    self._say(f"warning: {warning}")
        except DashengEdgeError as error:
            self._failed(str(error))
            return
        finally:
            ticket.cancel()
        if answer or not stopped:  # else the question is asked anew
            self._messages += [asked, Message("assistant", answer)]
            self._clips = []

    def _shown(self, pieces: SimpleQueue[Piece | None]) -> tuple[str, bool]:
        """Print an answer as it comes; what came, and whether Ctrl-C ended it."""
        text = ""
        try:
            while True:
                try:
                    piece = pieces.get(timeout=_LOOK_S)
                except Empty:
                    continue
                if piece is None:
                    break
                text += piece.text
                typer.echo(printable(piece.text, keep="\n"), nl=False)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not _at_terminal():
                raise
            typer.echo(" ...")
            return text, True
        if text:
            typer.echo()
        return text, False

    def _failed(self, why: str) -> None:
        self._ok = False
        self._say(f"error: {why}")


def _path(typed: str) -> Path:
    """A file as people name it in a line: as it is, or with the quotes and backslashes of a shell."""
    path = Path(os.path.expanduser(typed))  # noqa: PTH111  # raises nothing
    if not os.path.lexists(path):
        with suppress(ValueError):
            words = shlex.split(typed)
            if len(words) == 1:
                return Path(os.path.expanduser(words[0]))  # noqa: PTH111  # as above
    return path
