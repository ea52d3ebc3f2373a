"""How the runtime cuts log-mels into chunks; the graphs themselves are compared with the reference elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.audio import encoder as encoder_module
from dasheng_edge.runtime.audio.encoder import Encoder, Projector, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import Case, Checked, max_uses
from dasheng_edge.runtime.errors import BundleFileError, DeviceError

SPEC = FrontEndSpec()
TWO_BRANCHES = FrontEndSpec(acoustic=AcousticSpec(n_mels=20))
PLAIN = FrontEndSpec(pads_last_chunk=True, tokens_patches=1, min_samples=640)  # as in schemas 2 and 3
SHORT = FrontEndSpec(masks_last_patch=False, tokens_patches=1, min_samples=640, pads_below=480)


WIDTHS = {"patches": (1, -1, 64), "embeddings": (1, -1, 3)}  # of what `FakeSession` makes


class FakeSession:
    """Records what it is fed; a patch is the mean of its frames, an embedding the mean of its patches."""

    def __init__(self) -> None:
        self.fed: list[tuple[int, int]] = []  # frames, valid (or padded) patches
        self.kept: list[int] = []
        self.chunks: list[int] = []  # of each run
        self.runs: list[tuple[int, int]] = []  # chunks and frames
        self.patches: list[int] = []  # of runs of the projector
        self.acoustic: list[NDArray[Any]] = []

    @staticmethod
    def get_session_options() -> SimpleNamespace:
        return SimpleNamespace(intra_op_num_threads=1)

    def run(self, _: list[str], feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if "patches" in feed:
            patches = feed["patches"]
            self.patches.append(patches.shape[1])
            return [patches.reshape(1, -1, 5, patches.shape[-1]).mean(axis=2)]
        log_mel = feed["log_mel"]
        assert log_mel.dtype == np.float32
        assert log_mel.flags.c_contiguous
        count = feed["padded_patches" if "padded_patches" in feed else "valid_patches"]
        assert count.dtype == np.int64
        self.chunks.append(len(log_mel))
        self.runs.append((len(log_mel), log_mel.shape[2]))
        self.fed.append((log_mel.shape[2], int(count[0])))
        if "acoustic_mel" in feed:
            assert feed["acoustic_mel"].flags.c_contiguous
            assert feed["acoustic_mel"].shape[2] == log_mel.shape[2]
            self.acoustic.append(feed["acoustic_mel"])
            self.kept.append(int(feed["kept_patches"][0]))
        whole = log_mel[:, :, : log_mel.shape[2] // 4 * 4]
        return [whole.reshape(len(whole), 64, -1, 4).mean(axis=3).transpose(0, 2, 1)]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    session = FakeSession()
    monkeypatch.setattr(encoder_module, "onnx_session", lambda *_, **__: session)
    monkeypatch.setattr(
        encoder_module, "check_graph", lambda _, cases, *__: Checked({**cases[-1].feed, **WIDTHS}, separable=True)
    )
    return session


@pytest.mark.parametrize(
    ("samples", "fed"),
    [
        (3_040, [(20, 4)]),  # the last patch is a query, not a key
        (3_200, [(20, 5)]),
        (161_119, [(1_004, 251)]),
        (161_120, [(1_008, 251)]),
        (161_280, [(1_008, 252)]),
        (163_200, [(1_008, 252), (12, 3)]),
        (323_039, [(1_008, 252), (1_008, 252)]),
        (323_040, [(1_008, 252), (1_008, 252), (4, 0)]),  # a chunk without any key
        (323_200, [(1_008, 252), (1_008, 252), (4, 1)]),
    ],
)
def test_chunks_and_their_valid_patches(session: FakeSession, samples: int, fed: list[tuple[int, int]]) -> None:
    frames = SPEC.frames_of(samples)
    log_mel = np.arange(64 * frames, dtype=np.float32).reshape(64, frames)
    patches = Encoder(Path("x"), SPEC).patches(Features(log_mel, None, samples))
    assert [(size // 4 * 4, valid) for size, valid in session.fed] == fed
    whole = log_mel[:, : frames // 4 * 4].reshape(64, -1, 4).mean(axis=2).T
    assert np.array_equal(patches, whole)


@pytest.mark.parametrize(
    ("samples", "valid", "kept"),
    [
        (3_040, [4], [5]),  # the patch that is no key keeps its semantic part in the first chunk
        (161_120, [251], [252]),
        (163_200, [252, 3], [252, 3]),
        (164_320, [252, 4], [252, 4]),  # 257 patches, 256 keys: patch 256 loses it in the second
        (323_040, [252, 252, 0], [252, 252, 0]),
    ],
)
def test_chunks_of_an_encoder_with_two_branches(
    session: FakeSession, samples: int, valid: list[int], kept: list[int]
) -> None:
    frames = TWO_BRANCHES.frames_of(samples)
    acoustic = np.arange(20 * frames, dtype=np.float32).reshape(20, frames)
    encoder = Encoder(Path("x"), TWO_BRANCHES)
    patches = encoder.patches(Features(np.zeros((64, frames), np.float32), acoustic, samples))
    assert len(patches) == TWO_BRANCHES.patches_of(samples)
    assert [count for _, count in session.fed] == valid
    assert session.kept == kept
    seen = np.concatenate(session.acoustic, axis=2)[0]
    assert np.array_equal(seen, acoustic[:, : seen.shape[1]])
    assert seen.shape[1] >= frames // 4 * 4


@pytest.mark.parametrize(
    ("samples", "fed"),
    [
        (640, [(5, 1)]),  # a clip of one chunk is not filled up
        (160_000, [(1_001, 250)]),
        (161_120, [(1_008, 252)]),
        (161_440, [(1_008, 252)]),  # 1010 frames: two are left, which yield no patch
        (163_360, [(1_008, 252), (14, 252)]),  # the two behind 3 patches are seen within the padding
        (322_560, [(1_008, 252), (1_008, 252)]),  # 2017 frames
    ],
)
def test_chunks_of_plain_dasheng_are_filled_up(session: FakeSession, samples: int, fed: list[tuple[int, int]]) -> None:
    frames = PLAIN.frames_of(samples)
    patches = Encoder(Path("x"), PLAIN).patches(Features(np.zeros((64, frames), np.float32), None, samples))
    assert session.fed == fed
    assert len(patches) == PLAIN.patches_of(samples)


@pytest.mark.parametrize("spec", [FrontEndSpec(), TWO_BRANCHES, PLAIN, SHORT])
def test_a_graph_may_work_for_the_patches_that_it_fills_up(
    session: FakeSession, spec: FrontEndSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short chunk costs what its padding costs: an encoder of 630 M parameters was refused as too slow."""
    checked: list[Case] = []

    def check(_: Path, cases: list[Case], __: Case | None) -> Checked:
        checked.extend(cases)
        return Checked({"patches": (1, -1, 64)}, separable=True)

    monkeypatch.setattr(encoder_module, "check_graph", check)
    Encoder(Path("x"), spec)
    for case in checked:
        padded, log_mel = case.feed.get("padded_patches"), case.feed["log_mel"]
        assert isinstance(log_mel, tuple)
        computed = int(padded[0]) if padded is not None else log_mel[2] // spec.patch_frames
        assert case.uses >= max_uses(computed)


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(480, [1]), (160_000, [250]), (161_120, [252]), (161_440, [252]), (163_360, [252, 3]), (323_199, [252, 252, 1])],
)
def test_chunks_of_plain_dasheng_run_short_and_all_their_patches_are_keys(
    session: FakeSession, samples: int, sizes: list[int]
) -> None:
    features = Features(np.zeros((64, SHORT.frames_of(samples)), np.float32), None, samples)
    patches = Encoder(Path("x"), SHORT).patches(features)
    assert [padded for _, padded in session.fed] == sizes
    assert [frames // 4 for frames, _ in session.fed] == sizes
    assert len(patches) == SHORT.patches_of(samples)


@pytest.mark.parametrize("patches", [5, 9, 252, 253, 255, 504, 505, 506, 1_260, 1_261, 1_264, 1_265])
def test_tokens_that_straddle_two_chunks(session: FakeSession, patches: int) -> None:
    values = np.arange(patches * 3, dtype=np.float32).reshape(patches, 3)
    projector = Projector(Path("x"), SPEC)
    want = values[: patches // 5 * 5].reshape(-1, 5, 3).mean(axis=1)
    assert np.array_equal(projector.embeddings(values), want)
    groups = list(projector.groups(values[start:stop] for start, stop in SPEC.chunks_of(patches)))
    assert all(0 < len(group) <= SPEC.chunk_patches + 4 for group in groups)
    assert np.array_equal(np.concatenate([projector.embeddings(group) for group in groups]), want)


def test_groups_are_made_as_chunks_come(session: FakeSession) -> None:
    encoder, projector = Encoder(Path("x"), SPEC), Projector(Path("x"), SPEC)
    groups = projector.groups(encoder.chunks(Features(np.zeros((64, 5_001), np.float32), None, 800_000)))
    for seen, size in enumerate((250, 250, 255, 250, 245), start=1):
        assert len(next(groups)) == size
        assert len(session.fed) == seen
    assert list(groups) == []


@pytest.mark.parametrize(
    ("spec", "lengths", "runs"),
    [
        (SPEC, (1_008, 1_008, 1_008, 600, 503, 20, 12, 1_005), [3, 3, 2]),  # the longest first
        (SHORT, (1_008, 400, 1_008, 404, 400), [2, 1, 2]),  # of one length
        (SPEC, (), []),
    ],
)
def test_chunks_that_share_a_run(
    session: FakeSession, spec: FrontEndSpec, lengths: tuple[int, ...], runs: list[int]
) -> None:
    encoder = Encoder(Path("x"), spec)
    assert encoder.max_chunks == 1
    encoder.max_chunks = 3
    mels = [np.random.default_rng(frames).normal(size=(64, frames)).astype(np.float32) for frames in lengths]
    feeds = [feed for mel in mels for feed in chunk_feeds(spec, Features(mel, None, mel.shape[1] * 160))]
    for mel, patches in zip(mels, encoder.together(feeds), strict=True):
        whole = mel[:, : mel.shape[1] // 4 * 4].reshape(64, -1, 4).mean(axis=2).T
        np.testing.assert_array_equal(patches, whole)
    assert session.chunks == runs


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(4, 1_008), min_size=1, max_size=30))
@example(lengths=[1_008, 1_008, 984])
def test_runs_have_few_shapes_where_new_ones_cost(session: FakeSession, lengths: list[int]) -> None:
    encoder = Encoder(Path("x"), SPEC)
    encoder.max_chunks = 8
    shapes = encoder.shapes
    assert len(shapes) == 14
    assert shapes == sorted(shapes, reverse=True)  # so that memory is taken once
    session.runs.clear()
    mels = [np.random.default_rng(frames).normal(size=(64, frames)).astype(np.float32) for frames in lengths]
    feeds = [feed for mel in mels for feed in chunk_feeds(SPEC, Features(mel, None, mel.shape[1] * 160))]
    for mel, patches in zip(mels, encoder.together(feeds), strict=True):
        whole = mel[:, : mel.shape[1] // 4 * 4].reshape(64, -1, 4).mean(axis=2).T
        np.testing.assert_array_equal(patches, whole)
    assert set(session.runs) <= set(shapes)
    assert len(session.runs) == -(-len(lengths) // 8)


@pytest.mark.parametrize(("spec", "chunks"), [(SHORT, 8), (SPEC, 1)])
def test_chunks_that_may_not_be_filled_up_are_not(session: FakeSession, spec: FrontEndSpec, chunks: int) -> None:
    encoder = Encoder(Path("x"), spec)  # plain Dasheng; a graph in int8, or of an older schema
    encoder.max_chunks = chunks
    features = Features(np.zeros((64, 333), np.float32), None, 333 * 160)
    assert len(encoder.patches(features)) == 83
    assert session.runs == [(1, 333)]
    assert (1, 252) in encoder.shapes


def test_clips_that_share_a_run_of_the_projector(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) for n in (5, 9, 1_300, 252, 253, 6)]
    alone = Projector(Path("x"), SPEC)
    monkeypatch.setattr(encoder_module, "CHUNKS", {"cpu": 2})
    shared = Projector(Path("x"), SPEC)
    for got, clip in zip(shared.together(clips), clips, strict=True):
        np.testing.assert_array_equal(got, alone.embeddings(clip))
    assert alone.together([]) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(5, 2_000), min_size=1, max_size=9))
