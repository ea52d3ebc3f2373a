"""The program of examples/cpp with all that it needs, as a tarball and as a Debian package.

    python -m boards.package aarch64 [--out build/board]

ONNX Runtime is PyPI's; llama.cpp and the program are compiled, where need be by a cross compiler. The bytes follow from
the sources and the compiler: SOURCE_DATE_EPOCH sets the time of the files, DEBFULLNAME and DEBEMAIL the maintainer.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.llama_cpp_tools import ToolsError
from benchmarks.places import REPOSITORY
from boards.architectures import Architecture, BoardError, architecture
from boards.archives import deb, md5sums, tar_xz
from boards.compiled import build, shown_path
from boards.control import control, depends
from boards.staged import CONFFILES, FILES, stage

OUT = REPOSITORY / "build" / "board"


@dataclass(frozen=True)
class Packages:
    """What was written."""

    tarball: Path
    deb: Path
    installed_bytes: int


def version() -> str:
    """Of pyproject.toml, which is the Python package's too."""
    (found,) = re.findall(r'^version = "([0-9.]+)"', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    return str(found)


def make(arch: Architecture, out: Path = OUT) -> Packages:
    """Both archives, in `out`; the libraries that they are made of stay in a folder beside them."""
    out = out.resolve()
    compiled = build(arch, out / arch.name)
    with tempfile.TemporaryDirectory(dir=out, prefix=".stage-") as temporary:
        tree = Path(temporary) / "tree"
        carried = stage(arch, compiled, tree)
        installed = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
        fields = Path(temporary) / "control"
        fields.mkdir()
        (fields / "control").write_text(control(arch, version(), depends(carried), installed), encoding="utf-8")
        (fields / "conffiles").write_text(CONFFILES, encoding="utf-8")
        (fields / "md5sums").write_text(md5sums(tree), encoding="utf-8")
        for script in ("postinst", "prerm"):
            shutil.copy(FILES / script, fields)
        package = out / f"dasheng-edge_{version()}_{arch.debian}.deb"
        package.write_bytes(deb(tree, fields))
        tarball = out / f"dasheng-edge-{version()}-{arch.name}.tar.xz"
        tarball.write_bytes(tar_xz(relocatable(tree, Path(temporary)), tarball.name.removesuffix(".tar.xz")))
    return Packages(tarball, package, installed)


def relocatable(tree: Path, folder: Path) -> Path:
    """usr/ with what a reader looks for on top."""
    top = (tree / "usr").rename(folder / "relocatable")
    (tree / "etc").rename(top / "etc")
    shutil.copyfile(REPOSITORY / "LICENSE", top / "LICENSE")
    shutil.copyfile(FILES / "README.md", top / "README.md")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if there is no package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", help="aarch64 or x86_64")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    try:
        made = make(architecture(given.arch), given.out)
    except (BoardError, ToolsError, OSError, subprocess.CalledProcessError) as error:
        print(f"board-package: {error}", file=sys.stderr)
        return 1
    for path in (made.tarball, made.deb):
        print(f"{shown_path(path)}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"installed: {made.installed_bytes / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
