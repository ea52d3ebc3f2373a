"""llama.cpp's own benchmark, on the very library that the runtime calls.

`make llama-tools` builds programs that run on any CPU; the library of llama-cpp-python is built for the CPU at hand and
may be much faster. So the objects of llama-bench, which that build leaves behind, are linked to that library where they
are there: what is left between the two is what the runtime adds.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers.llama_cpp_tools import VERSION, pinned_version
from benchmarks.places import REPOSITORY
from benchmarks.records.record import BenchmarkError
from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.text.llama import build_info

TOOLS = REPOSITORY / "build" / "llama.cpp"
# Of llama-bench, in the order in which the linker needs them, in the folder of the build.
OBJECTS = (
    "tools/llama-bench/CMakeFiles/llama-bench.dir/main.cpp.o",
    "tools/llama-bench/libllama-bench-impl.a",
    "common/libllama-common.a",
    "common/libllama-common-base.a",
    "vendor/cpp-httplib/libcpp-httplib.a",
    "vendor/hash/libvendor-hash.a",
)
LIBRARIES = ("llama", "ggml", "ggml-cpu", "ggml-base")
SAME, PORTABLE = "the runtime's own library", "a library for any CPU"


@dataclass(frozen=True)
class Work:
    """One prefill and one generation."""

    model: Path
    prompt: int  # tokens
    generated: int  # tokens
    threads: int
    kv_type: KvType = "f16"
    repack: bool = True  # its own default

    @property
    def options(self) -> list[str]:
        """For llama-bench."""
        # As in Decoder.open: llama.cpp's AMX kernels end the process on quantized weights.
        repack = "1" if self.repack and "AMX_INT8 = 1" not in build_info()[0] else "0"
        sizes = ["-p", str(self.prompt), "-n", str(self.generated), "-t", str(self.threads)]
        kept = [] if self.kv_type == "f16" else ["-ctk", self.kv_type, "-ctv", self.kv_type, "-fa", "on"]
        return ["-m", str(self.model), *sizes, *kept, "-r", "1", "-o", "json", "--repack", repack]


@dataclass(frozen=True)
class LlamaBench:
    """The program, and what it computes with."""

    program: Path
    library: str

    def speeds(self, test: Work) -> dict[str, float]:
        """Tokens per second of one prefill and one generation, after its own warm-up.

        Raises:
            BenchmarkError: it failed.
        """
        done = subprocess.run([str(self.program), *test.options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"llama-bench ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
        return parse(json.loads(done.stdout))


def parse(tests: Sequence[dict[str, Any]]) -> dict[str, float]:
    """llama-bench's JSON -> tokens per second by what was measured.

    Raises:
        BenchmarkError: it measured something else.
    """
    speeds = {"decode" if test["n_gen"] else "prefill": float(test["avg_ts"]) for test in tests}
    if len(tests) != 2 or len(speeds) != 2:
        raise BenchmarkError(f"llama-bench answered with {len(tests)} tests, expected a prefill and a generation")
    return speeds


def find_llama_bench(tools: Path = TOOLS) -> LlamaBench:
    """The program, linked to the runtime's library where it can be.

    Raises:
        BenchmarkError: it is not built.
    """
    portable, version = tools / "bin" / "llama-bench", pinned_version()
    stamp = tools / "bin" / VERSION
    if not (portable.is_file() and stamp.is_file() and stamp.read_text("utf-8").strip() == version):
        raise BenchmarkError(f"llama-bench of llama-cpp-python {version} is not built; run make llama-tools")
    build, linked = tools / f"build-{version}", tools / "bench" / "llama-bench"
    if all((build / name).is_file() for name in OBJECTS) and link(build, library_folder(), linked):
        return LlamaBench(linked, SAME)
    return LlamaBench(portable, PORTABLE)


def library_folder() -> Path:
    """Where llama-cpp-python has its libraries."""
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise BenchmarkError("llama-cpp-python is not installed; run make setup")
    return Path(package.origin).parent / "lib"


def link(build: Path, libraries: Path, program: Path) -> bool:
    """Link llama-bench to the libraries in a folder; whether that worked."""
    program.parent.mkdir(parents=True, exist_ok=True)
    command = ["c++", "-o", str(program), *(str(build / name) for name in OBJECTS), f"-L{libraries}"]
    command += [*(f"-l{name}" for name in LIBRARIES), "-lpthread", f"-Wl,-rpath,{libraries}"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # no compiler
        return False
