"""What is wrong where a bundle differs: its files, what they hold, this machine, or whose tolerance it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verdict.judge import Verdict, judge
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.fake_gpu import FakeCuda, fake_cuda
from tests.fixtures.places import SMALLEST_BUNDLE
from tests.runtime.test_verify import HEARD_ON_GPU, Arrays, with_golden, with_halves

__all__ = ["fake_cuda"]


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one golden clip, since each is computed several times."""
    folder = Path(shutil.copytree(SMALLEST_BUNDLE, tmp_path_factory.mktemp("short") / "tiny"))
    return with_golden(folder, lambda arrays: arrays.update(names=arrays["names"][:1])).folder


def judged(bundle: Bundle, options: EngineOptions | None = None) -> Verdict:
    options = options or EngineSettings()
    return judge(bundle, options, verify_bundle(bundle, options))


def verify(*arguments: str | Path) -> Result:
    words = [str(one) for one in ("verify", *arguments, "--threads", "1")]
    return CliRunner().invoke(cli.build_app(), words, prog_name="dasheng-edge")


def wrong_kernels(monkeypatch: pytest.MonkeyPatch, graph: str, *, fused_only: bool) -> None:
    """Sessions of a graph whose products are wrong, or only those that operators are fused in."""
    real = onnxruntime.InferenceSession
    marker = {"encoder": b"log_mel", "projector": b"embeddings", "front_end": b"waveform"}[graph]

    class Wrong:
        def __init__(self, source: Any, *arguments: Any, **options: Any) -> None:
            self._real = real(source, *arguments, **options)
            plain = not isinstance(source, str)
            self._wrong = marker in source[:] and not fused_only if plain else Path(source).stem == graph
            for name in ("get_outputs", "get_providers", "get_session_options"):
                setattr(self, name, getattr(self._real, name))

        def run(self, names: Any, feed: Any) -> list[Any]:
            found: list[Any] = self._real.run(names, feed)
            if not self._wrong:
                return found
            return [one + one.dtype.type(2) if one.dtype.kind == "f" or one.dtype == np.int32 else one for one in found]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)


@pytest.mark.parametrize(
    ("graph", "fused_only"), [("encoder", True), ("encoder", False), ("projector", True), ("front_end", True)]
)
def test_wrong_kernels_are_this_machine(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, graph: str, fused_only: bool
) -> None:
    wrong_kernels(monkeypatch, graph, fused_only=fused_only)
    verdict = judged(Bundle.open(tiny_bundle))
    assert (verdict.word, verdict.exit_code) == ("machine", 3)
    assert ("without ONNX Runtime's graph optimisation" in verdict.advice) == fused_only
    assert ("NumPy computes other products" in verdict.advice) != fused_only
    for told in (graph.replace("_", " "), "fp32", "-cpu cortex-a76", "onnxruntime "):
        assert told in verdict.advice
    assert "export" not in verdict.advice


def test_a_wrong_decoder_is_this_machine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Decoder.logits
    monkeypatch.setattr(
        Decoder, "logits", lambda self: logits(self) * np.where(self.settings.weights == "mapped", -1, 1)
    )
    verdict = judged(Bundle.open(tiny_bundle))
    assert verdict.word == "machine"
    assert "the decoder in F32" in verdict.advice
    assert "llama-cpp-python" in verdict.advice


def test_threads_that_matter_are_this_machine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Decoder.logits
    monkeypatch.setattr(
        Decoder, "logits", lambda self: logits(self) * (1 if self.settings.prefill_threads == 1 else -1)
    )
    verdict = judged(Bundle.open(tiny_bundle), EngineSettings(prefill_threads=2))
    assert verdict.word == "machine"
    assert "with --threads 1, which may be set, it is within the tolerance" in verdict.advice


@pytest.mark.parametrize(
    ("field", "value"),
    [("log_mel", 3), ("patches", 3), ("patches", np.nan), ("embeddings", 3), ("prompt", 1), ("logits", 3)],
)
def test_wrong_vectors_are_the_bundle(bundle_copy: Path, field: str, value: float) -> None:
    def change(arrays: Arrays) -> None:
        arrays[f"{field}_0"].flat[0] += value * (100 if field in ("logits", "embeddings") else 1)

    verdict = judged(with_golden(bundle_copy, change))
    assert (verdict.word, verdict.exit_code) == ("bundle", 1)
    assert "export the bundle again" in verdict.advice


@pytest.mark.parametrize(
    ("error", "word"), [(4e-4, "good"), (2e-3, "tolerance"), (2e-2, "machine"), (float("nan"), "machine")]
)
def test_a_gpu_that_only_rounds_has_the_tolerance_of_another(
    bundle_copy: Path, fake_cuda: FakeCuda, error: float, word: str
) -> None:
    bundle = with_halves(bundle_copy, cuda_patches_relative=8e-4, cuda_embeddings_relative=1e-3)
    fake_cuda.error = error
    assert judged(bundle, HEARD_ON_GPU).word == word


def test_a_cpu_that_is_held_against_a_gpu_has_the_tolerance_of_another(bundle_copy: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["patches_0"] *= np.float32(1 + 5e-4)

    with_golden(bundle_copy, change)
    verdict = judged(with_halves(bundle_copy, cuda_patches_relative=8e-4, cuda_embeddings_relative=1e-3))
    assert (verdict.word, verdict.exit_code) == ("tolerance", 4)


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.gguf", "golden.npz"])
@pytest.mark.parametrize("change", [shorter, flipped, Path.unlink])
def test_altered_files_are_told_before_anything_is_computed(
    bundle_copy: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(bundle_copy / name)
    result = verify(bundle_copy, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert (facts["ok"], facts["verdict"], facts["seams"]) == (False, "altered", [])
    assert name in facts["advice"]


def test_the_command_says_the_word_and_ends_with_its_code(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(verify(tiny_bundle, "--json").stdout)["verdict"] == "good"
    wrong_kernels(monkeypatch, "encoder", fused_only=True)
    result = verify(tiny_bundle, "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert (facts["ok"], facts["verdict"]) == (False, "machine")
    assert facts["advice"] in result.stderr
