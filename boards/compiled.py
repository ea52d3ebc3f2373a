"""What a package carries: ONNX Runtime as its authors built it, llama.cpp and examples/cpp compiled here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.llama_cpp_tools import fetch_source, pinned_version
from benchmarks.places import REPOSITORY
from boards.architectures import Architecture, BoardError

SOURCE = REPOSITORY / "build" / "llama.cpp"  # where `make llama-tools` unpacks llama.cpp
EXAMPLE = REPOSITORY / "examples" / "cpp"
# PyPI's wheels of ONNX Runtime have the library that programs in C++ load. Any Python's will do.
PYTHON = "3.11"
GLIBC = (28, 27, 17)  # of manylinux_2_28 and older
LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DGGML_NATIVE=OFF",
)


@dataclass(frozen=True)
class Compiled:
    """Folders of what was built for an architecture."""

    onnxruntime: Path  # lib/libonnxruntime.so.VERSION, LICENSE and ThirdPartyNotices.txt
    llama: Path  # lib/ with libraries under the names by which they are loaded, include/
    llama_source: Path
    example: Path  # bin/dasheng-caption, lib/libdasheng_edge.so*, include/dasheng_edge.h


def build(arch: Architecture, out: Path) -> Compiled:
    """All of it, in `out`; what is there already is not made again."""
    arch.check_tools()
    source = fetch_source(SOURCE, pinned_version()).resolve()
    onnxruntime = fetch_onnxruntime(arch, out)
    llama = build_llama(arch, source, out)
    return Compiled(onnxruntime, llama, source, build_example(arch, onnxruntime, llama, out))


def run(*command: str | Path, log: Path) -> None:
    """Raises BoardError with the end of the output, all of which is in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        end = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
        shown = " ".join(map(str, command[:4]))
        raise BoardError(f"{shown} ... ended with status {done.returncode}; {shown_path(log)} ends with:\n{end}")


def shown_path(path: Path) -> Path:
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def platforms(arch: Architecture) -> list[str]:
    """pip's options for wheels of an architecture that need no newer glibc than the boards' systems have."""
    tags = [f"{tag}_{arch.name}" for tag in (*(f"manylinux_2_{minor}" for minor in GLIBC), "manylinux2014", "linux")]
    return [word for tag in tags for word in ("--platform", tag)]


def fetch_onnxruntime(arch: Architecture, out: Path) -> Path:
    """The library and its licences, out of the wheel of the version that constraints.txt pins."""
    pinned = re.search(r"^onnxruntime==([0-9.]+)", (REPOSITORY / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    if not pinned:
        raise BoardError("constraints.txt has no line onnxruntime==VERSION, so there is no version to fetch")
    folder = out / f"onnxruntime-{pinned[1]}"
    if (folder / "LICENSE").is_file():
        return folder
    print(f"board-package: downloading ONNX Runtime {pinned[1]} for {arch.name}, about 20 MB", flush=True)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary", ":all:",
        *platforms(arch), "--implementation", "cp", "--python-version", PYTHON, "--dest", out,
        f"onnxruntime=={pinned[1]}", log=out / "onnxruntime.log")  # fmt: skip
    (wheel,) = out.glob(f"onnxruntime-{pinned[1]}-*_{arch.name}.whl")
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for inside in (f"capi/libonnxruntime.so.{pinned[1]}", "ThirdPartyNotices.txt", "LICENSE"):
            place = folder / "lib" if inside.startswith("capi/") else folder
            (place / Path(inside).name).write_bytes(archive.read(f"onnxruntime/{inside}"))
    return folder


def build_llama(arch: Architecture, source: Path, out: Path) -> Path:
    """llama.cpp with its code for several processors in files of their own, in `lib`, and headers in `include`."""
    folder, tree = out / "llama", out / "llama-build"
    print(f"board-package: compiling llama.cpp for {arch.name}, at first two to four minutes on two cores", flush=True)
    # No path of this machine is in the libraries, so that anybody's are the same.
    flags = f"-ffile-prefix-map={source}=llama.cpp"
    configure(arch, source, tree, *LLAMA_OPTIONS, "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON",
        f"-DCMAKE_PROJECT_INCLUDE={Path(__file__).with_name('llama.cmake')}", f"-DCMAKE_C_FLAGS={flags}",
        f"-DCMAKE_CXX_FLAGS={flags}", log=out / "llama-configure.log")  # fmt: skip
    variants = [f"ggml-cpu-{variant}" for variant in arch.variants]
    run("cmake", "--build", tree, "--parallel", jobs(), "--target", "llama", *variants, log=out / "llama-build.log")
    libraries = [tree / "bin" / f"lib{name}.so.0" for name in ("llama", "ggml", "ggml-base")]
    place(folder / "lib", [*libraries, *(tree / "bin" / f"lib{name}.so" for name in variants)])
    for name in ("llama", "ggml", "ggml-base"):  # by which the linker finds them
        link = folder / "lib" / f"lib{name}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{link.name}.0")
    place(folder / "include", [*(source / "include").glob("*.h"), *(source / "ggml" / "include").glob("*.h")])
    return folder


def build_example(arch: Architecture, onnxruntime: Path, llama: Path, out: Path) -> Path:
    """examples/cpp, without libav, whose versions differ from system to system."""
    tree, folder = out / "example-build", out / "example"
    named, fetched = os.environ.get("ONNXRUNTIME_INCLUDE"), REPOSITORY / "build" / "example-cpp" / "onnxruntime"
    headers = Path(named) if named else fetched
    include = [f"-DONNXRUNTIME_INCLUDE={headers}"] if named or (headers / "onnxruntime_c_api.h").is_file() else []
    flags = f"-DCMAKE_CXX_FLAGS=-ffile-prefix-map={EXAMPLE}=dasheng-edge"
    configure(arch, EXAMPLE, tree, *include, flags, "-DDASHENG_LIBAV=OFF", f"-DONNXRUNTIME_ROOT={onnxruntime}",
        f"-DLLAMA_ROOT={llama}", f"-DCMAKE_INSTALL_PREFIX={folder}", "-DCMAKE_INSTALL_LIBDIR=lib",
        log=out / "example-configure.log")  # fmt: skip
    run("cmake", "--build", tree, "--parallel", jobs(), log=out / "example-build.log")
    run("cmake", "--install", tree, log=out / "example-install.log")
    return folder


def configure(arch: Architecture, source: Path, tree: Path, *options: str, log: Path) -> None:
    """CMake refuses a build folder that another checkout began; that one is begun again."""
    cache = tree / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n" not in cache.read_text("utf-8"):
        shutil.rmtree(tree)
    run("cmake", "-S", source, "-B", tree, "-G", "Ninja", *arch.cmake_options(), *options, log=log)


def jobs() -> str:
    """How many compilers run at a time; CMake's own variable says otherwise."""
    return os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)


def place(folder: Path, files: list[Path]) -> None:
    """Copies under their own names; what was there goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
