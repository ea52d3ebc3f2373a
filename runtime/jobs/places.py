"""Where the outputs of inputs are: mirrored in a folder, or beside each input; never two in one place."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from pathlib import Path

from dasheng_edge.runtime.clips.clips import AUDIO_SUFFIXES

from .inputs import Input
from .ledger import Claim

_FILMS = [case(suffix) for suffix in sorted(AUDIO_SUFFIXES) for case in (str.lower, str.upper)]
MAX_NAME_BYTES = 200  # of a file's name, which may have 255 with its ending and what temporary names add


class Places:
    """Paths of outputs without their endings, which stay those of an input; `known` are claims of earlier runs.

    Two inputs of one path get two: a.wav has "a", a.mp3 beside it "a.mp3", and the next ones "a.mp3 (2)" and so on, in
    the order in which they come. Beside inputs, where no ledger says whose "a" was, both have their whole names, and so
    has an input beside which there is another's, with one of the endings `theirs`. Paths are one if they are on a
    system that does not tell case, or accents written in two ways.
    """

    def __init__(
        self, root: Path | None, known: Iterable[tuple[str, Claim]] = (), *, inputs: Iterable[Input] = (),
        theirs: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Below `root`, or beside each input; claims with the sources of their inputs; `inputs` that are to come."""
        self.root, self._theirs = root, theirs
        self._shared = set[str]()  # paths that several inputs want
        first: dict[str, str] = {}
        for item in inputs if root is None else ():
            path = _folded(next(self._wanted(item)))
            if first.setdefault(path, item.source) != item.source:
                self._shared.add(path)
        self._owners = {_folded(claim.output): (source, claim) for source, claim in known}
        self._taken: dict[str, str] = {}  # in this run, by which source

    def take(self, item: Input, key: str) -> tuple[str, tuple[str, ...]]:
        """The path of its outputs, and the formats that earlier runs wrote there."""
        source = item.source
        for place, output in enumerate(self._wanted(item)):
            folded = _folded(output)
            if place == 0 and self._taken.get(folded) != source and self._is_anothers(item, output):
                continue
            owner, claim = self._owners.get(folded, (source, Claim(key, output)))
            if self._taken.get(folded, source) == source and (owner == source or claim.key == key):
                self._taken[folded] = source
                return output, claim.formats
        raise AssertionError

    def path(self, output: str, suffix: str) -> Path:
        """A file of outputs."""
        return Path(f"{output}{suffix}") if self.root is None else self.root / f"{output}{suffix}"

    def _is_anothers(self, item: Input, output: str) -> bool:
        """Beside an input: whether others want this path, or had it and are still there."""
        if self.root is not None:
            return False
        if _folded(output) in self._shared:
            return True
        own = Path(item.path).suffix
        return any(os.path.lexists(output + ending) for ending in self._theirs) and any(
            Path(output + ending).is_file() for ending in _FILMS if ending.lower() != own.lower()
        )

    def _wanted(self, item: Input) -> Iterator[str]:
        folder, _, name = item.output.rpartition("/")
        if self.root is None:
            folder = str(Path(item.path).parent)
        path = os.path.join(*filter(None, (folder, _short(name))))  # noqa: PTH118  # a name of outputs is a text
        yield path
        path += Path(item.path).suffix
        yield path
        yield from (f"{path} ({number})" for number in count(2))


def _folded(output: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", output).casefold())


def _short(name: str) -> str:
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{os.fsencode(name)[: MAX_NAME_BYTES - 9].decode('utf-8', 'ignore')}-{digest}"
