"""The parts of a bundle: where they are, what they take of a card, and what they do before the first request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime import parts as parts_module
from dasheng_edge.runtime.audio import encoder as encoder_module
from dasheng_edge.runtime.audio import onnx_session
from dasheng_edge.runtime.bundle.bundle import DECODER as DECODER_FILE
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import MemoryShortError, MissingExtraError
from dasheng_edge.runtime.machine.devices import Placement
from dasheng_edge.runtime.machine.gpu import Gpu, Gpus
from dasheng_edge.runtime.machine.placing import ALL, DECODER, ENCODER, Card
from dasheng_edge.runtime.parts import Parts, check_memory, choose_placement, needs_of, on_card
from dasheng_edge.runtime.planning.memory import Use, account
from dasheng_edge.runtime.planning.shape import ModelShape
from dasheng_edge.runtime.text import context as context_module
from dasheng_edge.runtime.text.context import Context
from dasheng_edge.runtime.text.context_memory import context_bytes
from dasheng_edge.runtime.text.decoder import FIRST_CONTEXT, Decoder
from dasheng_edge.runtime.text.sequences import Sequences
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


def see(monkeypatch: pytest.MonkeyPatch, gpus: Gpus) -> None:
    """What the driver tells."""
    for module in (onnx_session, parts_module):
        monkeypatch.setattr(module, "find_gpus", lambda: gpus)


def card_of(gpu: Gpu) -> Card:
    """As the only one."""
    card = Card.first(Gpus((gpu,), ""))
    assert card
    return card


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which both engines have a GPU that works."""
    import onnxruntime

    from dasheng_edge.runtime.text import llama

    see(monkeypatch, Gpus((H200,), ""))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(llama, "build_info", lambda: ("CUDA", True))
    return monkeypatch


@pytest.fixture
def auto(gpu: pytest.MonkeyPatch, tiny_bundle: Path) -> Callable[[], tuple[str, str]]:
    """What "auto" is for a small bundle, and why."""

    def chosen() -> tuple[str, str]:
        place, why = choose_placement(tiny_bundle, EngineOptions())
        return str(place), why

    return chosen


def test_auto_is_cuda_where_both_engines_have_it(auto: Callable[[], tuple[str, str]]) -> None:
    device, why = auto()
    assert device == "cuda"
    assert "150,000 MB are free on NVIDIA H200" in why


def test_auto_leaves_to_the_cpu_what_onnx_runtime_cannot_put_on_the_gpu(
    gpu: pytest.MonkeyPatch, auto: Callable[[], tuple[str, str]]
) -> None:
    import onnxruntime

    def why_not() -> str:
        device, why = auto()
        assert device == "encoder=cpu,decoder=cuda"
        assert why.startswith("the decoder alone needs about ")
        return why.partition("NVIDIA H200; ")[2]

    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, started="CPUExecutionProvider"))
    assert "CUDAExecutionProvider does not start" in why_not()
    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, fails="CUDA failure 2:\n out of memory"))
    assert why_not() == "CUDAExecutionProvider fails: CUDA failure 2: out of memory"
    gpu.setattr(
        onnxruntime, "InferenceSession", partial(FakeSession, fails=" ".join(["std::conditional_t<THRW, void, X>"] * 9)
        + " CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/a.cc"),
    )  # fmt: skip
    assert why_not() == "CUDAExecutionProvider fails: CUDA failure 100: no CUDA-capable device is detected"
    gpu.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "is built without CUDAExecutionProvider" in why_not()
    gpu.setitem(sys.modules, "onnxruntime", None)
    assert "ONNX Runtime is not installed" in why_not()


def test_auto_leaves_to_the_cpu_what_llama_cpp_cannot_put_on_the_gpu(
    gpu: pytest.MonkeyPatch, auto: Callable[[], tuple[str, str]]
) -> None:
    from dasheng_edge.runtime.text import llama

    def missing() -> tuple[str, bool]:
        raise MissingExtraError("llama-cpp-python cannot be loaded")

    for info, why in (
        (lambda: ("CPU", False), "this llama.cpp finds no GPU or is built without support for it"),
        (missing, "llama-cpp-python cannot be loaded"),
    ):
        gpu.setattr(llama, "build_info", info)
        device, said = auto()
        assert device == "encoder=cuda,decoder=cpu"
        assert said.startswith("the encoder alone needs about ")
        assert said.endswith(f"; {why}")


