"""A Debian for ARM64 in a folder, with the package installed from an index of its own, and Python's wheels beside it.

No program of another processor runs while it is made, and nobody needs to be root.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from boards.architectures import ARCHITECTURES
from boards.compiled import platforms, run
from tests.fixtures.places import REPOSITORY

RELEASE, PYTHON = "bookworm", "3.11"  # of Debian, and the Python it has
PACKAGES = "opt/dasheng-edge"  # where the wheels go, in the root


def once(stamp: Path, key: str, work: Callable[[], None]) -> None:
    """Does the work unless it was done with that key; interrupted work is done again."""
    if stamp.is_file() and stamp.read_text("utf-8") == key:
        return
    stamp.unlink(missing_ok=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    work()
    stamp.write_text(key, encoding="utf-8")


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def index(package: Path, folder: Path) -> None:
    """What apt asks of a folder of packages: the control fields of each, where it is, and its sum."""
    fields = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(package, folder)
    entry = f"{fields}Filename: ./{package.name}\nSize: {package.stat().st_size}\n"
    entry += f"SHA256: {hashlib.sha256(package.read_bytes()).hexdigest()}\n"
    (folder / "Packages").write_text(entry, encoding="utf-8")


def unpack(package: Path, root: Path, log: Path) -> None:
    """Debian with what the package depends on, as apt finds it."""
    folder = root.with_name("index")
    index(package, folder)
    if root.exists():
        subprocess.run(["chmod", "-R", "u+w", root], check=False)
        shutil.rmtree(root)
    run("mmdebstrap", "--variant=extract", f"--arch={ARCHITECTURES['aarch64'].debian}",
        f"--include=python{PYTHON},dasheng-edge", RELEASE, root, "deb http://deb.debian.org/debian bookworm main",
        f"deb [trusted=yes] copy:{folder} ./", log=log)  # fmt: skip


def own_wheel(folder: Path, log: Path) -> Path:
    """Of dasheng-edge, out of a copy, since setuptools leaves its files beside the sources."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("export", "quant", "runtime"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
        log=log,
    )
    (wheel,) = folder.glob("dasheng_edge-*.whl")
    return wheel


def install(wheels: list[Path], root: Path, log: Path) -> None:
    """Wheels and what they need, for the processor and the Python of the root."""
    own, *others = wheels
    shutil.rmtree(root / PACKAGES, ignore_errors=True)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--target", root / PACKAGES,
        "--only-binary", ":all:", *platforms(ARCHITECTURES["aarch64"]), "--implementation", "cp",
        "--python-version", PYTHON, "-c", REPOSITORY / "constraints.txt", f"{own}[cpu]", *others, log=log)  # fmt: skip


def size_bytes(folder: Path) -> int:
    """Of all files, whose links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
