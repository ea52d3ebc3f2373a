"""Debian packages that hold recordings: fetched by apt, read without installing them, never kept in the repository."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.places import REPOSITORY
from dasheng_edge.runtime.atomic_output import replacing

DOWNLOADS = REPOSITORY / "build" / "small" / "downloads"
SOUNDS = REPOSITORY / "build" / "small" / "sounds"

# Package -> its licence, as its copyright file says it.
PACKAGES = {
    "asterisk-core-sounds-en-wav": "CC BY-SA 3.0",
    "asterisk-core-sounds-fr-wav": "CC BY-SA 3.0",
    "asterisk-core-sounds-ru-wav": "CC BY 3.0",
    "freepats": "GPL-2+ with an exception for music",
    "gcompris-qt-data": "GPL-3+, single sounds CC0, CC BY or CC Sampling Plus",
    "sonic-pi-samples": "CC0",
    "timgm6mb-soundfont": "GPL-2",
    "tuxpaint-stamps-default": "GPL-2",
}
UNWANTED = ("stamps/symbols", "_desc")  # of tuxpaint: names of things, letters and numbers, spoken
COMPRESSED = 1  # of a Qt resource: zlib behind four bytes of length


def fetch() -> None:
    """Downloads and unpacks what is missing; 320 MB in all."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (SOUNDS / package).is_dir():
            print(f"fetching {package}", flush=True)
            if not list(DOWNLOADS.glob(f"{package}_*.deb")):
                subprocess.run(["apt-get", "download", "-qq", package], cwd=DOWNLOADS, check=True)
            unpack(max(DOWNLOADS.glob(f"{package}_*.deb")), SOUNDS / package)


def unpack(archive: Path, folder: Path) -> None:
    """Writes the sounds of a package; those inside a Qt resource file stand in a folder of its name."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True).stdout
    with replacing(folder) as scratch, tarfile.open(fileobj=io.BytesIO(content)) as tar:
        scratch.mkdir()
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and wanted(member.name) else None
            if file is None:
                continue
            path, data = member.name.removeprefix("./usr/share/"), file.read()
            found = [(path, data)]
            if path.endswith(".rcc"):
                found = [(f"{Path(path).name}/{inner}", sound) for inner, sound in qt_resources(data)]
            for name, sound in found:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(sound)


def sounds(package: str, pattern: str) -> list[Path]:
    """Files of a package, in order, by a pattern as of `Path.glob`."""
    found = sorted((SOUNDS / package).glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"{SOUNDS / package} has no {pattern}: `python -m benchmarks.small.training.train` fetches it; "
            "if it has, the package is of another version than this was written for."
        )
    return found


def wanted(path: str) -> bool:
    """Whether a file is, or may hold, a sound."""
    return path.endswith((".flac", ".ogg", ".pat", ".rcc", ".sf2", ".wav")) and not any(
        part in path for part in UNWANTED
    )


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the sounds in a Qt resource file, whose tree of fixed-size nodes stands before its names."""
    magic, version, tree, content, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError("expected a Qt resource file, which begins with 'qres'")
    node_size = 14 if version < 2 else 22  # from version 2 on, the time of change follows

    def name_of(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(index: int, parent: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node_size * index
        offset, flags = struct.unpack_from(">IH", data, at)
        path = f"{parent}/{name_of(offset)}" if index else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif wanted(path):
            start = content + struct.unpack_from(">I", data, at + 10)[0]
            (size,) = struct.unpack_from(">I", data, start)
            stored = data[start + 4 : start + 4 + size]
            yield path.lstrip("/"), zlib.decompress(stored[4:]) if flags & COMPRESSED else stored

    return walk(0, "")
