"""Where the outputs of inputs are: mirrored in a folder, or beside each input; never two in one place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count
from pathlib import Path

from dasheng_edge.runtime.clips.clips import AUDIO_SUFFIXES

from .index import Index, digest
from .inputs import Input
from .ledger import FileLine, folded

_FILMS = [case(suffix) for suffix in sorted(AUDIO_SUFFIXES) for case in (str.lower, str.upper)]
MAX_NAME_BYTES = 200  # of a file's name, which may have 255 with its ending and what temporary names add


class Places:
    """Paths of outputs without their endings, which stay those of an input; `owner` tells whose a path is.

    Two inputs of one path get two: a.wav has "a", a.mp3 beside it "a.mp3", and the next ones "a.mp3 (2)" and so on, in
    the order in which they come. Beside inputs, where no ledger says whose "a" was, both have their whole names, and so
    has an input beside which there is another's, with one of the endings `theirs`. Paths are one if they
    are `folded`.
    """

    def __init__(
        self,
        root: Path | None,
        owner: Callable[[str, str], FileLine | None] = lambda *_: None,
        *,
        inputs: Iterable[Input] = (),
        theirs: Collection[str] = (),
    ) -> None:
        """Below `root`, or beside each input; `owner` of a path, if a source wants it; `inputs` that are to come."""
        self.root, self._owner, self._theirs = root, owner, theirs
        self._shared = set[str]()  # paths that several inputs want
        self._taken = Index()  # in this run, by which source
        first = Index()
        for item in inputs if root is None else ():
            path, source = folded(next(self._wanted(item))), digest(item.source)
            if first[path] not in (-1, source):
                self._shared.add(path)
            first[path] = source

    def take(self, item: Input, key: str) -> tuple[str, tuple[str, ...]]:
        """The path of its outputs, and the formats that earlier runs wrote there."""
        source = digest(item.source)
        for place, output in enumerate(self._wanted(item)):
            path = folded(output)
            taken = self._taken[path]
            if place == 0 and taken != source and self._is_anothers(item, output):
                continue
            if taken in (-1, source):
                owner = self._owner(output, item.source)
                if owner is None or owner.source == item.source or owner.key == key:
                    self._taken[path] = source
                    return output, owner.formats if owner is not None else ()
        raise AssertionError

    def path(self, output: str, suffix: str) -> Path:
        """A file of outputs."""
        return Path(f"{output}{suffix}") if self.root is None else self.root / f"{output}{suffix}"

    def _is_anothers(self, item: Input, output: str) -> bool:
        """Beside an input: whether others want this path, or had it and are still there."""
        if self.root is not None:
            return False
        if folded(output) in self._shared:
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


def _short(name: str) -> str:
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{os.fsencode(name)[: MAX_NAME_BYTES - 9].decode('utf-8', 'ignore')}-{digest}"
