from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.front_end import Features, FrontEnd
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import AudioError
from dasheng_edge.runtime.live.ear import QUIET_TICKS, Ear, Ticks, Window, WindowPlan

RATE, TICK = 16_000, 3200
SPEC = FrontEndSpec()
Samples = NDArray[np.float32]


class Counting:
    """In place of encoder and projector: the embedding of a tick is the mean of its spectrogram; ticks are counted."""

    def __init__(self, spec: FrontEndSpec = SPEC) -> None:
        self.front_end, self.spec = FrontEnd(spec), spec
        self.encoder = self.projector = self
        self.blocks: list[int] = []

    def patches(self, features: Features) -> NDArray[np.float32]:
        assert features.log_mel.shape[1] * self.spec.hop_length == features.samples
        self.blocks.append(features.samples // TICK)
        frames = features.log_mel.reshape(self.spec.n_mels, -1, self.spec.patch_frames)
        return np.asarray(frames.mean(axis=2).T, np.float32)

    def embeddings(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(patches.reshape(-1, self.spec.tokens_patches, self.spec.n_mels).mean(axis=1), np.float32)


def ear_of(parts: object, plan: WindowPlan | None = None, **options: Any) -> Ear:
    return Ear(cast(AudioInputParts, parts), plan or WindowPlan(), **options)


def hear(ear: Ear, samples: Samples, sizes: list[int] | None = None) -> list[Window]:
    """All windows of samples that come in pieces of these sizes, in turn."""
    windows: list[Window] = []
    at = turn = 0
    while at < len(samples):
        size = (sizes or [1600])[turn % len(sizes or [1600])]
        windows += ear.hear(samples[at : at + size])
        at, turn = at + size, turn + 1
    return [*windows, *ear.end()]


def rows(window: Window) -> NDArray[np.float32]:
    assert window.embeddings is not None
    return window.embeddings


def sounds(seconds: float, *spans: tuple[float, float], seed: int = 0, level: float = 0.1) -> Samples:
    """A quiet room with noise in it at these times; no two ticks are alike."""
    rng = np.random.default_rng(seed)
    samples = 1e-4 * rng.normal(size=int(seconds * RATE))
    for start, end in spans:
        part = slice(int(start * RATE), int(end * RATE))
        samples[part] += level * rng.normal(size=len(samples[part])) * rng.uniform(0.2, 1.0, len(samples[part]))
    return samples.astype(np.float32)


def truth(samples: Samples) -> NDArray[np.float32]:
    """The embedding of every tick, of a whole file."""
    padded = np.pad(samples, (0, -len(samples) % TICK))
    parts = Counting()
    log_mel = parts.front_end.features([padded]).log_mel[:, : len(padded) // 160]
    return parts.embeddings(parts.patches(Features(log_mel, None, len(padded))))


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    window_s = draw(st.integers(5, 40)) / 5
    return WindowPlan(window_s, draw(st.integers(5, round(window_s * 5))) / 5)


@given(
    plans(),
    st.lists(st.tuples(st.floats(0, 12), st.floats(0.1, 9)), max_size=4),
    st.lists(st.integers(700, 30_000), min_size=1, max_size=4),
    st.integers(0, 5),
)
@settings(max_examples=12, deadline=None)
def test_every_tick_is_encoded_once_and_nothing_that_sounds_is_lost(
    plan: WindowPlan, spans: list[tuple[float, float]], sizes: list[int], seed: int
) -> None:
    parts = Counting()
    ear = ear_of(parts, plan)
    samples = sounds(14.3, *((start, start + length) for start, length in spans), seed=seed)
    windows = hear(ear, samples, sizes)
    want, heard = truth(samples), np.zeros(len(truth(samples)), int)
    for window in windows:
        first, stop = round(window.start_s / 0.2), round(window.end_s / 0.2)
        assert len(rows(window)) == stop - first <= round(plan.window_s / 0.2) + QUIET_TICKS
        # A tick at the very end sees no more than the file has; all others are those of the whole file.
        np.testing.assert_allclose(rows(window)[:-1], want[first : stop - 1], atol=1e-3)
        heard[first:stop] += 1
    assert sum(parts.blocks) == ear.encoded_ticks == np.count_nonzero(heard)  # none twice, and none for nothing
    if plan.hop_s == plan.window_s:
        assert heard.max(initial=0) <= 1
    assert [window.end_s for window in windows] == sorted(window.end_s for window in windows)
    assert ear.ticks == len(want)
    levels = np.abs(np.pad(samples, (0, -len(samples) % TICK)).reshape(-1, TICK)).max(axis=1)
    first_loud = int(np.argmax(levels > 0.05))
    if levels.max(initial=0) > 0.05:  # what is heard first is heard in any case
        assert heard[first_loud]


@pytest.mark.parametrize("sizes", [[1], [1600], [16_000], [50_000], [7, 4000, 333]])
def test_windows_do_not_depend_on_the_pieces(sizes: list[int]) -> None:
    samples = sounds(6, (1, 3), (4, 4.5)) if sizes != [1] else sounds(2, (0.5, 1))
    want, got = hear(ear_of(Counting()), samples, [len(samples)]), hear(ear_of(Counting()), samples, sizes)
    assert [(w.start_s, w.end_s, w.sounded_s) for w in want] == [(w.start_s, w.end_s, w.sounded_s) for w in got]
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(rows(one), rows(other), atol=1e-3)


def test_silence_costs_the_spectrogram_alone() -> None:
    parts = Counting()
    assert not hear(ear_of(parts), sounds(30))
    assert not hear(ear_of(parts), np.zeros(10 * RATE, np.float32))
    assert not parts.blocks


def test_a_window_ends_soon_after_its_sound() -> None:
    (window,) = hear(ear_of(Counting()), sounds(8, (2, 4)))
    assert window.start_s == pytest.approx(1.6, abs=0.21)
    assert window.sounded_s == pytest.approx(4.0, abs=0.21)
    assert window.end_s == pytest.approx(4.2, abs=0.21)
    ear, heard_s = ear_of(Counting()), 0.0
    for piece in np.split(sounds(8, (2, 4)), 80):
        heard_s += 0.1
        if list(ear.hear(piece)):
            break
    assert heard_s <= 5.0


def test_a_lasting_sound_is_cut_where_it_is_quietest() -> None:
    samples = sounds(16, (1, 13))
    samples[int(9.0 * RATE) : int(9.2 * RATE)] *= 0.1
    first, *_ = hear(ear_of(Counting()), samples)
    assert first.end_s == pytest.approx(9.2, abs=0.01)


def test_windows_overlap_as_asked() -> None:
    windows = hear(ear_of(Counting(), WindowPlan(4, 2)), sounds(12, (1, 8)))
    starts, ends = [w.start_s for w in windows], [w.end_s for w in windows]
    np.testing.assert_allclose(np.diff(ends[:-1]), 2, atol=1e-9)
    assert all(end - start <= 4 + 1e-9 for start, end in zip(starts, ends, strict=True))
    assert starts[2] == pytest.approx(ends[0], abs=1e-9)


def test_there_is_no_time_for_what_is_late() -> None:
    parts = Counting()
    windows = hear(ear_of(parts, late=lambda: True), sounds(20, (1, 18)))
    assert len(windows) >= 1
    assert all(window.embeddings is None for window in windows)
    assert not parts.blocks


def test_what_is_missing_counts_in_the_times() -> None:
    ear = ear_of(Counting())
    before = [*ear.hear(sounds(3, (1, 3))), *ear.end(lost_s=60.0)]
    after = [*ear.hear(sounds(4, (1, 2))), *ear.end()]
    assert [window.start_s for window in before] == pytest.approx([0.6], abs=0.21)
    assert [window.start_s for window in after] == pytest.approx([63.6], abs=0.21)


@pytest.mark.parametrize("spec", [SPEC, FrontEndSpec(acoustic=AcousticSpec(n_mels=100))], ids=["one", "two"])
def test_spectrograms_of_ticks_are_those_of_the_file(spec: FrontEndSpec) -> None:
    front_end, samples = FrontEnd(spec), sounds(5.05, (1, 4))
    ticks = Ticks(front_end)
    made = [tick for piece in np.array_split(samples, 37) for tick in ticks.add(piece)] + [*ticks.end()]
    assert [tick.index for tick in made] == list(range(26))
    want = front_end.features([samples])
    wholes = [want.log_mel] if want.acoustic is None else [want.log_mel, want.acoustic]
    for place, whole in enumerate(wholes):
        got = np.concatenate([tick.spectrograms[place] for tick in made], axis=1)
        np.testing.assert_allclose(got[:, :500], whole[:, :500], atol=1e-3)


def test_a_window_is_a_clip(tiny_bundle: Path) -> None:
    """Between silence, its numbers are those of a file."""
    parts = AudioInputParts.open(Bundle.open(tiny_bundle), EngineOptions().changed(threads=1))
    samples = np.zeros(8 * RATE, np.float32)
    samples[2 * RATE : 5 * RATE] = sounds(3, (0, 3))
    (window,) = hear(ear_of(parts), samples)
    clip = samples[round(window.start_s * RATE) : round(window.end_s * RATE)]
    np.testing.assert_allclose(rows(window), parts.embeddings([clip]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("window", "hop"), [(10, 11), (0.5, 0.5), (61, 5), (10, 0), (float("nan"), 1), (5, float("nan"))]
)
def test_windows_that_make_no_sense_are_refused(window: float, hop: float) -> None:
    with pytest.raises(AudioError, match="moves on by"):
        WindowPlan(window, hop)


def test_the_level_and_the_background_are_there_to_show() -> None:
    ear = ear_of(SimpleNamespace(**vars(Counting())))
    list(ear.hear(sounds(2, (1, 2))))
    assert ear.hears
    assert -30 < ear.level_db < -10
    assert ear.floor_db == -75
