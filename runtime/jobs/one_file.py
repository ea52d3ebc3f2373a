"""One file for all inputs, in their order."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.errors import OutputExistsError
from dasheng_edge.runtime.output.caption_formats import CaptionFormat
from dasheng_edge.runtime.output.rows import CaptionRow

from .index import Index
from .inputs import Input
from .ledger import DropLine, ErrorLine, FileLine, Ledger, WrittenLine
from .places import Places
from .progress import Progress
from .written import Known, WrittenResults

_COMPLETE, _LAST_BYTES = ("complete",), 1 << 20  # looks of the file without errors; its line is in these


class OneFileResults(WrittenResults):
    """One file for all inputs, written when all are done; until then, the ledger holds all."""

    def __init__(
        self, ledger: Ledger, places: Places, document: CaptionFormat, partial: PartialOutput, progress: Progress,
        *, overwrite: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(ledger, places, {}, progress, overwrite=overwrite)
        self._document, self._partial = document, partial
        self._numbers = Index()  # of inputs, by sources
        self._came = array("q")  # by numbers: the place of an input's line, or of an error's
        self._order, self._names = array("I"), array("I")  # numbers, and how much of sources is what rows call them

    def begin(self, item: Input) -> int | None:
        if (number := self._numbers[item.source]) < 0:
            number = self._numbers[item.source] = len(self._came)
            self._came.append(-1)
        self._order.append(number)
        self._names.append(len(item.audio))
        return super().begin(item)

    def _make(self, item: Input, known: Known) -> None:
        """All together, in the end."""

    def _finish(self, item: Input, known: Known, *, anew: bool, copy: bool = False) -> None:  # noqa: ARG002  # as above
        self._came[self._numbers[item.source]] = self.ledger.place(item.source)
        self.progress.end(item, anew=anew, copy=copy)

    def _fail(self, item: Input, row: CaptionRow, known: Known | None = None) -> None:  # noqa: ARG002  # as above
        self._came[self._numbers[item.source]] = self.ledger.add(ErrorLine(row=row), sure=True)
        self.progress.fail(item, row)

    def complete(self) -> None:
        lost = {line.key for line in self.ledger.claims(but={*self._came}) if self.ledger.done(line.key)}
        here = map(self.ledger.line_at, self._came if lost else ())
        lost.difference_update(line.key for line in here if isinstance(line, FileLine))
        if lost and self._partial.out.exists() and not self._overwrite:
            raise OutputExistsError(
                f"{self._partial.out} holds captions of other inputs than these ({len(lost)} are missing now); pass "
                "--overwrite to leave them out, or choose another --out: what is done is stored"
            )
        for key in lost:
            self.ledger.add(DropLine(key=key))
        with self._partial.write_errors():
            with self._partial.path.open("w", encoding="utf-8", newline="") as file:
                file.writelines(self._document.document(self._rows()))
            looks = ("errors",) if self.progress.tally.errors else _COMPLETE
            # Before it has its name: whenever a run is killed, what has that name is known to be ours.
            content = sha256_of(self._partial.path)
            self.ledger.add(WrittenLine(output=content, key=content, looks=looks), sure=True)
            self._partial.move()

    def _rows(self) -> Iterator[CaptionRow]:
        for number, length in zip(self._order, self._names, strict=True):
            line = self.ledger.line_at(self._came[number])
            if isinstance(line, ErrorLine):
                yield line.row
            elif isinstance(line, FileLine):
                yield from self.ledger.rows(line.key, line.source[:length])


def wrote(ledger: Ledger, file: Path) -> bool:
    """Whether one file for all inputs is as an earlier run left it, so that it may be replaced."""
    return file.is_file() and ledger.written[sha256_of(file)] >= 0


def is_complete(path: Path) -> bool:
    """Whether the ledger of one file for all inputs ends with that written, without an error. Raises nothing."""
    with suppress(OSError, ValueError, LookupError, TypeError, StopIteration), path.open("rb") as file:
        file.seek(-min(_LAST_BYTES, path.stat().st_size), os.SEEK_END)
        lines = map(json.loads, reversed(file.readlines()))
        line = next(line for line in lines if line["kind"] != "job")  # of runs that were refused
        return bool(line["kind"] == "written" and tuple(line["looks"]) == _COMPLETE)
    return False
