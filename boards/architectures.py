"""The processors that packages are made for, and the tools that compile for them."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass


class BoardError(RuntimeError):
    """Nothing was made; the message says why and what to do."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table."""

    name: str  # as `uname -m` says
    debian: str
    # llama.cpp's code for processors; the best that a machine can run is chosen when the program starts.
    variants: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        return platform.machine() == self.name

    def tool(self, name: str) -> str:
        """The compiler's name (`gcc`, `g++`) or a binutil's (`strip`), with the prefix where it is a cross tool."""
        return name if self.is_here else f"{self.name}-linux-gnu-{name}"

    def check_tools(self) -> None:
        """Raises BoardError where something is not installed that building needs."""
        compiler = "g++" if self.is_here else f"g++-{self.name.replace('_', '-')}-linux-gnu"
        wanted = {"cmake": "cmake", "ninja": "ninja-build", "readelf": "binutils"}
        wanted |= {self.tool(name): compiler for name in ("gcc", "g++", "strip")}
        if lacking := {tool: package for tool, package in wanted.items() if not shutil.which(tool)}:
            raise BoardError(
                f"a package for {self.name} needs {', '.join(lacking)}, not found on PATH; "
                f"on Debian and Ubuntu: apt install {' '.join(sorted(set(lacking.values())))}"
            )

    def cmake_options(self) -> list[str]:
        """What makes CMake compile for this processor; nothing is said where that is the machine's own."""
        chosen = [f"-DCMAKE_C_COMPILER={self.tool('gcc')}", f"-DCMAKE_CXX_COMPILER={self.tool('g++')}"]
        if not self.is_here:
            chosen += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={self.name}"]
        return chosen


ARCHITECTURES = {
    one.name: one
    for one in (
        # Cortex-A53 and A72 (Raspberry Pi 3 and 4); A55, A76 and A78 (Pi 5, RK3588, Orin); ARMv9.
        Architecture("aarch64", "arm64", ("armv8.0_1", "armv8.2_2", "armv8.6_1")),
        # Any; Atoms without AVX; what has AVX2; N100 and what else has AVX-VNNI.
        Architecture("x86_64", "amd64", ("x64", "sse42", "haswell", "alderlake")),
    )
}


def architecture(name: str) -> Architecture:
    """By `uname -m`'s name or Debian's."""
    for one in ARCHITECTURES.values():
        if name in (one.name, one.debian):
            return one
    raise BoardError(f"the architecture is '{name}', expected {' or '.join(ARCHITECTURES)}, as in ARCH=aarch64")
