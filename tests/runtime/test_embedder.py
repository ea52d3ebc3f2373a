"""Embedding: the encoder's own patches, 25 per second, from any bundle and any length."""

from __future__ import annotations

import io
import json
import shutil
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime import Embedder
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.audio.front_end import Features, FrontEnd
from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import (
    AudioEmptyError,
    AudioNotFoundError,
    BundleFileError,
    BundleKindError,
    BundleNotFoundError,
    CaptionerBusyError,
    DeviceError,
)
from tests.fixtures.audio_files import Format, sine, write_audio
from tests.fixtures.bundle_kinds import write_encoder_bundle

RATE = 16_000


@pytest.fixture(scope="module")
def encoder_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_bundle(tiny_bundle, tmp_path_factory.mktemp("encoder") / "bundle")


@pytest.fixture(scope="module")
def embedder(encoder_bundle: Path) -> Iterator[Embedder]:
    with Embedder.open(encoder_bundle, threads=1) as embedder:
        yield embedder


def noise(samples: int) -> tuple[NDArray[np.float32], int]:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32), RATE


def test_frames_are_the_patches_of_the_reference(encoder_bundle: Path, embedder: Embedder) -> None:
    bundle = Bundle.open(encoder_bundle)
    for clip in read_golden(bundle):
        embedding = embedder.embed((clip.waveform, RATE))
        want = clip.patches[: len(embedding.frames)]
        assert relative_rms(embedding.frames, want) < bundle.manifest.tolerances.patches_relative
        assert embedding.frames.dtype == embedding.mean.dtype == np.float32
        np.testing.assert_allclose(embedding.mean, embedding.frames.mean(axis=0), atol=1e-6)
        assert embedding.audio_s == len(clip.waveform) / RATE


@pytest.mark.parametrize("samples", [3_200, 16_000, 161_119, 161_120, 161_280, 163_200, 323_040])
def test_there_are_as_many_frames_as_the_counting_law_says(embedder: Embedder, samples: int) -> None:
    embedding = embedder.embed(noise(samples))
    assert embedding.frames.shape == (embedder.bundle.manifest.front_end.patches_of(samples), embedder.dim)
    assert np.isfinite(embedding.frames).all()


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (479, 1), (480, 1), (1_119, 1), (1_120, 2), (3_199, 5)])
def test_frames_of_mere_padding_are_dropped(embedder: Embedder, samples: int, frames: int) -> None:
    waveform, _ = noise(samples)
    embedding = embedder.embed((waveform, RATE))
    padded = embedder.embed((np.pad(waveform, (0, 3_200 - samples)), RATE))
    assert len(padded.frames) == 5
    np.testing.assert_allclose(embedding.frames, padded.frames[:frames], atol=1e-6)
    np.testing.assert_allclose(embedding.mean, padded.frames[:frames].mean(axis=0), atol=1e-6)
    assert embedding.audio_s == samples / RATE


def test_a_whole_bundle_embeds_too(tiny_bundle: Path, embedder: Embedder) -> None:
    with Embedder.open(tiny_bundle, threads=1) as whole:
        assert np.array_equal(whole.embed(noise(20_000)).frames, embedder.embed(noise(20_000)).frames)
        assert (whole.dim, whole.rate_hz) == (embedder.dim, 25.0)


def test_files_are_read(embedder: Embedder, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "clip.wav", sine(440, 2, RATE), Format("wav", "wav", "pcm_s16le", RATE))
    assert embedder.embed(path).frames.shape == (50, embedder.dim)
    assert embedder.embed(path.read_bytes()).audio_s == 2.0
    with pytest.raises(AudioNotFoundError):
        embedder.embed(tmp_path / "none.wav")
    with pytest.raises(AudioEmptyError):
        embedder.embed((np.zeros(0, np.float32), RATE))
    assert embedder.embed(path).audio_s == 2.0  # it is free again


