"""What packages hold, of stand-ins for what is compiled; the real ones are looked at where they were made."""

from __future__ import annotations

import io
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks.places import REPOSITORY
from boards.architectures import ARCHITECTURES, Architecture
from boards.compiled import Compiled
from boards.control import readelf
from boards.package import OUT, make, version
from boards.staged import PLACES, PRIVATE, stage

HERE = ARCHITECTURES.get(platform.machine())
MIT = "MIT License\n\nCopyright (c) {owner}\n\nPermission is hereby granted\n"
needs_tools = pytest.mark.skipif(not HERE or not shutil.which("strip"), reason="nothing is packed on this machine")


def binary(path: Path) -> Path:
    """Something that strip takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shutil.which("true") or "/bin/true", path)
    return path


@pytest.fixture
def compiled(tmp_path: Path) -> Compiled:
    made = Compiled(*(tmp_path / name for name in ("onnxruntime", "llama", "source", "example")))
    for path in ("lib/libonnxruntime.so.1.2.3",):
        binary(made.onnxruntime / path)
    for name in ("libllama.so.0", "libggml.so.0", "libggml-base.so.0", "libggml-cpu-x.so"):
        binary(made.llama / "lib" / name)
    (made.llama / "lib" / "libllama.so").symlink_to("libllama.so.0")
    binary(made.example / "bin" / "dasheng-caption")
    binary(made.example / "lib" / "libdasheng_edge.so.0")
    (made.example / "include").mkdir()
    (made.example / "include" / "dasheng_edge.h").write_text("")
    (made.onnxruntime / "LICENSE").write_text(MIT.format(owner="One"))
    (made.onnxruntime / "ThirdPartyNotices.txt").write_text("Three")
    sgemm = made.llama_source / "ggml" / "src" / "ggml-cpu" / "llamafile" / "sgemm.cpp"
    sgemm.parent.mkdir(parents=True)
    sgemm.write_text("// Copyright 2024 Four\n//\n// Permission, too.\n\n// About it.\n#include <x>\n")
    (made.llama_source / "LICENSE").write_text(MIT.format(owner="Two"))
    return made


@needs_tools
def test_all_is_in_its_place_with_its_licence(compiled: Compiled, tmp_path: Path) -> None:
    assert isinstance(HERE, Architecture)
    tree = tmp_path / "tree"
    carried = stage(HERE, compiled, tree)
    libraries = ("libggml-base.so.0", "libggml-cpu-x.so", "libggml.so.0", "libllama.so.0", "libonnxruntime.so.1.2.3")
    assert {path.name for path in carried} == {"dasheng-caption", "libdasheng_edge.so.0", *libraries}
    assert (tree / "usr" / "bin" / "dasheng-caption").resolve() == tree / "usr" / PRIVATE / "dasheng-caption"
    for place in PLACES.values():
        assert (tree / place).is_file() or (tree / f"{place}.gz").is_file()
    text = (tree / "usr" / "share" / "doc" / "dasheng-edge" / "copyright").read_text("utf-8")
    for owner in ("One", "Two", "2024 Four"):
        assert re.search(rf"^Copyright: {owner}$", text, re.MULTILINE)
    assert "Permission, too." in text
    assert "About it" not in text
    # Each line is a field, or continues one.
    assert all(re.match(r"[A-Z][A-Za-z-]*: | |$", line) for line in text.splitlines())


# ---- packages that `make board-package` left ------------------------------------------------------------------------


def left(arch: Architecture) -> tuple[Path, Path]:
    found = OUT / f"dasheng-edge-{version()}-{arch.name}.tar.xz", OUT / f"dasheng-edge_{version()}_{arch.debian}.deb"
    if not all(path.is_file() for path in found):
        pytest.skip(f"make board-package ARCH={arch.name} was not run")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_package_is_small_and_finds_itself(arch: Architecture, tmp_path: Path) -> None:
    tarball, _ = left(arch)
    assert tarball.stat().st_size <= 35e6
    with tarfile.open(fileobj=io.BytesIO(tarball.read_bytes())) as archive:
        archive.extractall(tmp_path, filter="tar")
    (top,) = tmp_path.iterdir()
    binaries = [path for path in (top / "lib" / "dasheng-edge").iterdir() if not path.is_symlink()]
    names = {path.name for path in binaries}
    for path in binaries:
        shown = readelf(path)
        assert str(REPOSITORY.resolve()).encode() not in path.read_bytes(), path
        assert set(re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", shown)) <= {"$ORIGIN", "$ORIGIN:$ORIGIN/../lib"}
        inside = set(re.findall(r"\(NEEDED\).*\[(lib(?:llama|ggml|dasheng|onnx).*)\]", shown))
        assert inside <= names
        assert not inside or "$ORIGIN" in shown
        stack = subprocess.run(["readelf", "--segments", "--wide", path], capture_output=True, text=True, check=True)
        assert re.search(r"GNU_STACK.* RW +0x", stack.stdout), path
    assert {f"libggml-cpu-{name}.so" for name in arch.variants} <= names


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb")
def test_package_runs_from_where_it_is_unpacked_with_no_environment(tmp_path: Path) -> None:
    if not HERE:
        pytest.skip("no package is made for this machine")
    _, package = left(HERE)
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    bundle = REPOSITORY / "tests" / "fixtures" / "bundle"
    command = [str(tmp_path / "usr" / "bin" / "dasheng-caption"), str(bundle), "--verify"]
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok ") == len(done.stdout.splitlines()) > 0


@pytest.mark.slow
def test_made_again_it_is_the_same(tmp_path: Path) -> None:
    """With the libraries that are there: what strip and the archives make of them."""
    if not HERE:
        pytest.skip("no package is made for this machine")
    left(HERE)  # skips where none was ever made, which takes minutes
    first, again = ([made.tarball.read_bytes(), made.deb.read_bytes()] for made in (make(HERE, OUT) for _ in range(2)))
    assert first == again
