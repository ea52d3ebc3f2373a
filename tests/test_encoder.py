"""How the runtime cuts log-mels into chunks; the graphs themselves are compared with the reference elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime import encoder as encoder_module
from dasheng_edge.runtime.bundle import ENCODER, FRONT_END, PROJECTOR
from dasheng_edge.runtime.encoder import Encoder, Projector
from dasheng_edge.runtime.errors import BundleFileError
from dasheng_edge.runtime.front_end import FrontEndSpec

SPEC = FrontEndSpec()


class FakeSession:
    """Records what it is fed; a patch is the mean of its frames, an embedding the mean of its patches."""

    def __init__(self) -> None:
        self.fed: list[tuple[int, int]] = []  # frames, valid patches

    def run(self, _: list[str], feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if "patches" in feed:
            patches = feed["patches"]
            return [patches.reshape(1, -1, 5, patches.shape[-1]).mean(axis=2)]
        log_mel = feed["log_mel"]
        assert log_mel.dtype == np.float32
        assert feed["valid_patches"].dtype == np.int64
        assert log_mel.flags.c_contiguous
        self.fed.append((log_mel.shape[2], int(feed["valid_patches"][0])))
        whole = log_mel[:, :, : log_mel.shape[2] // 4 * 4]
        return [whole.reshape(1, 64, -1, 4).mean(axis=3).transpose(0, 2, 1)]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    session = FakeSession()
    monkeypatch.setattr(encoder_module, "onnx_session", lambda *_: session)
    monkeypatch.setattr(encoder_module, "check_graph", lambda *_: None)
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
    patches = Encoder(Path("x"), SPEC).patches(log_mel, samples)
    assert [(size // 4 * 4, valid) for size, valid in session.fed] == fed
    whole = log_mel[:, : frames // 4 * 4].reshape(64, -1, 4).mean(axis=2).T
    assert np.array_equal(patches, whole)


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
    groups = projector.groups(encoder.chunks(np.zeros((64, 5_001), np.float32), 800_000))
    for seen, size in enumerate((250, 250, 255, 250, 245), start=1):
        assert len(next(groups)) == size
        assert len(session.fed) == seen
    assert list(groups) == []


def test_real_graphs_take_every_length(tiny_bundle: Path) -> None:
    encoder, projector = Encoder(tiny_bundle / ENCODER, SPEC), Projector(tiny_bundle / PROJECTOR, SPEC)
    rng = np.random.default_rng(0)
    for samples in (3_040, 161_120, 163_200, 323_040):
        log_mel = rng.normal(-40, 20, (64, SPEC.frames_of(samples))).astype(np.float32)
        embeddings = projector.embeddings(encoder.patches(log_mel, samples))
        groups = [projector.embeddings(group) for group in projector.groups(encoder.chunks(log_mel, samples))]
        assert np.allclose(np.concatenate(groups), embeddings, rtol=0, atol=1e-6 * np.abs(embeddings).max())
        assert embeddings.shape == (SPEC.tokens_of(samples), 256)
        assert embeddings.dtype == np.float32
        assert embeddings.flags.c_contiguous
        assert np.isfinite(embeddings).all()


def test_chunks_do_not_see_each_other(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle / ENCODER, SPEC)
    log_mel = np.random.default_rng(0).normal(-40, 20, (64, 1_500)).astype(np.float32)
    changed = log_mel.copy()
    changed[:, 1_008:] += 5
    one, other = encoder.patches(log_mel, 240_000), encoder.patches(changed, 240_000)
    assert np.array_equal(one[:252], other[:252])
    assert not np.allclose(one[252:], other[252:])


def test_graphs_are_checked(tiny_bundle: Path) -> None:
    with pytest.raises(BundleFileError, match="expected"):
        Encoder(tiny_bundle / FRONT_END, SPEC)
    with pytest.raises(BundleFileError, match="expected"):
        Projector(tiny_bundle / FRONT_END, SPEC)
