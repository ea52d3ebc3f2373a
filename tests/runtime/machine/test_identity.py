"""What a machine is told by, and what is said where a system does not tell it."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from dasheng_edge.runtime.machine import identity
from dasheng_edge.runtime.machine.identity import identify, installed, version_of


def test_versions_are_those_of_what_is_installed() -> None:
    assert version_of("no-such-distribution") is None
    assert installed(("numpy", "no-such-distribution")) == {"numpy": metadata.version("numpy")}
    assert "llama-cpp-python" in installed()


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("model name\t: Some Xeon\nflags\t\t: fpu avx2 avx512_vnni sse\n", ("Some Xeon", ("avx2", "avx512_vnni"))),
        ("Features\t: fp asimd asimddp\nModel\t: Raspberry Pi 5\n", ("Raspberry Pi 5", ("asimd", "asimddp"))),
    ],
)
def test_cpu_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cpu: tuple[str, tuple[str, ...]]
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(identity, "_CPUINFO", path)
    machine = identify()
    assert (machine.cpu, machine.cpu_flags) == cpu


def test_systems_without_these_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(identity, "_CPUINFO", tmp_path / "none")

    def no_sysconf(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", no_sysconf)
    machine = identify()
    assert machine.cpu_flags == ()
    assert machine.memory_gib is None
