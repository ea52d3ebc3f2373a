"""The device for "auto" is one that all parts can use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.audio import onnx_session
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import MemoryShortError, MissingExtraError
from dasheng_edge.runtime.machine.gpu import Gpus
from dasheng_edge.runtime.parts import Parts, choose_device
from dasheng_edge.runtime.text.decoder import FIRST_CONTEXT
from tests.fixtures.fake_gpu import H200, FakeCuda, fake_cuda

__all__ = ["fake_cuda"]


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

    monkeypatch.setattr(onnx_session, "find_gpus", lambda: Gpus((H200,), ""))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(llama, "build_info", lambda: ("CUDA", True))
    return monkeypatch


def test_auto_is_cuda_where_both_engines_have_it(gpu: pytest.MonkeyPatch) -> None:
    device, why = choose_device()
    assert device == "cuda"
    assert "llama.cpp can offload" in why


def test_auto_is_cpu_where_onnx_runtime_has_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    import onnxruntime

    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, started="CPUExecutionProvider"))
    assert choose_device()[0] == "cpu"
    assert "CUDAExecutionProvider does not start" in choose_device()[1]
    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, fails="CUDA failure 2:\n out of memory"))
    assert choose_device() == ("cpu", "CUDAExecutionProvider fails: CUDA failure 2: out of memory")
    gpu.setattr(
        onnxruntime, "InferenceSession", partial(FakeSession, fails=" ".join(["std::conditional_t<THRW, void, X>"] * 9)
        + " CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/a.cc"),
    )  # fmt: skip
    why = "CUDAExecutionProvider fails: CUDA failure 100: no CUDA-capable device is detected"
    assert choose_device() == ("cpu", why)
    gpu.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "is built without CUDAExecutionProvider" in choose_device()[1]
    gpu.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed" in choose_device()[1]


def test_auto_is_cpu_where_llama_cpp_has_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    from dasheng_edge.runtime.text import llama

    def missing() -> tuple[str, bool]:
        raise MissingExtraError("llama-cpp-python cannot be loaded")

    gpu.setattr(llama, "build_info", lambda: ("CPU", False))
    assert choose_device() == ("cpu", "this llama.cpp finds no GPU or is built without support for it")
    gpu.setattr(llama, "build_info", missing)
    assert choose_device() == ("cpu", "llama-cpp-python cannot be loaded")


def test_parts_on_a_gpu_are_run_at_the_sizes_of_requests_and_change_no_answer(
    fake_cuda: FakeCuda, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, clip = Bundle.open(tiny_bundle), (np.sin(np.arange(16_000, dtype=np.float32)), 16_000)
    with Captioner.open(tiny_bundle, options=EngineOptions(cache="off")) as cold:
        want = cold.caption(clip).tokens
    settings = EngineSettings("cuda", decoder_device="cpu", warm_up=True)
    parts = Parts.open(bundle, settings)
    rows = list[int]()
    prefill = parts.decoder.prefill

    def prefilled(segments: Sequence[Any], *, reserve: int = 0) -> None:
        rows.append(sum(map(len, segments)))
        prefill(segments, reserve=reserve)

    monkeypatch.setattr(parts.decoder, "prefill", prefilled)
    parts.warm_up()
    assert rows == []  # it is on the CPU
    parts.decoder.settings = replace(settings, decoder_device=None)
    parts.warm_up()
    assert rows[0] > 500 > rows[-1] > 1
    assert parts.decoder.n_ctx == FIRST_CONTEXT  # nothing is taken that a usual request does not need
    with Captioner(bundle, parts) as warm:
        assert warm.caption(clip).tokens == want


@pytest.mark.parametrize(
    ("options", "fits"),
    [(EngineSettings("cuda"), False), (EngineSettings(decoder_device="cuda"), False), (EngineSettings(), True)],
)
def test_what_does_not_fit_into_the_memory_of_a_card_is_refused_before_it_is_loaded(
    fake_cuda: FakeCuda, tiny_bundle: Path, options: EngineSettings, fits: bool
) -> None:
    fake_cuda.gpus = Gpus((replace(H200, free_bytes=300_000_000),), "")
    if fits:
        Parts.open(Bundle.open(tiny_bundle), options).decoder.close()
        return
    with pytest.raises(MemoryShortError, match=r"MB of the GPU's memory, 300 MB are free.*encoder=cuda,decoder=cpu"):
        Parts.open(Bundle.open(tiny_bundle), options)
    assert fake_cuda.opened == {}


def test_a_board_that_does_not_tell_what_is_free_is_tried(fake_cuda: FakeCuda, tiny_bundle: Path) -> None:
    fake_cuda.gpus = Gpus((replace(H200, free_bytes=None),), "")
    Parts.open(Bundle.open(tiny_bundle), EngineSettings("cuda", decoder_device="cpu")).decoder.close()