def test_runs_of_the_projector_have_few_sizes_where_new_ones_cost(
    session: FakeSession, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    alone = Projector(Path("x"), SPEC)
    with monkeypatch.context() as patch:
        patch.setattr(encoder_module, "CHUNKS", {"cpu": 8})
        shared = Projector(Path("x"), SPEC)
    clips = [np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32) for size in sizes]
    session.patches.clear()
    got = shared.together(clips)
    assert set(session.patches) <= set(shared.sizes) == {250 * count for count in range(1, 9)}
    for one, clip in zip(got, clips, strict=True):
        np.testing.assert_array_equal(one, alone.embeddings(clip))


def test_real_graphs_take_every_length(tiny_bundle: Path) -> None:
    encoder, projector = Encoder(tiny_bundle / ENCODER, SPEC), Projector(tiny_bundle / PROJECTOR, SPEC)
    rng = np.random.default_rng(0)
    for samples in (3_040, 161_120, 163_200, 323_040):
        log_mel = rng.normal(-40, 20, (64, SPEC.frames_of(samples))).astype(np.float32)
        features = Features(log_mel, None, samples)
        embeddings = projector.embeddings(encoder.patches(features))
        groups = [projector.embeddings(group) for group in projector.groups(encoder.chunks(features))]
        assert np.allclose(np.concatenate(groups), embeddings, rtol=0, atol=1e-6 * np.abs(embeddings).max())
        assert embeddings.shape == (SPEC.tokens_of(samples), 64)
        assert embeddings.dtype == np.float32
        assert embeddings.flags.c_contiguous
        assert np.isfinite(embeddings).all()


