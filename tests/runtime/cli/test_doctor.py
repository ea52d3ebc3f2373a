"""The doctor examines, and never fails itself."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dasheng_edge.runtime.audio import onnx_session
from dasheng_edge.runtime.cli import doctor
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.cli.doctor import CUDA_WORKS, dependencies, examine
from dasheng_edge.runtime.errors import MissingExtraError
from dasheng_edge.runtime.machine.gpu import Gpus
from dasheng_edge.runtime.machine.installation import LLAMA_CUDA, install_line
from dasheng_edge.runtime.text import llama
from tests.fixtures.fake_gpu import H200, FakeCuda, fake_cuda

__all__ = ["fake_cuda"]


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)


BASE = tuple(name for name, extras in dependencies().items() if not extras)
EXPORT = tuple(name for name, extras in dependencies().items() if "export" in extras)
PULL = tuple(name for name, extras in dependencies().items() if "pull" in extras)
QUANT = tuple(name for name, extras in dependencies().items() if "quant" in extras)
OTHERS = tuple(name for name, extras in dependencies().items() if extras & {"mic", "npu", "serve"})


def test_this_machine() -> None:
    report = examine()
    assert report.problems == ()
    assert "CPUExecutionProvider" in report.onnx_providers
    assert "CPU" in report.llama_system
    assert report.usable_cores >= 1
    assert report.versions["numpy"] == metadata.version("numpy")
    assert report.memory_gib is None or report.memory_gib > 0.1


def test_both_distributions_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BASE, "onnxruntime", "onnxruntime-gpu", *EXPORT, *PULL, *QUANT, *OTHERS)
    report = examine()
    (problem,) = report.problems
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem
    assert report.missing_extras == {}


def test_no_onnx_runtime_and_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BASE)
    report = examine()
    assert any(install_line("cpu") in problem for problem in report.problems)
    assert report.onnx_providers == ()
    assert set(report.missing_extras) == set().union(*dependencies().values()) - {"gpu"}


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
    monkeypatch.setattr(onnx_session, "import_module", lambda _: importlib.import_module("types"))
    (problem,) = examine().problems
    assert "its files are incomplete" in problem


def test_the_table_is_what_the_distribution_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        "numpy>=1.26", "onnx>=1.18; extra == 'export'", 'onnx>=1.18; extra == "quant"', "numpy>=2; extra == 'quant'",
        "torch>=2.9; python_version >= '3.11' and extra == 'export'", "aac-metrics>=0.6; extra == 'metrics'",
    ]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    assert dependencies() == {"numpy": set(), "onnx": {"export", "quant"}, "torch": {"export"}}


def test_this_distribution_is_read() -> None:
    table = dependencies()
    assert {name: table[name] for name in ("numpy", "onnxruntime", "torch", "onnx", "matplotlib")} == {
        "numpy": set(), "onnxruntime": {"cpu"}, "torch": {"export"}, "onnx": {"export", "quant"},
        "matplotlib": {"quant"},
    }  # fmt: skip


def test_only_quant_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *BASE, "onnxruntime", *EXPORT, *PULL, *OTHERS)
    assert set(examine().missing_extras) == {"quant"}


def test_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert "CPUExecutionProvider" in examine().onnx_providers


@pytest.fixture
def with_card(monkeypatch: pytest.MonkeyPatch, fake_cuda: FakeCuda) -> FakeCuda:
    """A card, and the packages that are meant for it."""
    installed(monkeypatch, *BASE, "onnxruntime-gpu", *EXPORT, *PULL, *QUANT, *OTHERS)
    monkeypatch.setattr(doctor, "find_gpus", lambda: fake_cuda.gpus)
    monkeypatch.setattr(llama, "build_info", lambda: ("CUDA", True))
    return fake_cuda


def test_a_card_that_works_is_named(with_card: FakeCuda) -> None:
    report = examine()
    assert (report.gpus, report.cuda, report.problems) == ((H200,), CUDA_WORKS, ())


def test_what_a_bundle_takes_of_a_card_is_said(with_card: FakeCuda, tiny_bundle: Path) -> None:
    with_card.gpus = Gpus((replace(H200, free_bytes=1_600_000_000),), "")
    report = examine(tiny_bundle)
    assert re.search(r"MB \(encoder and projector \d+, .*decoder \d+, .*512 positions \d+, CUDA 1,542\)", report.on_gpu)
    assert re.search(r"^cuda: all parts need about [\d,]+ MB, 1,600 MB are free on NVIDIA H200$", report.auto)
    shown = CliRunner().invoke(build_app(), ["doctor", str(tiny_bundle)], env={"COLUMNS": "200"}).stdout
    assert "on the GPU" in shown
    assert "1,600 MB free" in shown
    assert not examine().auto
    missing = CliRunner().invoke(build_app(), ["doctor", str(tiny_bundle / "no")])
    assert missing.exit_code == 1


def test_a_library_that_cuda_lacks_is_named_with_what_installs_it(with_card: FakeCuda) -> None:
    with_card.starts, with_card.lacks = False, "libcudnn.so.9: cannot open shared object file"
    (problem,) = examine().problems
    assert problem.startswith("--device cuda does not work: CUDAExecutionProvider does not start: libcudnn.so.9 is")
    assert install_line("gpu") in problem


def test_a_llama_cpp_without_cuda_beside_a_card(with_card: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "build_info", lambda: ("CPU", False))
    assert LLAMA_CUDA in examine().cuda


def test_a_machine_without_a_card_is_well(with_card: FakeCuda) -> None:
    with_card.gpus = Gpus((), "no NVIDIA GPU is visible: the driver finds none")
    report = examine()
    assert (report.gpus, report.cuda, report.problems) == ((), with_card.gpus.problem, ())
