"""Where the outputs of inputs are: mirrored in a folder, or beside each input; never two in one place."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from .inputs import Input
from .ledger import Claim

MAX_NAME_BYTES = 200  # of a file's name, which may have 255 with its ending and what temporary names add


class Places:
    """Paths of outputs without their endings, which stay those of an input; `known` are claims of earlier runs.

    Two inputs of one path get two: a.wav has "a", a.mp3 beside it "a.mp3", and the next ones "a.mp3 (2)" and so on, in
    the order in which they come. Paths are one if they are on a system that does not tell case, or accents written in
    two ways.
    """

    def __init__(self, root: Path | None, known: Iterable[tuple[str, Claim]] = ()) -> None:
        """Below `root`, or beside each input; claims with the sources of their inputs."""
        self.root = root
        self._owners = {_folded(claim.output): (source, claim) for source, claim in known}
        self._taken: dict[str, str] = {}  # in this run, by which source

    def take(self, item: Input, key: str) -> tuple[str, tuple[str, ...]]:
        """The path of its outputs, and the formats that earlier runs wrote there."""
        source = item.source
        for output in self._wanted(item):
            folded = _folded(output)
            owner, claim = self._owners.get(folded, (source, Claim(key, output)))
            if self._taken.get(folded, source) == source and (owner == source or claim.key == key):
                self._taken[folded] = source
                return output, claim.formats
        raise AssertionError

    def path(self, output: str, suffix: str) -> Path:
        """A file of outputs."""
        return Path(f"{output}{suffix}") if self.root is None else self.root / f"{output}{suffix}"

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
