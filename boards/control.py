"""What dpkg must know of the package: on what it depends, and how large it is."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from boards.architectures import Architecture, BoardError

# GCC's release that brought a version of libstdc++ (https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html).
GLIBCXX = {26: "9", 27: "9.2", 28: "9.3", 29: "11", 30: "12", 31: "13.1", 32: "13.2", 33: "14", 34: "15"}
CXXABI = {12: "9", 13: "11", 14: "13", 15: "14", 16: "15"}
GLIBC = ("c.so.6", "m.so.6", "dl.so.2", "rt.so.1", "pthread.so.0")
PACKAGES = {  # of the libraries that the system has
    **{f"lib{name}": "libc6" for name in GLIBC},
    **dict.fromkeys(("ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2"), "libc6"),
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libgomp.so.1": "libgomp1",
}
MAINTAINER = "dasheng-edge maintainers <maintainers@dasheng-edge.example>"
SUMMARY = "captions of sounds on a board, without Python and without a network"
DESCRIPTION = """\
 dasheng-caption says in words what is to be heard in wav files. It runs bundles
 of MiDashengLM models that the Python package dasheng-edge exports. The library
 libdasheng_edge has the same for programs in C and other languages, and a
 service captions the files that come into a folder.
 .
 ONNX Runtime and llama.cpp are inside, built for the processor."""


def control(arch: Architecture, version: str, depends: Iterable[str], installed_bytes: int) -> str:
    """The control file (https://www.debian.org/doc/debian-policy/ch-controlfields.html)."""
    fields = {
        "Package": "dasheng-edge",
        "Version": version,
        "Architecture": arch.debian,
        "Maintainer": maintainer(os.environ),
        "Installed-Size": str(-(-installed_bytes // 1024)),
        "Depends": ", ".join(depends),
        "Section": "sound",
        "Priority": "optional",
        "Multi-Arch": "foreign",
        "Description": f"{SUMMARY}\n{DESCRIPTION}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def maintainer(environment: Mapping[str, str]) -> str:
    """Who builds the package, if DEBFULLNAME and DEBEMAIL say so, as for Debian's own tools."""
    if environment.get("DEBFULLNAME") and environment.get("DEBEMAIL"):
        return f"{environment['DEBFULLNAME']} <{environment['DEBEMAIL']}>"
    return MAINTAINER


def depends(libraries: Iterable[Path]) -> list[str]:
    """Debian's packages with the oldest versions that have all symbols.

    dpkg-shlibdeps says the same where the packages of that processor are installed.
    """
    shown = {library.name: readelf(library) for library in libraries}
    needed = {name for text in shown.values() for name in re.findall(r"\(NEEDED\).*\[(.+)\]", text)}
    symbols = {name for text in shown.values() for name in re.findall(r"Name: ([A-Z]+_[0-9.]+) ", text)}
    return dependencies(needed - set(shown), symbols)


def dependencies(needed: Collection[str], symbols: Collection[str]) -> list[str]:
    """By names of libraries, and versions of symbols such as GLIBC_2.34."""
    if unknown := sorted(set(needed) - set(PACKAGES)):
        raise BoardError(f"no package is known for {', '.join(unknown)}; add it to PACKAGES in boards/control.py")
    glibc = [name.removeprefix("GLIBC_") for name in symbols if name.startswith("GLIBC_")]
    libstdcxx = [release(symbols, "GLIBCXX_3.4.", GLIBCXX), release(symbols, "CXXABI_1.3.", CXXABI)]
    # The other two have had all that C++ and OpenMP ask for since before the oldest glibc that is in question.
    oldest = {"libc6": max(glibc, key=numbers, default=""), "libstdc++6": max(libstdcxx, key=numbers)}
    packages = dict.fromkeys(PACKAGES[name] for name in sorted(needed))
    return sorted(f"{name} (>= {oldest[name]})" if oldest.get(name) else name for name in packages)


def release(symbols: Collection[str], prefix: str, releases: Mapping[int, str]) -> str:
    """Of GCC, empty if it is older than the table."""
    versions = [re.fullmatch(re.escape(prefix) + r"(\d+)", name) for name in symbols]
    newest = max((int(version[1]) for version in versions if version), default=0)
    if newest > max(releases):
        raise BoardError(f"no release of GCC has {prefix}{newest}; add it to the table in boards/control.py")
    return releases.get(newest, "")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def readelf(library: Path) -> str:
    """What a library needs, and the versions of the symbols."""
    command = ["readelf", "--dynamic", "--version-info", "--wide", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BoardError(f"readelf cannot read {library.name}: {done.stderr.strip()}")
    return done.stdout
