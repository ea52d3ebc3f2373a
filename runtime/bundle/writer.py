"""Writes a bundle so that a folder under the final name is always complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from dasheng_edge.runtime.atomic_output import PartialOutput

from .bundle import MODEL_CARD, Bundle, sha256_of
from .manifest import MANIFEST, UNREADABLE, FileFacts, Manifest, plain_name

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


def _why_not_a_bundle(folder: Path) -> str:
    """Why a folder may not be replaced: it holds something else than a bundle (of any schema); "" if it may."""
    if not folder.is_dir():
        return "it is a file"
    entries = sorted(folder.iterdir())
    if not entries:
        return ""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except UNREADABLE as error:
        return f"its {MANIFEST} cannot be read: {error}"
    files = raw.get("files") if isinstance(raw, dict) and "schema_version" in raw else None
    if not isinstance(files, dict):
        return f"its {MANIFEST} is not that of a bundle"
    foreign = [path.name for path in entries if path.name not in (MANIFEST, MODEL_CARD, *files) or not path.is_file()]
    return f"{foreign[0]} is not a file of that bundle" if foreign else ""


class BundleWriter:
    """Writes a bundle under a temporary name beside `out` and renames it when it is complete.

    >>> with BundleWriter(out) as writer:          # doctest: +SKIP
    ...     export_to(writer.path(ENCODER))
    ...     writer.finish(manifest_without_files)

    Leaving the block before `finish` (an error, Ctrl-C) removes everything that was written. What a killed writer
    of the same bundle could not remove, the next one does.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or is or holds something other than a bundle.
        OutputWriteError: the disk is full, the place is not writable, or another writer is at work there.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False) -> None:
        self._partial = PartialOutput(out, overwrite=overwrite, what="a bundle", why_not=_why_not_a_bundle)
        self.out = self._partial.out

    def __enter__(self) -> BundleWriter:
        self._partial.open(folder=True)
        return self

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle."""
        return self._partial.path / plain_name(name)

    def take_over(self, source: Bundle, *, link: bool) -> None:
        """Take all files of a bundle and its model card as they are; `link`: without copying them, where that works."""
        for name in (*source.manifest.files, MODEL_CARD):
            path, own = source.path(name), self._partial.path / name
            if not path.is_file():  # the card
                continue
            try:
                if not link:
                    raise OSError  # noqa: TRY301
                os.link(path.resolve(), own)
            except OSError:
                shutil.copyfile(path, own)

    def sizes(self) -> dict[str, int]:
        """Bytes of the files that were written so far, but the model card, by name."""
        return {path.name: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        return sorted(path for path in self._partial.path.iterdir() if path.name != MODEL_CARD)

    def finish(self, manifest: Manifest) -> Bundle:
        """Add sizes and hashes to the manifest, write it, and move the folder to its final name."""
        files = {path.name: FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in self._files()}
        manifest = manifest.model_copy(update={"files": files})
        text = manifest.model_dump_json(indent=2) + "\n"
        (self._partial.path / MANIFEST).write_text(text, encoding="utf-8")
        Bundle(self._partial.path, manifest).verify_files(check_sha256=False)
        self._partial.move()
        return Bundle(self.out, manifest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._partial.discard()
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            raise self._partial.write_error(error) from error
