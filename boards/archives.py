"""Tarballs and Debian packages whose bytes follow from their content alone, so that two builds can be compared."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import tarfile
from pathlib import Path

from boards.architectures import BoardError

EPOCH = 1_767_225_600  # 2026-01-01: the time of every file, unless SOURCE_DATE_EPOCH says another


def time_of_files() -> int:
    """Seconds since 1970 (https://reproducible-builds.org/specs/source-date-epoch/)."""
    said = os.environ.get("SOURCE_DATE_EPOCH", str(EPOCH))
    if not (said.isascii() and said.isdigit()):
        raise BoardError(f"SOURCE_DATE_EPOCH is '{said}', expected seconds since 1970; unset it, or set a whole number")
    return int(said)


def tar_xz(tree: Path, top: str) -> bytes:
    """All of a folder, sorted, owned by root, under the name `top`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in [tree, *sorted(tree.rglob("*"), key=lambda one: one.relative_to(tree).parts)]:
            name = f"{top}/{path.relative_to(tree).as_posix()}" if path != tree else top
            entry = archive.gettarinfo(path, arcname=name)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime = time_of_files()
            runs = path.is_dir() or path.is_symlink() or bool(entry.mode & 0o100)
            entry.mode = 0o777 if path.is_symlink() else 0o755 if runs else 0o644
            if entry.isreg():
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
            else:
                archive.addfile(entry)
    return lzma.compress(content.getvalue(), preset=6)


def deb(tree: Path, fields: Path) -> bytes:
    """A package (man 5 deb) that installs `tree`; `fields` has control, conffiles, postinst and the like."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar_xz(fields, "."),
        "data.tar.xz": tar_xz(tree, "."),
    }
    archive = b"!<arch>\n"
    for name, data in members.items():
        header = f"{name:<16}{time_of_files():<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        archive += header.encode("ascii") + data + b"\n" * (len(data) % 2)
    return archive


def md5sums(tree: Path) -> str:
    """The list that `dpkg --verify` reads."""
    text = ""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            text += f"{digest}  {path.relative_to(tree).as_posix()}\n"
    return text
