"""A bundle proves itself; a damaged one fails at the seam that is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.front_end import FrontEnd
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, GOLDEN, Bundle, sha256_of
from dasheng_edge.runtime.bundle.golden import GoldenText, read_golden
from dasheng_edge.runtime.bundle.manifest import MANIFEST, FileFacts
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import BundleFileError, DecoderError, DeviceError, PromptError
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verdict.judge import judge
from dasheng_edge.runtime.verify import (
    GPU_LOGITS,
    HALVES_RELATIVE,
    Seam,
    VerifyReport,
    token_margin,
    tolerances_on,
    verify_bundle,
)
from tests.fixtures.bundle_kinds import write_encoder_bundle, write_two_branch_bundle
from tests.fixtures.fake_gpu import FakeCuda, fake_cuda

__all__ = ["fake_cuda"]

SEAMS = ["log-mel", "patches", "embeddings", "prompt", "first logits", "greedy tokens"]
Arrays = dict[str, NDArray[Any]]


def with_golden(folder: Path, change: Callable[[Arrays], object]) -> Bundle:
    """Change the golden vectors of a bundle, and the manifest with them."""
    bundle = Bundle.open(folder)
    path = bundle.path(GOLDEN)
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    return sealed(bundle)


def sealed(bundle: Bundle) -> Bundle:
    path = bundle.path(GOLDEN)
    facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, GOLDEN: facts}})
    bundle.path(MANIFEST).write_text(manifest.model_dump_json())
    return Bundle.open(bundle.folder)


def run(bundle: Bundle) -> VerifyReport:
    return verify_bundle(bundle, EngineSettings())


def failed(report: VerifyReport) -> set[tuple[str, str]]:
    return {(seam.clip, seam.name) for seam in report.seams if not seam.ok}


def test_a_good_bundle_passes_every_seam(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    report = run(bundle)
    clips = read_golden(bundle)
    assert report.ok
    assert [(seam.clip, seam.name) for seam in report.seams] == [(c.name, s) for c in clips for s in SEAMS]
    assert all(seam.error < seam.tolerance / 20 for seam in report.seams if seam.name not in ("prompt", "log-mel"))


def test_an_exact_decoder_is_judged_without_what_attention_costs(tiny_bundle: Path, tmp_path: Path) -> None:
    usual, exact = run(Bundle.open(tiny_bundle)), verify_bundle(Bundle.open(tiny_bundle), EngineSettings(), exact=True)
    assert usual.attention is not None
    assert usual.attention == exact.attention
    assert 10 * usual.attention.exact < 1e-5 < usual.attention.default  # F16 keys and flash attention
    assert exact.ok
    assert exact.seams[:-1] == usual.seams  # an F32 decoder is run so in any case
    assert (exact.seams[-1].name, exact.seams[-1].error) == ("decoder, exact", usual.attention.exact)
    assert exact.seams[-1].tolerance == 1e-5

    def change(arrays: Arrays) -> None:
        arrays["logits_1"] *= 1 + 1e-4 * np.sin(np.arange(len(arrays["logits_1"]), dtype=np.float32))

    altered = with_golden(Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), change)
    assert run(altered).ok
    assert {seam.name for seam in verify_bundle(altered, EngineSettings(), exact=True).seams if not seam.ok} == {
        "decoder, exact"
    }


def test_a_decoder_that_fails_has_no_error_to_speak_of(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "logits", lambda self: np.full(self.n_vocab, np.inf, np.float32))
    report = verify_bundle(Bundle.open(tiny_bundle), EngineSettings(), exact=True)
    assert not report.ok
    assert report.attention is not None
    assert np.isnan([report.attention.exact, report.attention.default]).all()


def test_an_encoder_only_bundle_has_fewer_seams(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(write_encoder_bundle(tiny_bundle, tmp_path / "bundle"))
    report = run(bundle)
    assert report.ok
    clips = read_golden(bundle)
    assert [clip.text for clip in clips] == [clip.acoustic_mel for clip in clips] == [None] * len(clips)
    assert [(seam.clip, seam.name) for seam in report.seams] == [(c.name, s) for c in clips for s in SEAMS[:2]]

    def change(arrays: Arrays) -> None:
        arrays["patches_1"] *= np.float32(1.01)

    assert failed(run(with_golden(bundle.folder, change))) == {(clips[1].name, "patches")}


def test_a_bundle_with_two_branches_has_one_more(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(write_two_branch_bundle(tiny_bundle, tmp_path / "bundle"))
    report = run(bundle)
    assert report.ok
    assert [seam.name for seam in report.seams][:7] == ["log-mel", "acoustic mel", *SEAMS[1:]]
    assert (report.seams[1].unit, report.seams[1].tolerance) == ("nepers", 1e-3)

    def change(arrays: Arrays) -> None:
        arrays["acoustic_mel_0"][0, 0] += 1

    assert {seam for _, seam in failed(run(with_golden(bundle.folder, change)))} == {"acoustic mel"}
    with pytest.raises(BundleFileError, match="acoustic_mel_0"):
        run(with_golden(bundle.folder, lambda arrays: arrays.pop("acoustic_mel_0")))


@pytest.mark.parametrize(
    ("field", "value", "seams"),
    [
        ("log_mel", 0.1, {"log-mel"}),
        ("patches", 0.1, {"patches"}),
        ("embeddings", 0.1, {"embeddings"}),
        ("prompt", 1, {"prompt"}),
        ("log_mel", np.nan, {"log-mel"}),
        ("logits", np.nan, {"first logits"}),
        ("logits", np.inf, {"first logits"}),
    ],
)
def test_each_seam_is_compared(bundle_copy: Path, field: str, value: float, seams: set[str]) -> None:
    def change(arrays: Arrays) -> None:
        arrays[f"{field}_0"].flat[0] += value

    bundle = with_golden(bundle_copy, change)
    name = read_golden(bundle)[0].name
    report = run(bundle)
    assert not report.ok
    assert failed(report) == {(name, seam) for seam in seams}


def test_logits_may_be_shifted_but_not_changed(bundle_copy: Path) -> None:
    def shift(arrays: Arrays) -> None:
        arrays["logits_0"] += 3

    assert run(with_golden(bundle_copy, shift)).ok

    def reverse(arrays: Arrays) -> None:
        arrays["logits_0"] = arrays["logits_0"][::-1]

    assert {seam for _, seam in failed(run(with_golden(bundle_copy, reverse)))} == {"first logits"}


@pytest.mark.parametrize(("margin", "ok"), [(1e-6, True), (5.0, False), (float("nan"), False)])
def test_a_greedy_token_may_differ_where_the_reference_hardly_chose(
    bundle_copy: Path, margin: float, *, ok: bool
) -> None:
    def change(arrays: Arrays) -> None:
        arrays["tokens_0"][1] += 1
        arrays["margins_0"][1] = margin

    assert run(with_golden(bundle_copy, change)).ok is ok


def test_shapes_that_differ_fail(bundle_copy: Path) -> None:
    def change(arrays: Arrays) -> None:
        for field in ("log_mel", "patches", "embeddings", "logits"):
            arrays[f"{field}_0"] = np.concatenate([arrays[f"{field}_0"]] * 2)

    assert {seam for _, seam in failed(run(with_golden(bundle_copy, change)))} == set(SEAMS) - {
        "prompt",
        "greedy tokens",
    }


def test_nan_on_the_way_is_a_failure_and_not_a_crash(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Projector, "embeddings", lambda _, patches: np.full((len(patches) // 5, 64), np.nan, "f4"))
    report = run(Bundle.open(tiny_bundle))
    assert not report.ok
    assert {seam for _, seam in failed(report)} == {"embeddings", "first logits"}
    assert any("NaN" in seam.note for seam in report.seams)


@pytest.mark.parametrize(
    ("part", "method", "error", "seams"),
    [
        (FrontEnd, "features", DeviceError("out of memory"), SEAMS[:1]),
        (Encoder, "patches", DeviceError("out of memory"), SEAMS[:2]),
        (Projector, "embeddings", DeviceError("out of memory"), SEAMS[:3]),
        (PromptBuilder, "build", PromptError("no template"), SEAMS[:4]),
        (Decoder, "prefill", DecoderError("out of memory"), SEAMS[:5]),
    ],
)
def test_a_part_that_fails_is_the_seam_that_failed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, part: type, method: str, error: Exception, seams: list[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(part, method, fail)
    report = run(Bundle.open(tiny_bundle))
    clips = read_golden(Bundle.open(tiny_bundle))
    assert [(seam.clip, seam.name) for seam in report.seams] == [(clip.name, seam) for clip in clips for seam in seams]
    assert {(seam.name, seam.note) for seam in report.seams if not seam.ok} == {(seams[-1], str(error))}


def test_an_encoder_of_another_bundle_fails_at_the_patches(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = Encoder.patches
    monkeypatch.setattr(Encoder, "patches", lambda *args: patches(*args)[:, :-1])
    report = run(Bundle.open(tiny_bundle))
    assert {seam for _, seam in failed(report)} == {"patches", "embeddings"}
    first = next(seam for seam in report.seams if not seam.ok)
    assert (first.name, first.error) == ("patches", float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("names"), "names"),
        (lambda arrays: arrays.pop("logits_0"), "logits_0"),
        (lambda arrays: arrays.update(names=np.array(["a", object()])), "pickle"),
        (lambda arrays: arrays.update(names=np.array(1)), "not a readable golden file"),
        (lambda arrays: arrays.update(waveform_0=arrays["waveform_0"].astype(np.float32)), "waveform of clip"),
        (lambda arrays: arrays.update(log_mel_0=arrays["log_mel_0"][0]), r"expected float32\s+with 2 dimensions"),
        (lambda arrays: arrays.update(tokens_0=arrays["tokens_0"][:0]), "not empty"),
        (lambda arrays: arrays.update(names=np.array([], str)), "holds no clip"),
        (lambda arrays: arrays.update(prompt_1=np.abs(arrays["prompt_1"])), "has 0 places for audio, expected one"),
    ],
)
def test_golden_files_that_are_none(bundle_copy: Path, change: Callable[[Arrays], object], message: str) -> None:
    bundle = with_golden(bundle_copy, change)
    with pytest.raises(BundleFileError, match=message):
        run(bundle)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"nothing", lambda data: data[: len(data) // 2]])
def test_a_damaged_golden_file(bundle_copy: Path, damage: Callable[[bytes], bytes]) -> None:
    bundle = Bundle.open(bundle_copy)
    path = bundle.path(GOLDEN)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleFileError, match="not a readable golden file"):
        run(sealed(bundle))


def test_flipped_bytes_in_a_golden_file(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    path = bundle.path(GOLDEN)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(BundleFileError, match="not a readable golden file"):
        run(sealed(bundle))


def test_seams_and_reports_without_numbers_are_not_ok() -> None:
    assert Seam("a", "b", 1.0, 1.0, "dB").ok
    assert not Seam("a", "b", float("nan"), 1.0, "dB").ok
    assert not VerifyReport("x", ()).ok


def test_token_margin() -> None:
    floats, ints = np.zeros(1, np.float32), np.zeros(1, np.int32)
    tokens, margins = np.array([4, 5, 6], np.int32), np.array([0.3, 0.2, 0.1], np.float32)
    text = GoldenText(floats[None], ints, floats, tokens, margins)
    assert token_margin([4, 5, 6], text) == 0
    assert token_margin([4, 9, 9], text) == pytest.approx(0.2)
    assert token_margin([4, 9], text) == pytest.approx(0.2)
    assert token_margin([4, 5], text) == float("inf")


HEARD_ON_GPU = EngineOptions("cuda", decoder_device="cpu")


def with_halves(folder: Path, **cuda: float) -> Bundle:
    """With graphs of its own for GPUs, which stand-ins compute as the others."""
    bundle, files = Bundle.open(folder), {}
    for name, own in CUDA_GRAPHS.items():
        shutil.copyfile(bundle.path(name), bundle.path(own))
        files[own] = bundle.manifest.files[name]
    limits = bundle.manifest.tolerances.model_copy(update=cuda)
    update = {"files": {**bundle.manifest.files, **files}, "tolerances": limits}
    bundle.path(MANIFEST).write_text(bundle.manifest.model_copy(update=update).model_dump_json())
    return Bundle.open(folder)


def test_float32_has_one_tolerance_on_both_devices_unless_tf32_is_allowed(tiny_bundle: Path) -> None:
    bundle, tf32 = Bundle.open(tiny_bundle), replace(HEARD_ON_GPU, allow_tf32=True)
    stated = bundle.manifest.tolerances
    assert stated.logits_relative is not None
    assert tolerances_on(bundle, EngineOptions()) == tolerances_on(bundle, EngineOptions(allow_tf32=True)) == stated
    assert tolerances_on(bundle, HEARD_ON_GPU) == stated
    limits = tolerances_on(bundle, tf32)
    assert limits.log_mel_db == stated.log_mel_db
    assert limits.patches_relative == pytest.approx(HALVES_RELATIVE, rel=1e-2)
    assert limits.logits_relative == pytest.approx(np.hypot(stated.logits_relative, 3 * HALVES_RELATIVE), rel=1e-2)
    decoded = tolerances_on(bundle, EngineOptions(decoder_device="cuda"))
    assert decoded.patches_relative == stated.patches_relative
    assert decoded.logits_relative == pytest.approx(np.hypot(stated.logits_relative, GPU_LOGITS), rel=1e-2)


def test_graphs_of_a_gpu_have_tolerances_of_their_own(bundle_copy: Path) -> None:
    old = with_halves(bundle_copy)
    assert (
        "cuda_" not in old.path(MANIFEST).read_text()
    )  # readers of earlier versions refuse keys that they do not know
    assert tolerances_on(old, EngineOptions()) == old.manifest.tolerances
    assert tolerances_on(old, HEARD_ON_GPU).embeddings_relative == pytest.approx(HALVES_RELATIVE, rel=1e-2)
    new = with_halves(bundle_copy, cuda_patches_relative=8e-4, cuda_embeddings_relative=9e-4)
    limits = tolerances_on(new, HEARD_ON_GPU)
    assert (limits.patches_relative, limits.embeddings_relative) == (8e-4, 9e-4)
    assert tolerances_on(new, EngineOptions()) == new.manifest.tolerances


@pytest.mark.parametrize(("error", "ok"), [(0.0, True), (4e-4, True), (3e-3, False)])
def test_a_gpu_is_held_against_its_own_tolerance(
    bundle_copy: Path, fake_cuda: FakeCuda, error: float, ok: bool
) -> None:
    bundle = with_halves(bundle_copy, cuda_patches_relative=8e-4, cuda_embeddings_relative=1e-3)
    fake_cuda.error = error
    assert verify_bundle(bundle, HEARD_ON_GPU).ok is ok
    assert {"encoder.cuda.onnx", "projector.cuda.onnx"} < fake_cuda.opened.keys()


def advice(bundle: Bundle, options: EngineOptions) -> str:
    return judge(bundle, options, verify_bundle(bundle, options)).advice


def test_a_bad_bundle_is_told_from_a_bad_gpu(bundle_copy: Path, fake_cuda: FakeCuda) -> None:
    bundle = Bundle.open(bundle_copy)
    fake_cuda.error = 1e-2
    assert not verify_bundle(bundle, HEARD_ON_GPU).ok
    assert "so the bundle is good and the GPU computes something else" in advice(bundle, HEARD_ON_GPU)

    def change(arrays: Arrays) -> None:
        arrays["patches_0"] *= np.float32(1.01)

    bad = with_golden(bundle_copy, change)
    assert "the same check on the CPU fails, too" in advice(bad, HEARD_ON_GPU)
    assert "verify it where it was made" in advice(bad, EngineOptions())
    report = verify_bundle(bad, HEARD_ON_GPU)
    bundle.path("decoder.gguf").unlink()
    verdict = judge(bad, HEARD_ON_GPU, report)
    assert verdict.word == "unknown"
    assert "cannot be checked on the CPU" in verdict.advice
