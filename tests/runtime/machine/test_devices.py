"""The device is the one that was asked for, or an error."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import FRONT_END
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MissingExtraError
from dasheng_edge.runtime.machine import devices
from dasheng_edge.runtime.machine.devices import (
    checked_device,
    checked_threads,
    onnx_session,
    run_graph,
    spinning,
    usable_cores,
)


@pytest.mark.parametrize(
    ("version", "waits"), [("1.23.2", None), ("1.25.9", None), ("1.26.0", "10"), ("1.32.1", "10"), ("2.0.0rc1", "10")]
)
def test_threads_wait_in_a_loop_only_where_that_has_an_end(version: str, waits: str | None) -> None:
    found = spinning(version)
    assert found.get("session.intra_op.spin_duration_us") == waits
    assert found["session.intra_op.allow_spinning"] == ("0" if waits is None else "1")


def test_unknown_devices_and_thread_counts() -> None:
    assert checked_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="expected one of cpu, cuda"):
        checked_device("tpu")
    assert checked_threads(1) == 1
    assert checked_threads(None) == usable_cores()
    for threads in (0, (os.cpu_count() or 1) + 1, 100_000):
        with pytest.raises(
            DeviceError, match=rf"cannot run on {threads} threads; expected 1 to {os.cpu_count() or 1},"
        ):
            checked_threads(threads)


def test_onnx_runtime_sends_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    fake = SimpleNamespace(
        InferenceSession=None, disable_telemetry_events=lambda: called.append(os.environ["ORT_DISABLE_TELEMETRY"])
    )
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert id(devices.load_onnxruntime()) == id(fake)
    assert called == ["1"]


def fake_cpus(folder: Path, siblings: dict[int, str]) -> None:
    for cpu, text in siblings.items():
        (folder / f"cpu{cpu}/topology").mkdir(parents=True)
        (folder / f"cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_core_with_two_threads_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_cpus(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert usable_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 8, 9})  # of which nothing is known
    assert usable_cores() == 3


def test_a_container_quota_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for text, cores in (("150000 100000", 2), ("max 100000", 8), ("1000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert usable_cores() == cores


def test_onnx_runtime_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[cpu\]"):
        onnx_session(tmp_path, "cpu", 1)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[gpu\]"):
        onnx_session(tmp_path, "cuda", 1)


def test_a_provider_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="needs ONNX Runtime's CUDAExecutionProvider, this one has CPU"):
        onnx_session(tmp_path, "cuda", 1)


def test_a_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen_back)
    with pytest.raises(DeviceError, match="would have run on CPUExecutionProvider"):
        onnx_session(tmp_path, "cuda", 1)


def test_a_graph_that_fails_to_run(tiny_bundle: Path) -> None:
    session = onnx_session(tiny_bundle / FRONT_END, "cpu", 1)
    with pytest.raises(DeviceError, match=r"failed on CPUExecutionProvider with waveform \(3,\): .*; free memory"):
        run_graph(session, {"waveform": np.zeros(3, np.float32)})


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\0" * 99])
def test_graphs_that_do_not_load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FRONT_END
    path.write_bytes(content)
    with pytest.raises(BundleFileError, match="ONNX Runtime cannot load"):
        onnx_session(path, "cpu", 1)


def test_a_provider_that_fails_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    asked: dict[str, object] = {}

    def session(*_: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match=r"cannot start CUDAExecutionProvider: CUDA failure 100.*driver"):
        onnx_session(tmp_path, "cuda", 1)
    assert asked == {"providers": ["CUDAExecutionProvider"], "enable_fallback": 0}


class FakeSession:
    """Computes on a device that there is or is not."""

    def __init__(self, *_: object, providers: list[str], started: str = "", fails: str = "", **__: object) -> None:
        self.started, self.fails = started or providers[0], fails

    def get_providers(self) -> list[str]:
        return [self.started]

    def run(self, _: object, feed: dict[str, object]) -> list[object]:
        if self.fails:
            raise RuntimeError(self.fails)
        return [feed["x"]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which both engines have a GPU that works."""
    import onnxruntime

    from dasheng_edge.runtime.text import llama

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(llama, "build_info", lambda: ("CUDA", True))
    return monkeypatch


def test_auto_is_cuda_where_both_engines_have_it(gpu: pytest.MonkeyPatch) -> None:
    device, why = devices.choose_device()
    assert device == "cuda"
    assert "llama.cpp can offload" in why


def test_auto_is_cpu_where_onnx_runtime_has_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    import onnxruntime

    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, started="CPUExecutionProvider"))
    assert devices.choose_device()[0] == "cpu"
    assert "CUDAExecutionProvider does not start" in devices.choose_device()[1]
    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, fails="CUDA failure 2:\n out of memory"))
    assert devices.choose_device() == ("cpu", "CUDAExecutionProvider fails: CUDA failure 2: out of memory")
    gpu.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "is built without CUDAExecutionProvider" in devices.choose_device()[1]
    gpu.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed" in devices.choose_device()[1]


def test_auto_is_cpu_where_llama_cpp_has_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    from dasheng_edge.runtime.text import llama

    def missing() -> tuple[str, bool]:
        raise MissingExtraError("llama-cpp-python cannot be loaded")

    gpu.setattr(llama, "build_info", lambda: ("CPU", False))
    assert devices.choose_device() == ("cpu", "this llama.cpp finds no GPU or is built without support for it")
    gpu.setattr(llama, "build_info", missing)
    assert devices.choose_device() == ("cpu", "llama-cpp-python cannot be loaded")


def test_the_graph_that_a_provider_is_tried_with_computes() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(devices._TRIAL_GRAPH, providers=["CPUExecutionProvider"])
    (doubled,) = session.run(None, {"x": np.ones(1, np.float32)})
    assert doubled.tolist() == [2.0]


def test_hardware_threads_count_where_cores_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_cpus(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    monkeypatch.setattr(devices, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert (usable_cores(), devices.usable_hardware_threads()) == (2, 4)
    (tmp_path / "cpu.max").write_text("300000 100000")
    assert (usable_cores(), devices.usable_hardware_threads()) == (2, 3)
