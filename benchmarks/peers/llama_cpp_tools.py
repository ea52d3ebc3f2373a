"""llama.cpp's own programs, built from the very source that the pinned llama-cpp-python is made of.

    python -m benchmarks.peers.llama_cpp_tools [--out build/llama.cpp]

They show that a decoder.gguf is a file like any other: `llama-server` answers with it, `llama-quantize` makes the same
of it. tests/test_stock_llama_cpp.py finds them in build/llama.cpp/bin and is skipped where they are not built.

Building takes five to ten minutes on two cores. A run that was interrupted goes on where it was; the programs
appear in OUT/bin all at once.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.places import REPOSITORY
from dasheng_edge.runtime.atomic_output import replacing

CONSTRAINTS = REPOSITORY / "constraints.txt"
TOOLS = ("llama-quantize", "llama-tokenize", "llama-completion", "llama-server", "llama-imatrix", "llama-bench")
VERSION = "VERSION"  # a file beside the programs: which llama-cpp-python they were built from
NEEDED = {
    "cmake": "pip install cmake, or your system's package of that name",
    "ninja": "pip install ninja, or your system's package ninja-build",
    "c++": "your system's C++ compiler, on Debian and Ubuntu the package g++",
}
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",  # programs that can be copied
    # Not for this very CPU: where it has AMX, the native build ends itself on quantized weights
    # (ggml-org/llama.cpp#20824). What is left, AVX2 and the like, any x86 CPU of the last ten years has.
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_OPENSSL=OFF",  # they download nothing
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


class ToolsError(RuntimeError):
    """The tools cannot be built; the message says why and what to do."""


def pinned_version(constraints: Path = CONSTRAINTS) -> str:
    """The version of llama-cpp-python that the project is tested with."""
    pinned = re.search(r"^llama-cpp-python==(\S+)", constraints.read_text("utf-8"), re.MULTILINE)
    if not pinned:
        raise ToolsError(f"{constraints} has no line llama-cpp-python==VERSION, so there is no version to build")
    return pinned[1]


def build_tools(out: Path, version: str) -> list[Path]:
    """Build the programs unless they are there; returns their paths."""
    programs = out / "bin"
    if not _is_of(programs, version):
        check_needed()
        source = fetch_source(out, version)
        print(f"llama_cpp_tools: building llama.cpp of llama-cpp-python {version}; this takes minutes", flush=True)
        build = out / f"build-{version}"
        _run("cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *OPTIONS)
        _run("cmake", "--build", str(build), "--target", *TOOLS)
        _install(build / "bin", programs, version)
    return [programs / tool for tool in TOOLS]


def check_needed() -> None:
    """Before the download: what the build needs must be installed."""
    if lacking := [program for program in NEEDED if not shutil.which(program)]:
        advice = "; ".join(f"{program} ({NEEDED[program]})" for program in lacking)
        raise ToolsError(f"building llama.cpp needs {', '.join(NEEDED)}; not found on PATH: {advice}")


def fetch_source(out: Path, version: str) -> Path:
    """llama.cpp's source, unpacked from the sdist, which pip downloads and checks against the index's hash."""
    folder = out / f"source-{version}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as fresh:
            wanted = f"llama-cpp-python=={version}"
            print(f"llama_cpp_tools: downloading the source of {wanted}, about 80 MB", flush=True)
            _run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--no-binary", ":all:", "--dest", fresh, wanted)  # fmt: skip
            unpack(Path(fresh) / f"llama_cpp_python-{version}.tar.gz", Path(fresh) / "source", version)
            (Path(fresh) / "source").rename(folder)
    return folder


def unpack(archive: Path, folder: Path, version: str) -> None:
    """Move `vendor/llama.cpp` of an sdist to `folder`."""
    inside = f"llama_cpp_python-{version}/vendor/llama.cpp"
    if not archive.is_file():
        raise ToolsError(f"pip left no {archive.name}; run the command again")
    unpacked = folder.with_name("unpacked")
    with tarfile.open(archive) as content:
        content.extractall(unpacked, filter="data")  # refuses paths that lead out of the folder
    if not (unpacked / inside / "CMakeLists.txt").is_file():
        raise ToolsError(f"{archive.name} holds no {inside}; is llama-cpp-python {version} made in another way now?")
    (unpacked / inside).rename(folder)


def _is_of(programs: Path, version: str) -> bool:
    stamp = programs / VERSION
    return stamp.is_file() and stamp.read_text("utf-8").strip() == version


def _install(built: Path, programs: Path, version: str) -> None:
    """Copy the programs; `programs` has all of them or does not change."""
    with replacing(programs) as fresh:
        fresh.mkdir()
        for tool in TOOLS:
            shutil.copy2(built / tool, fresh)
        (fresh / VERSION).write_text(version + "\n", encoding="utf-8")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ToolsError(f"{' '.join(command[:4])} ... ended with status {done.returncode}; its output is above")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if the programs cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "llama.cpp")
    given = parser.parse_args(arguments)
    try:
        tools = build_tools(given.out, pinned_version())
    except (ToolsError, OSError, tarfile.TarError) as error:
        print(f"llama_cpp_tools: {error}", file=sys.stderr)
        return 1
    print(*tools, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
