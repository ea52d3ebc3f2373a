"""The doctor examines, and never fails itself."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dasheng_edge.runtime.errors import MissingExtraError
from dasheng_edge.runtime.machine import devices, doctor
from dasheng_edge.runtime.machine.doctor import DEPENDENCIES, examine
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.text import llama


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)


BASE = tuple(name for name, extra in DEPENDENCIES.items() if not extra)
EXPORT = tuple(name for name, extra in DEPENDENCIES.items() if extra == "export")


def test_this_machine() -> None:
    report = examine()
    assert report.problems == ()
    assert "CPUExecutionProvider" in report.onnx_providers
    assert "CPU" in report.llama_system
    assert report.usable_cores >= 1
    assert report.versions["numpy"] == metadata.version("numpy")
    assert report.memory_gib is None or report.memory_gib > 0.1


def test_both_distributions_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BASE, "onnxruntime", "onnxruntime-gpu", *EXPORT)
    report = examine()
    (problem,) = report.problems
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem
    assert report.missing_extras == {}


def test_no_onnx_runtime_and_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BASE)
    report = examine()
    assert any(install_line("cpu") in problem for problem in report.problems)
    assert report.onnx_providers == ()
    assert set(report.missing_extras) == {"cpu", "export"}


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    report = examine()
    assert [problem for problem in report.problems if problem.startswith("av is not installed")]
    assert len(report.problems) == len(BASE) + 1
    assert (report.llama_system, report.llama_gpu_offload) == ("", False)


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def no_llama() -> None:
        raise MissingExtraError("libllama.so: cannot open shared object file")

    monkeypatch.setattr(llama, "llama_cpp_library", no_llama)
    report = examine()
    assert len(report.problems) == 2
    assert all("does not load" in problem for problem in report.problems)


def test_an_onnx_runtime_whose_files_were_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    # What stays of it after onnxruntime-gpu was uninstalled: an empty package.
    monkeypatch.setattr(devices, "import_module", lambda _: importlib.import_module("types"))
    (problem,) = examine().problems
    assert "its files are incomplete" in problem


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
    monkeypatch.setattr(doctor, "_CPUINFO", path)
    report = examine()
    assert (report.cpu, report.cpu_flags) == cpu


def test_systems_without_these_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_CPUINFO", tmp_path / "none")

    def no_sysconf(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", no_sysconf)
    report = examine()
    assert report.cpu_flags == ()
    assert report.memory_gib is None
