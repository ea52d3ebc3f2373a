"""The front end in blocks against the front end at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.front_end import FrontEnd, FrontEndGraph, check_front_end
from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.bundle.bundle import FRONT_END, PROJECTOR
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MemoryShortError
from tests.fixtures.places import TWO_SPECTRA_GRAPH

TWO_SPECTRA = FrontEndSpec(acoustic=AcousticSpec(n_mels=20))  # of TWO_SPECTRA_GRAPH
SPEC = FrontEndSpec()
SMALL = {"chunk_frames": 40}  # so that short clips have many chunks


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return FrontEnd(SPEC.model_copy(update=SMALL), threads=1)


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> FrontEndGraph:
    return FrontEndGraph(tiny_bundle / FRONT_END, SPEC)


def at_once(graph: FrontEndGraph, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    return graph.features(waveform).log_mel


def cut(waveform: NDArray[np.float32], sizes: list[int]) -> list[NDArray[np.float32]]:
    edges = np.cumsum(sizes)
    return np.split(waveform, edges[edges < len(waveform)])


def scene(samples: int, seed: int) -> NDArray[np.float32]:
    """Digital silence, faint noise and short loud tones, so that something lies below the loudest - top_db."""
    rng = np.random.default_rng(seed)
    waveform = np.where(rng.random(samples // 400 + 1).repeat(400)[:samples] < 0.5, 0, rng.normal(0, 1e-4, samples))
    tone = np.cos(np.arange(120) * 2 * np.pi / 16)  # 1 kHz
    for start in rng.integers(0, samples - len(tone), max(1, samples // 9_000)):
        waveform[start : start + len(tone)] = rng.uniform(0.1, 1) * tone
    return waveform.astype(np.float32)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(3_200, 60_000), st.integers(0, 2**32 - 1))
def test_chunks_are_cuts_of_the_whole(graph: FrontEndGraph, front_end: FrontEnd, samples: int, seed: int) -> None:
    waveform = scene(samples, seed)
    whole, first = at_once(graph, waveform), 0
    for chunk, place in front_end.chunks([waveform]):
        start = place * SPEC.patch_frames
        assert place == first
        assert chunk.samples == samples
        assert np.abs(chunk.log_mel - whole[:, start : start + chunk.log_mel.shape[1]]).max() <= 1e-4  # dB
        first += chunk.log_mel.shape[1] // SPEC.patch_frames
    assert first == SPEC.patches_of(samples)


class SmallParts(FrontEnd):
    PART_FRAMES = 12
    parts = 0

    def _part(self, waveform: NDArray[np.float32], first: int, count: int) -> list[NDArray[np.float32]]:
        self.parts += 1
        return super()._part(waveform, first, count)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(6_400, 30_000), st.integers(0, 2**32 - 1))
def test_threads_give_what_one_gives(graph: FrontEndGraph, samples: int, seed: int) -> None:
    waveform = scene(samples, seed)
    several = SmallParts(SPEC.model_copy(update=SMALL), threads=3)
    got = several.features([waveform]).log_mel
    assert several.parts >= 2
    assert np.abs(got - at_once(graph, waveform)).max() <= 1e-4  # dB; as below


class Seen(SmallParts):
    """Notes in which thread each part is computed; the first one waits until it is let on."""

    def __init__(self, threads: int) -> None:
        super().__init__(SPEC.model_copy(update=SMALL), threads=threads)
        self.by: list[int] = []
        self.began, self.let_on = threading.Event(), threading.Event()

    def _part(self, waveform: NDArray[np.float32], first: int, count: int) -> list[NDArray[np.float32]]:
        self.by.append(threading.get_ident())
        if not self.began.is_set():
            self.began.set()
            assert self.let_on.wait(10)
        return super()._part(waveform, first, count)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_clips_of_several_callers_have_a_thread_each_and_one_alone_has_all(threads: int) -> None:
    front_end, waveform, me = Seen(threads), scene(20_000, 5), threading.get_ident()
    alone = FrontEnd(SPEC.model_copy(update=SMALL)).features([waveform]).log_mel
    with ThreadPoolExecutor(1) as other:
        waits = other.submit(front_end.features, [waveform[:3_200]])  # one part
        assert front_end.began.wait(10)
        front_end.by.clear()
        beside = front_end.features([waveform]).log_mel
        assert set(front_end.by) == {me}
        front_end.let_on.set()
        waits.result()
    front_end.by.clear()
    last = front_end.features([waveform]).log_mel
    assert (me not in front_end.by[0:2]) == (threads > 1)
    assert 1 <= len(set(front_end.by)) <= min(threads, SMALL["chunk_frames"] // SmallParts.PART_FRAMES) + 1
    assert np.array_equal(beside, alone)
    assert np.abs(last - alone).max() <= 1e-4  # dB, as above


def test_what_fails_leaves_the_threads_to_the_next() -> None:
    several, bad = Seen(3), np.full(8_000, np.inf, np.float32)
    several.began.set()
    for _ in range(3):
        with pytest.raises(DeviceError):
            several.features([bad])
    several.by.clear()
    several.features([scene(20_000, 6)])
    assert threading.get_ident() not in several.by[:2]


def test_threads_give_both_spectrograms(graph_of_two: FrontEndGraph) -> None:
    waveform = scene(20_000, 3)
    several = SmallParts(TWO_SPECTRA.model_copy(update=SMALL), threads=3)
    features, (log_mel, acoustic) = several.features([waveform]), both_at_once(graph_of_two, waveform)
    assert features.acoustic is not None
    assert np.abs(features.log_mel - log_mel).max() <= 1e-4  # dB
    assert np.abs(features.acoustic - acoustic).max() <= 1e-5  # nepers


def test_an_interpreter_that_ends_computes_without_threads(
    graph: FrontEndGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = SmallParts(SPEC.model_copy(update=SMALL), threads=3)
    several._pool.shutdown()  # refuses work with the same error
    waveform = scene(20_000, 4)
    assert np.abs(several.features([waveform]).log_mel - at_once(graph, waveform)).max() <= 1e-4


# The fixture is read-only, so hypothesis may use it for all examples.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(3_200, 60_000), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9_000), min_size=1, max_size=9))
@example(161_120 // 4, 0, [6_400])
def test_blocks_give_what_one_run_gives(
    graph: FrontEndGraph, front_end: FrontEnd, samples: int, seed: int, sizes: list[int]
) -> None:
    waveform = scene(samples, seed)
    features = front_end.features(cut(waveform, sizes))
    got = features.log_mel
    assert features.samples == samples
    want = at_once(graph, waveform)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-4  # dB; rounding, since the two multiply matrices of other sizes


@pytest.mark.parametrize("before_edge", range(1, 200, 6))
def test_a_reflection_that_is_louder_than_the_clip(graph: FrontEndGraph, front_end: FrontEnd, before_edge: int) -> None:
    # The graph sees the clip up to sample 6560 first. A tone that ends just there is reflected into one of
    # twice its length and loudness, which is not in the clip and must not raise its floor.
    waveform = np.zeros(16_000, np.float32)
    edge = (SMALL["chunk_frames"] + 1) * SPEC.hop_length
    waveform[edge - before_edge - 100 : edge - before_edge] = np.cos(np.arange(100)[::-1] * 2 * np.pi / 16)
    got = front_end.features([waveform]).log_mel
    assert np.abs(got - at_once(graph, waveform)).max() <= 1e-4


@pytest.mark.parametrize("samples", [1, 3_039, 3_199, 3_200, 3_201, 12_000])
def test_short_clips_are_padded_with_silence(graph: FrontEndGraph, front_end: FrontEnd, samples: int) -> None:
    waveform = np.full(samples, 0.5, np.float32)
    features = front_end.features([waveform])
    log_mel, counted = features.log_mel, features.samples
    assert counted == max(samples, 3_200)
    padded = np.pad(waveform, (0, counted - samples))
    assert np.array_equal(log_mel, at_once(graph, padded))
    assert log_mel.shape == (64, SPEC.frames_of(counted))


@pytest.mark.parametrize("samples", [161_120, 161_279, 161_280, 161_281, 323_040])
def test_full_blocks(graph: FrontEndGraph, samples: int) -> None:
    front_end = FrontEnd(SPEC, threads=1)
    square = np.sign(np.sin(np.arange(samples) / 7)).astype(np.float32)
    for waveform in (square, np.zeros_like(square), scene(samples, 1)):
        got = front_end.features(cut(waveform, [16_000] * 30)).log_mel
        assert np.abs(got - at_once(graph, waveform)).max() <= 1e-4


def test_silence_is_at_the_floor(front_end: FrontEnd) -> None:
    log_mel = front_end.features([np.zeros(8_000, np.float32)]).log_mel
    assert np.all(log_mel == -100.0)  # 10 log10(1e-10)


def test_nothing_lies_further_below_the_loudest_bin_than_top_db(front_end: FrontEnd) -> None:
    waveform = np.zeros(40_000, np.float32)
    waveform[30_000:30_100] = 1.0
    log_mel = front_end.features(cut(waveform, [5_000] * 8)).log_mel
    assert log_mel.min() == log_mel.max() - np.float32(SPEC.top_db)


def test_the_graph_is_checked(tiny_bundle: Path) -> None:
    with pytest.raises(BundleFileError, match="expected waveform to log_mel;"):
        FrontEndGraph(tiny_bundle / PROJECTOR, SPEC)
    with pytest.raises(BundleFileError, match="expected waveform to log_mel, acoustic_mel;"):
        FrontEndGraph(tiny_bundle / FRONT_END, TWO_SPECTRA)
    with pytest.raises(
        BundleFileError, match=r"from waveform \(1, 3200\) it gives log_mel \(1, 64, 21\) .*\(1, 64, 247\)"
    ):
        FrontEndGraph(tiny_bundle / FRONT_END, FrontEndSpec(hop_length=13))
    assert onnx_session(tiny_bundle / FRONT_END, "cpu", 1).get_providers() == ["CPUExecutionProvider"]


LIES: list[dict[str, object]] = [
    {"hop_length": 13}, {"hop_length": 161}, {"n_fft": 510, "win_length": 510}, {"win_length": 400}, {"n_mels": 63},
    {"f_min_hz": 20.0}, {"f_max_hz": 7900.0}, {"log_floor": 1.1e-10}, {"top_db": 119.0},
    {"acoustic": AcousticSpec(n_mels=20)},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_manifest_that_states_other_numbers_than_its_graph_is_refused(
    tiny_bundle: Path, lie: dict[str, object]
) -> None:
    with pytest.raises(BundleFileError, match=r"front_end\.onnx (is no graph|computes another spectrogram)"):
        check_front_end(tiny_bundle / FRONT_END, SPEC.model_copy(update=lie))


@pytest.mark.parametrize("lie", [{"n_mels": 21}, {"f_max_hz": 7900.0}, {"log_floor": 2e-7}, {"win_length": 1000}])
def test_the_second_spectrogram_is_held_against_the_graph_too(lie: dict[str, object]) -> None:
    check_front_end(TWO_SPECTRA_GRAPH, TWO_SPECTRA)
    acoustic = AcousticSpec(n_mels=20).model_copy(update=lie)
    with pytest.raises(BundleFileError, match=r"two_spectra\.onnx "):
        check_front_end(TWO_SPECTRA_GRAPH, FrontEndSpec(acoustic=acoustic))


def test_a_failure_says_where_and_what_to_do(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory:
        def run(self, *_: object) -> None:
            raise RuntimeError("bad allocation")

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def get_session_options(self) -> onnxruntime.SessionOptions:
            return onnxruntime.SessionOptions()

    graph = FrontEndGraph(tiny_bundle / FRONT_END, SPEC)
    monkeypatch.setattr(graph, "_session", NoMemory())
    expected = r"no memory on CPUExecutionProvider with waveform \(1, 4000\): bad allocation; free"
    with pytest.raises(MemoryShortError, match=expected):
        graph.features(np.zeros(4_000, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(front_end: FrontEnd, value: float) -> None:
    waveform = np.zeros(8_000, np.float32)
    waveform[5_000] = value
    with pytest.raises(DeviceError, match="NaN or infinity"):
        front_end.features([waveform])
    waveform[5_000] = np.finfo(np.float32).max
    assert np.isfinite(front_end.features([waveform]).log_mel).all()


SPECS = st.builds(
    lambda half, win, hop, bands, floor, top: FrontEndSpec(
        n_fft=2 * half, win_length=max(win * 2 * half // 100, hop), hop_length=hop, n_mels=bands, log_floor=floor,
        top_db=top,
    ),
    st.integers(200, 600), st.integers(30, 100), st.integers(100, 160), st.integers(1, 90),
    st.sampled_from([1e-10, 1e-5]), st.sampled_from([120.0, 30.0]),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(SPECS, st.integers(0, 99))
def test_cuts_make_no_difference_whatever_the_sizes(spec: FrontEndSpec, seed: int) -> None:
    waveform = scene(30_000, seed)
    whole = FrontEnd(spec).features([waveform]).log_mel
    small = FrontEnd(spec.model_copy(update=SMALL)).features(cut(waveform, [700] * 50)).log_mel
    assert whole.shape == small.shape
    assert np.abs(whole - small).max() <= 1e-4  # dB


@pytest.fixture(scope="module")
def two_spectra() -> FrontEnd:
    return FrontEnd(TWO_SPECTRA.model_copy(update=SMALL), threads=1)


@pytest.fixture(scope="module")
def graph_of_two() -> FrontEndGraph:
    return FrontEndGraph(TWO_SPECTRA_GRAPH, TWO_SPECTRA)


def both_at_once(graph: FrontEndGraph, waveform: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    features = graph.features(waveform)
    assert features.acoustic is not None
    return features.log_mel, features.acoustic


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(3_200, 60_000), st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9_000), min_size=1, max_size=9))
@example(161_120 // 4, 0, [6_400])
def test_blocks_give_both_spectrograms_of_one_run(
    graph_of_two: FrontEndGraph, two_spectra: FrontEnd, samples: int, seed: int, sizes: list[int]
) -> None:
    waveform = scene(samples, seed)
    features = two_spectra.features(cut(waveform, sizes))
    log_mel, acoustic = both_at_once(graph_of_two, waveform)
    assert features.acoustic is not None
    assert features.acoustic.shape == acoustic.shape == (20, features.log_mel.shape[1])
    assert np.abs(features.log_mel - log_mel).max() <= 1e-4  # dB
    assert np.abs(features.acoustic - acoustic).max() <= 1e-5  # nepers


@pytest.mark.parametrize("before_edge", range(1, 700, 57))
def test_no_frame_sees_a_reflection_within_the_longer_window(
    graph_of_two: FrontEndGraph, two_spectra: FrontEnd, before_edge: int
) -> None:
    # The first block's frames are kept up to the 40th; a click near where it is cut is reflected in both spectra.
    waveform = np.full(20_000, 1e-4, np.float32)
    waveform[(SMALL["chunk_frames"] + 3) * SPEC.hop_length - before_edge] = 1.0
    features = two_spectra.features([waveform])
    log_mel, acoustic = both_at_once(graph_of_two, waveform)
    assert features.acoustic is not None
    assert np.abs(features.log_mel - log_mel).max() <= 1e-4
    assert np.abs(features.acoustic - acoustic).max() <= 1e-5


def test_the_acoustic_mel_has_no_floor_of_the_clip(two_spectra: FrontEnd) -> None:
    waveform = np.zeros(40_000, np.float32)
    waveform[30_000:30_100] = 1.0
    features = two_spectra.features([waveform])
    assert features.acoustic is not None
    assert features.acoustic.min() == np.log(np.float32(1e-7))
    assert features.log_mel.min() > -100


@pytest.mark.parametrize("samples", [1, 3_199])
def test_short_clips_are_padded_in_both(graph_of_two: FrontEndGraph, two_spectra: FrontEnd, samples: int) -> None:
    waveform = np.full(samples, 0.5, np.float32)
    features = two_spectra.features([waveform])
    _, acoustic = both_at_once(graph_of_two, np.pad(waveform, (0, 3_200 - samples)))
    assert features.samples == 3_200
    assert features.acoustic is not None
    assert np.array_equal(features.acoustic, acoustic)


def test_one_spectrogram_is_no_second(front_end: FrontEnd) -> None:
    assert front_end.features([np.zeros(4_000, np.float32)]).acoustic is None
