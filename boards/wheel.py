"""llama-cpp-python for a board, with the llama.cpp of the package: compiling it there takes the better part of an hour.

    python -m boards.wheel aarch64 [--out build/board]

What is Python in it is that of the installed llama-cpp-python; `pip install FILE.whl` on the board does the rest.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.llama_cpp_tools import ToolsError, fetch_source, pinned_version
from boards.architectures import Architecture, BoardError, architecture
from boards.compiled import SOURCE, build_llama, shown_path
from boards.package import OUT

ZIP_TIME = (2026, 1, 1, 0, 0, 0)  # of every file, so that the bytes follow from the content


def make(arch: Architecture, out: Path = OUT) -> Path:
    """The wheel, in `out`."""
    arch.check_tools()
    version, out = pinned_version(), out.resolve()
    llama = build_llama(arch, fetch_source(SOURCE, version).resolve(), out / arch.name)
    content = python_files(version)
    with tempfile.TemporaryDirectory(dir=out, prefix=".wheel-") as temporary:
        for library in sorted(llama.glob("lib/*.so*")):  # a zip has no links: both names are files
            stripped = Path(temporary) / library.name
            subprocess.run([arch.tool("strip"), "--strip-unneeded", "-o", stripped, library.resolve()], check=True)
            content[f"llama_cpp/lib/{library.name}"] = stripped.read_bytes()
    tag = f"py3-none-linux_{arch.name}"
    wheel = out / f"llama_cpp_python-{version}-{tag}.whl"
    write(wheel, content, f"llama_cpp_python-{version}.dist-info", tag)
    return wheel


def python_files(version: str) -> dict[str, bytes]:
    """Those of the installed package, without its libraries, and its metadata."""
    found = list(importlib.metadata.distributions(name="llama-cpp-python"))
    if not found or found[0].version != version:
        here = found[0].version if found else "none"
        raise BoardError(f"the Python files are those of llama-cpp-python {version}, installed is {here}: make setup")
    folder = f"llama_cpp_python-{version}.dist-info"
    kept = [
        file
        for file in found[0].files or ()
        if (file.parts[0] == "llama_cpp" and file.parts[1] != "lib" and "__pycache__" not in file.parts)
        or (file.parts[0] == folder and (file.name == "METADATA" or "licenses" in file.parts))
    ]
    return {file.as_posix(): file.read_binary() for file in kept}


def write(wheel: Path, content: dict[str, bytes], dist_info: str, tag: str) -> None:
    """The form of https://packaging.python.org/en/latest/specifications/binary-distribution-format/."""
    stated = f"Wheel-Version: 1.0\nGenerator: boards.wheel\nRoot-Is-Purelib: false\nTag: {tag}\n"
    every = content | {f"{dist_info}/WHEEL": stated.encode()}
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for name, data in every.items()
    }
    record = "".join(
        f"{name},sha256={digest.decode()},{len(every[name])}\n" for name, digest in sorted(digests.items())
    )
    every[f"{dist_info}/RECORD"] = f"{record}{dist_info}/RECORD,,\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(every):
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, every[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if there is no wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", help="aarch64 or x86_64")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    try:
        wheel = make(architecture(given.arch), given.out)
    except (BoardError, ToolsError, OSError, subprocess.CalledProcessError) as error:
        print(f"board-wheel: {error}", file=sys.stderr)
        return 1
    print(f"{shown_path(wheel)}: {wheel.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