def test_a_long_clip_is_embedded_chunk_by_chunk(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, frames = Encoder.chunks, FrontEnd.frames
    given: list[int] = []
    made: list[weakref.ref[NDArray[np.float32]]] = []

    def remembered(self: FrontEnd, *stretch: Any) -> list[NDArray[np.float32]]:
        outputs = [output.copy() for output in frames(self, *stretch)]
        made.append(weakref.ref(outputs[0]))
        return outputs

    def followed(self: Encoder, features: Features, first: int = 0) -> Iterator[NDArray[np.float32]]:
        given.append(first)
        left = sum(spectrogram() is not None for spectrogram in made)
        assert left <= len(made) - len(given) + 1  # those that are to come, and this one
        yield from chunks(self, features, first)

    monkeypatch.setattr(FrontEnd, "frames", remembered)
    monkeypatch.setattr(Encoder, "chunks", followed)
    assert len(embedder.embed(noise(40 * RATE)).frames) == 1_000
    assert given == [0, 252, 504, 756]
    assert len(made) == 4


@pytest.mark.parametrize("samples", [1, 1_119, 3_200, 161_280, 163_200, 323_040])
def test_frames_that_are_handed_on_are_those_of_the_whole(embedder: Embedder, samples: int) -> None:
    want, pieces = embedder.embed(noise(samples)), list[NDArray[np.float32]]()
    heard = embedder.embed_to(noise(samples), pieces.append, io.BytesIO())
    np.testing.assert_array_equal(np.concatenate(pieces), want.frames)
    assert (heard.audio_s, heard.warnings) == (want.audio_s, want.warnings)
    assert max(map(len, pieces)) <= 252


def test_memory_does_not_grow_with_the_clip(embedder: Embedder, tmp_path: Path) -> None:
    def held(seconds: int) -> int:
        """The most bytes that numpy and Python held."""
        silence = (np.zeros(RATE, np.float32) for _ in range(seconds))
        tracemalloc.start()
        with (tmp_path / "spool").open("w+b") as spool:
            embedder.embed_to((silence, RATE), lambda _: None, spool)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    held(30)
    assert held(240) < held(30) + 100_000  # frames and spectrograms of 210 s would be 2.5 MB


def test_bundles_that_cannot_be_opened(tmp_path: Path, encoder_bundle: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Embedder.open(tmp_path)
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        Embedder.open(encoder_bundle, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="0 threads"):
        Embedder.open(encoder_bundle, threads=0)


def test_a_captioner_needs_a_decoder(encoder_bundle: Path) -> None:
    with pytest.raises(BundleKindError, match="this bundle holds a Dasheng encoder only; use `dasheng-edge embed`"):
        Captioner.open(encoder_bundle)


@pytest.mark.parametrize("dim", [1, 128])
def test_an_encoder_of_another_width_is_named(encoder_bundle: Path, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    monkeypatch.setattr(Encoder, "chunks", lambda *_: iter([np.ones((25, dim), np.float32)]))
    with (
        Embedder.open(encoder_bundle, threads=1) as embedder,
        pytest.raises(BundleFileError, match=f"gives vectors of {dim} numbers, expected {embedder.dim}"),
    ):
        embedder.embed(noise(RATE))


def test_closed_is_closed(encoder_bundle: Path) -> None:
    embedder = Embedder.open(encoder_bundle, threads=1, check_sha256=False)
    embedder.close()
    embedder.close()
    with pytest.raises(CaptionerBusyError, match="the embedder is closed"):
        embedder.embed(noise(RATE))


def test_two_threads_at_once(encoder_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(encoder_bundle)
    embedder = Embedder(bundle, AudioParts.open(bundle, EngineSettings()))
    inside, go_on = threading.Event(), threading.Event()
    chunks = Encoder.chunks

    def slow(self: Encoder, features: Features, first: int = 0) -> Iterator[NDArray[np.float32]]:
        inside.set()
        assert go_on.wait(10)
        yield from chunks(self, features, first)

    monkeypatch.setattr(Encoder, "chunks", slow)
    thread = threading.Thread(target=embedder.embed, args=(noise(RATE),))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(CaptionerBusyError, match="busy with another clip"):
        embedder.embed(noise(RATE))
    with pytest.raises(CaptionerBusyError, match="busy with another clip"):
        embedder.close()
    go_on.set()
    thread.join()
    embedder.close()


def test_the_golden_file_of_an_encoder_bundle_is_small(encoder_bundle: Path) -> None:
    with np.load(encoder_bundle / GOLDEN) as golden:
        assert {key.rsplit("_", 1)[0] for key in golden} == {"names", "waveform", "log_mel", "patches"}


@pytest.mark.parametrize("lie", [{"hop_length": 13}, {"f_max_hz": 4000.0}])
@pytest.mark.parametrize("kind", [Captioner, Embedder])
def test_a_manifest_that_states_another_front_end_is_refused(
    tiny_bundle: Path, tmp_path: Path, kind: type[Captioner | Embedder], lie: dict[str, float]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["front_end"].update(lie)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleFileError, match=r"front_end\.onnx .*copy the bundle again, or export it again"):
        kind.open(bundle, threads=1)