def test_chunks_do_not_see_each_other(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle / ENCODER, SPEC)
    log_mel = np.random.default_rng(0).normal(-40, 20, (64, 1_500)).astype(np.float32)
    changed = log_mel.copy()
    changed[:, 1_008:] += 5
    one, other = (encoder.patches(Features(mel, None, 240_000)) for mel in (log_mel, changed))
    assert np.array_equal(one[:252], other[:252])
    assert not np.allclose(one[252:], other[252:])


def test_graphs_are_checked(tiny_bundle: Path) -> None:
    with pytest.raises(BundleFileError, match="expected"):
        Encoder(tiny_bundle / FRONT_END, SPEC)
    with pytest.raises(BundleFileError, match="expected"):
        Projector(tiny_bundle / FRONT_END, SPEC)
    with pytest.raises(BundleFileError, match="expected log_mel, acoustic_mel, valid_patches, kept_patches to patches"):
        Encoder(tiny_bundle / ENCODER, TWO_BRANCHES)
    with pytest.raises(BundleFileError, match="expected log_mel, padded_patches to patches"):
        Encoder(tiny_bundle / ENCODER, PLAIN)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (
            np.zeros((1, 1, 64), np.float32),
            BundleFileError,
            r"patches float32 \(1, 1, 64\) .*, expected .*\(1, 5, 64\)",
        ),
        (np.zeros((5, 64), np.float32), BundleFileError, r"float32 \(5, 64\)"),
        (np.zeros((1, 5, 64), np.float64), BundleFileError, r"float64 \(1, 5, 64\)"),
        (["text"], BundleFileError, "patches list"),
        (
            np.full((1, 5, 64), np.nan, np.float32),
            DeviceError,
            "patches with NaN or infinity .*another encoder precision",
        ),
        (np.full((1, 5, 64), np.inf, np.float32), DeviceError, "NaN or infinity"),
    ],
)
def test_what_comes_out_is_held_against_the_counting_law(
    session: FakeSession, monkeypatch: pytest.MonkeyPatch, output: object, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(session, "run", lambda *_: [output])
    with pytest.raises(error, match=message):
        Encoder(Path("x"), SPEC).patches(Features(np.zeros((64, 21), np.float32), None, 3_200))


def test_embeddings_are_one_for_each_audio_token(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run", lambda *_: [np.zeros((1, 0, 3), np.float32)])
    with pytest.raises(BundleFileError, match=r"embeddings float32 \(1, 0, 3\) .*, expected float32 \(1, 2, 3\)"):
        Projector(Path("x"), SPEC).embeddings(np.zeros((12, 3), np.float32))
