"""Progress of a download. No heavy import: the command line begins its bar before the hub is asked."""

from __future__ import annotations

from dasheng_edge.runtime.names import printable


class PullProgress:
    """Who is told how a download goes on; this class tells nobody."""

    def begin(self, files: int, total_bytes: int) -> None:
        """So much is to be there in the end."""

    def advance(self, amount_bytes: int) -> None:
        """So much more is there; what an earlier attempt left counts."""

    def file_done(self) -> None:
        """One more file is there and is what the hub says."""

    def wait(self, reason: str, seconds: float) -> None:
        """The connection broke, and there is another attempt in so many seconds."""


class PullBar(PullProgress):
    """Progress on stderr: one bar for all bytes and files, or a line for each file if that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (  # fmt: skip
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = TextColumn("{task.fields[files]}"), BarColumn(), DownloadColumn()
        speed = TransferSpeedColumn(), TimeRemainingColumn()
        self._console = Console(stderr=True)
        quiet = not self._console.is_terminal
        self._bar = Progress(*columns, *speed, console=self._console, transient=True, disable=quiet)
        self._task = self._bar.add_task("", total=None, files="asking the hub")
        self._files, self._done = 0, 0
        self._bytes = self._total_bytes = 0

    def __enter__(self) -> PullBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, files: int, total_bytes: int) -> None:
        self._files, self._done = files, 0
        self._bytes, self._total_bytes = 0, total_bytes
        self._bar.update(self._task, total=total_bytes, files=f"0/{files} files")
        self._log()

    def advance(self, amount_bytes: int) -> None:
        self._bytes += amount_bytes
        self._bar.advance(self._task, amount_bytes)

    def file_done(self) -> None:
        self._done += 1
        self._bar.update(self._task, files=f"{self._done}/{self._files} files")
        self._log()

    def wait(self, reason: str, seconds: float) -> None:
        self._line(f"{reason}; trying again in {seconds:g} s")

    def _log(self) -> None:
        if not self._console.is_terminal:
            mb, total_mb = self._bytes / 1e6, self._total_bytes / 1e6
            self._line(f"{self._done}/{self._files} files, {mb:,.1f} of {total_mb:,.1f} MB")

    def _line(self, text: str) -> None:
        self._console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
