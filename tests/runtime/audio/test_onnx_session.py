"""A graph runs on the device that was asked for, or there is an error."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.audio import onnx_session as module
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.onnx_session import cuda_options, onnx_session, run_graph, spinning
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MissingExtraError
from dasheng_edge.runtime.machine.governor import Governor
from dasheng_edge.runtime.machine.gpu import Gpus
from dasheng_edge.runtime.machine.meters import CpuUse
from tests.fixtures.fake_gpu import FakeCuda, fake_cuda

__all__ = ["fake_cuda"]


@pytest.mark.parametrize(
    ("version", "waits"), [("1.23.2", None), ("1.25.9", None), ("1.26.0", "10"), ("1.32.1", "10"), ("2.0.0rc1", "10")]
)
def test_threads_wait_in_a_loop_only_where_that_has_an_end(version: str, waits: str | None) -> None:
    found = spinning(version)
    assert found.get("session.intra_op.spin_duration_us") == waits
    assert found["session.intra_op.allow_spinning"] == ("0" if waits is None else "1")


def test_onnx_runtime_sends_no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[object]()
    fake = SimpleNamespace(
        InferenceSession=None, disable_telemetry_events=lambda: called.append(os.environ["ORT_DISABLE_TELEMETRY"]),
        set_default_logger_severity=called.append,
    )  # fmt: skip
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert id(module.load_onnxruntime()) == id(fake)
    assert called == ["1", 4]  # and its log is off: errors are raised


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
        run_graph(session, tiny_bundle / FRONT_END, {"waveform": np.zeros(3, np.float32)}, {})


def test_packed_weights_give_the_same_bits(tiny_bundle: Path) -> None:
    path = tiny_bundle / PROJECTOR
    packed, stored = (onnx_session(path, "cpu", 1, packed=packed) for packed in (True, False))
    patches = np.random.default_rng(0).normal(size=(1, 250, packed.get_inputs()[0].shape[2])).astype(np.float32)
    assert stored.get_session_options().get_session_config_entry("session.disable_prepacking") == "1"
    np.testing.assert_array_equal(*(session.run(None, {"patches": patches})[0] for session in (packed, stored)))


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
    assert asked == {"providers": [("CUDAExecutionProvider", cuda_options(allow_tf32=False))], "enable_fallback": 0}


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_float32_is_float32_on_a_gpu_unless_tf32_is_allowed(
    fake_cuda: FakeCuda, tiny_bundle: Path, allow_tf32: bool
) -> None:
    AudioInputParts.open(Bundle.open(tiny_bundle), EngineOptions("cuda", allow_tf32=allow_tf32))
    used = {name: options.get("use_tf32", "0") for name, options in fake_cuda.opened.items()}
    assert used.pop(FRONT_END, "0") == "0"  # a spectrogram is never rounded
    graphs = str(int(allow_tf32))
    assert used == {ENCODER: graphs, PROJECTOR: graphs}


@pytest.mark.parametrize("listed", [True, False])  # builds whose provider is a plug-in do not list one that fails
def test_what_keeps_a_provider_from_starting_is_named(fake_cuda: FakeCuda, tmp_path: Path, listed: bool) -> None:
    fake_cuda.starts, fake_cuda.listed = False, listed
    with pytest.raises(DeviceError, match="it gives no reason"):
        onnx_session(tmp_path, "cuda", 1)
    fake_cuda.lacks = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    missing = r"libcublasLt\.so\.13 is missing; it needs CUDA 13 and cuDNN 9, which come with pip install .*\[gpu\]"
    with pytest.raises(DeviceError, match=missing):
        onnx_session(tmp_path, "cuda", 1)
    assert re.search(missing, module.why_not_cuda())
    fake_cuda.gpus = Gpus((), "no NVIDIA GPU is visible: the driver finds none")
    with pytest.raises(DeviceError, match="no NVIDIA GPU is visible: the driver finds none; "):
        onnx_session(tmp_path, "cuda", 1)
    assert module.why_not_cuda() == "no NVIDIA GPU is visible: the driver finds none"


def test_libraries_that_pip_brought_are_loaded_and_nothing_is_printed(
    fake_cuda: FakeCuda, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_cuda.starts = False
    with pytest.raises(DeviceError):
        onnx_session(tmp_path, "cuda", 1)
    assert fake_cuda.preloaded == 1
    module.why_not_cuda()
    assert fake_cuda.preloaded == 1  # once for a process
    assert capfd.readouterr() == ("", "")


def test_the_graph_that_a_provider_is_tried_with_computes() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(module._TRIAL_GRAPH, providers=["CPUExecutionProvider"])
    (doubled,) = session.run(None, {"x": np.ones(1, np.float32)})
    assert doubled.tolist() == [2.0]


def test_a_decoder_in_another_thread_gives_way_meanwhile(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    governor = Governor(lambda: CpuUse(1e9, None, 0.0, 4))
    monkeypatch.setattr(module, "governor", lambda: governor)
    seen = list[tuple[int, ...]]()

    def run(*_: object) -> list[object]:
        seen.append(governor.threads(4))
        return []

    options = SimpleNamespace(intra_op_num_threads=3)
    session: Any = SimpleNamespace(get_session_options=lambda: options, run=run)
    run_graph(session, tiny_bundle / FRONT_END, {}, {})
    assert (seen, governor.threads(4)) == ([(1,)], (4,))