def test_auto_is_cpu_where_no_engine_has_a_gpu_or_there_is_none(
    gpu: pytest.MonkeyPatch, auto: Callable[[], tuple[str, str]]
) -> None:
    import onnxruntime

    from dasheng_edge.runtime.text import llama

    gpu.setattr(llama, "build_info", lambda: ("CPU", False))
    gpu.setattr(onnxruntime, "InferenceSession", partial(FakeSession, fails="CUDA failure 2: out of memory"))
    assert auto() == ("cpu", "CUDAExecutionProvider fails: CUDA failure 2: out of memory")
    see(gpu, Gpus((), "no NVIDIA GPU is visible: the driver finds none"))
    assert auto() == ("cpu", "no NVIDIA GPU is visible: the driver finds none")


def test_auto_places_what_fits(gpu: pytest.MonkeyPatch, auto: Callable[[], tuple[str, str]], tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    needs = needs_of(bundle, EngineSettings()).on(card_of(H200))
    for place in (ALL, DECODER, ENCODER):
        free = needs.total(place)
        see(gpu, Gpus((replace(H200, free_bytes=free),), ""))
        assert needs.total(Placement.parse(auto()[0])) <= free
    assert auto()[0] != "cuda"


@pytest.mark.parametrize(
    "settings", [EngineSettings(), EngineSettings(exact=False), EngineSettings(exact=True)], ids=str
)
def test_what_a_bundle_needs_is_counted_as_for_the_loaded_model(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, settings: EngineSettings
) -> None:
    counts, count = list[int](), context_bytes

    def counted(model: Any, params: Any) -> tuple[int, int]:
        counts.append(count(model, params)[0])
        return count(model, params)

    monkeypatch.setattr(context_module, "context_bytes", counted)
    bundle = Bundle.open(tiny_bundle)
    decoder = Decoder.open(bundle.path(DECODER_FILE), settings)
    decoder.new_context(FIRST_CONTEXT).close()
    needs, logits = needs_of(bundle, settings), 4 * decoder.n_vocab
    decoder.close()
    assert counts == [needs.answer + needs.decoded + logits]
    facts = bundle.decoder_facts  # of a file in F32; the embeddings stay on the CPU
    assert needs.decoder == 4 * (facts.parameters - facts.vocab_size * facts.hidden_size)


class Seen:
    """Shapes of what engines are given: runs of graphs, and for the decoder rows and answers of each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs, self.rows = list[tuple[str, tuple[int, ...]]](), list[tuple[int, int]]()
        run, decode = onnx_session.run_graph, Context.decode

        def ran(session: Any, path: Path, feed: dict[str, Any], wanted: Any) -> Any:
            self.graphs.append((path.name, next(value.shape for value in feed.values())))
            return run(session, path, feed, wanted)

        def decoded(context: Context, rows: Any, positions: Any, sequences: Any, wanted: Any) -> None:
            self.rows.append((len(rows), len(set(sequences.tolist()))))
            decode(context, rows, positions, sequences, wanted)

        monkeypatch.setattr(encoder_module, "run_graph", ran)
        monkeypatch.setattr(Context, "decode", decoded)


def on_gpu(parts: Parts, settings: EngineSettings) -> Parts:
    """Parts that were opened on a CPU say that they are elsewhere."""
    parts.decoder.settings = settings
    return parts


def test_parts_on_a_gpu_are_run_at_the_sizes_of_requests_and_change_no_answer(
    fake_cuda: FakeCuda, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, clip = Bundle.open(tiny_bundle), (np.sin(np.arange(16_000, dtype=np.float32)), 16_000)
    with Captioner.open(tiny_bundle, options=EngineOptions(cache="off")) as cold:
        want = cold.caption(clip).tokens
    settings = EngineSettings("cuda", decoder_device="cpu", warm_up=True)
    parts = Parts.open(bundle, settings)
    seen = Seen(monkeypatch)
    parts.warm_up()
    assert seen.graphs
    assert seen.rows == []  # it is on the CPU
    on_gpu(parts, EngineSettings(decoder_device="cuda", warm_up=True))
    seen.graphs.clear()
    alone = Sequences(parts.decoder, 1, keep=True)
    parts.warm_up(alone)
    assert seen.graphs == []
    assert seen.rows[0][0] > 500
    assert {(width, width) for width in range(1, 9)} <= set(seen.rows)  # steps of several answers
    assert (alone.positions, parts.decoder.n_ctx) == (FIRST_CONTEXT, 0)  # no more than a usual request needs
    alone.close()
    on_gpu(parts, settings)
    with Captioner(bundle, parts) as warm:
        assert warm.caption(clip).tokens == want


def test_what_is_not_to_be_warmed_up_is_not(
    fake_cuda: FakeCuda, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts.open(Bundle.open(tiny_bundle), EngineSettings("cuda", decoder_device="cpu"))
    seen = Seen(monkeypatch)
    parts.warm_up()
    on_gpu(parts, EngineSettings(warm_up=True)).warm_up()
    assert not seen.graphs
    assert not seen.rows
    parts.decoder.close()


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
    with pytest.raises(
        MemoryShortError, match=r"MB of the GPU's memory, 300 MB are free.*CUDA 1,542.*take --device cpu"
    ):
        Parts.open(Bundle.open(tiny_bundle), options)
    assert fake_cuda.opened == {}


def test_an_encoder_that_embeds_is_counted_alone(fake_cuda: FakeCuda, tiny_bundle: Path) -> None:
    needed = needs_of(Bundle.open(tiny_bundle), EngineSettings()).on(card_of(H200)).total(ENCODER)
    fake_cuda.gpus = Gpus((replace(H200, free_bytes=needed),), "")
    Embedder.open(tiny_bundle, device="cuda").close()
    fake_cuda.opened.clear()
    fake_cuda.gpus = Gpus((replace(H200, free_bytes=needed - 1),), "")
    with pytest.raises(MemoryShortError, match="MB are free on NVIDIA H200"):
        Embedder.open(tiny_bundle, device="cuda")
    assert fake_cuda.opened == {}


def test_no_more_answers_are_made_at_once_than_the_card_has_room_for(fake_cuda: FakeCuda, tiny_bundle: Path) -> None:
    bundle, settings = Bundle.open(tiny_bundle), EngineSettings(decoder_device="cuda", batch=64)
    needs = needs_of(bundle, settings).on(card_of(H200))
    for room, batch in ((0, 1), (6, 7), (200, 64)):
        free = needs.total(DECODER) + room * needs.answer
        fake_cuda.gpus = Gpus((replace(H200, free_bytes=free),), "")
        assert on_card(bundle, settings).batch == batch


def test_a_board_that_does_not_tell_what_is_free_is_tried(fake_cuda: FakeCuda, tiny_bundle: Path) -> None:
    fake_cuda.gpus = Gpus((replace(H200, free_bytes=None),), "")
    Parts.open(Bundle.open(tiny_bundle), EngineSettings("cuda", decoder_device="cpu")).decoder.close()


def test_what_does_not_fit_is_refused_with_the_recipe_that_would(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle, check_sha256=False)
    use = Use(clip_s=1.0, tokens=1)
    low = account(ModelShape.of(bundle), use.with_low_memory).taken()
    room: int | None = low
    monkeypatch.setattr("dasheng_edge.runtime.parts.room_bytes", lambda: room)

    def short(what: str, fix: str, *, own: int, mapped: int) -> None:
        assert own > 0
        assert own + mapped >= bundle.path(DECODER_FILE).stat().st_size
        raise MemoryShortError(f"{what}: {fix}")

    monkeypatch.setattr("dasheng_edge.runtime.parts.require", short)
    with pytest.raises(MemoryShortError, match=r"take --low-memory \(memory=\"low\"\), with which it takes \d+ MB$"):
        check_memory(bundle, EngineSettings())
    room = low - 1
    with pytest.raises(MemoryShortError, match=r"quantize it to [a-z]+, which takes \d+ MB$"):
        check_memory(bundle, EngineSettings(memory="low"))
    room = 0
    with pytest.raises(MemoryShortError, match=r"smaller recipe$"):
        check_memory(bundle, EngineSettings())
    monkeypatch.setattr("dasheng_edge.runtime.parts.require", lambda *_, **__: None)
    assert check_memory(bundle, EngineSettings(), text=False).endswith(": free memory")
    room = low
    assert "take --low-memory" in check_memory(bundle, EngineSettings())
    room = None
    assert check_memory(bundle, EngineSettings()) == ""


def test_what_fits_only_with_its_files_read_again_is_said(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasheng_edge.runtime.parts.room_bytes", lambda: 1_000_000)
    with Captioner.open(tiny_bundle, options=EngineOptions(cache="off")) as captioner:
        assert "1 MB are left" in captioner.parts.memory_note
    monkeypatch.setattr("dasheng_edge.runtime.parts.room_bytes", lambda: 8_000_000_000)
    with Captioner.open(tiny_bundle, options=EngineOptions(cache="off", memory="low")) as captioner:
        assert captioner.parts.memory_note == ""
