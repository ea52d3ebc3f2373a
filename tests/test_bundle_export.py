"""The export from end to end: what a bundle holds, and that nothing stays behind when it fails."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.export import bundle_export
from dasheng_edge.export.bundle_export import ExportReport, StepReport, export_bundle, prompt_facts
from dasheng_edge.export.checkpoint import open_checkpoint
from dasheng_edge.export.encoder_onnx import GraphReport
from dasheng_edge.export.options import ExportOptions
from dasheng_edge.runtime.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, PROJECTOR, Bundle, Sampling, sha256_of
from dasheng_edge.runtime.errors import (
    AdapterError,
    CheckpointError,
    CheckpointFileError,
    CheckpointNotFoundError,
    ExportError,
    OutputExistsError,
    OutputWriteError,
)
from dasheng_edge.runtime.verify import verify_bundle
from tests.tiny_checkpoint import write_tiny_adapter

pytestmark = pytest.mark.torch


class Listener:
    """Notes what the export tells."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, str]] = []
        self.amounts: list[int] = []
        self.ended: list[StepReport] = []

    def begin(self, step: str, total: int, unit: str) -> None:
        self.begun.append((step, total, unit))

    def advance(self, amount: int) -> None:
        self.amounts.append(amount)

    def end(self, report: StepReport) -> None:
        self.ended.append(report)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapter") / "tiny-adapter")


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, Listener]:
    """A quantized bundle."""
    listener = Listener()
    out = tmp_path_factory.mktemp("exported") / "bundle"
    report = export_bundle(ExportOptions(tiny_checkpoint, out, decoder="Q8_0"), listener)
    return report, listener


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that cost nothing, for tests of what happens around them."""

    def touch(path: Path, *_: object) -> GraphReport:
        path.write_bytes(b"graph")
        return GraphReport(5, 0.0, 1)

    for name in ("export_front_end", "export_encoder", "export_projector"):
        monkeypatch.setattr(bundle_export, name, touch)


def test_a_bundle_is_complete_and_proves_itself(exported: tuple[ExportReport, Listener]) -> None:
    report, _ = exported
    bundle = Bundle.open(report.bundle.folder)

    assert set(bundle.manifest.files) == {FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN}
    assert report.bytes == bundle.manifest.total_bytes
    assert [path.name for path in report.bundle.folder.parent.iterdir()] == ["bundle"]
    assert verify_bundle(bundle).ok


def test_the_manifest_says_what_was_exported(exported: tuple[ExportReport, Listener]) -> None:
    manifest = exported[0].bundle.manifest

    assert (manifest.name, manifest.provenance.checkpoint) == ("checkpoint", "checkpoint")
    assert manifest.provenance.adapters == ()
    assert set(manifest.provenance.versions) == set(bundle_export.LIBRARIES)
    assert (manifest.encoder.embed_dim, manifest.encoder.depth, manifest.encoder.num_heads) == (64, 2, 2)
    assert (manifest.decoder.precision, manifest.decoder.vocab_size, manifest.decoder.context_length) == (
        "Q8_0", 448, 4096,
    )  # fmt: skip
    assert manifest.prompt.prompt == "Write an audio caption describing the sound"
    assert (manifest.prompt.max_new_tokens, manifest.prompt.sampling) == (32, Sampling())
    assert manifest.tolerances.logits_relative == bundle_export.DECODER_TOLERANCES["Q8_0"].logits


def test_each_step_reports_its_error(exported: tuple[ExportReport, Listener]) -> None:
    report, listener = exported

    assert [step.name for step in report.steps] == [FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN]
    assert tuple(listener.ended) == report.steps
    assert all(0 <= step.error <= step.tolerance for step in report.steps)
    assert report.steps[3].error > 1e-3  # Q8_0 costs something
    assert [name for name, _, _ in listener.begun] == [step.name for step in report.steps]
    assert ("decoder.gguf", 5_645_312, "bytes") in listener.begun
    assert sum(listener.amounts) >= 5_645_312


def test_files_hold_no_path_of_this_machine(exported: tuple[ExportReport, Listener], tiny_checkpoint: Path) -> None:
    for path in exported[0].bundle.folder.iterdir():
        content = path.read_bytes()
        for trace in (str(tiny_checkpoint.parent), str(Path.cwd()), sys.prefix):
            assert trace.encode() not in content, path.name


def test_adapters_are_merged_and_named(tiny_checkpoint: Path, adapter: Path, tmp_path: Path, quick: None) -> None:
    report = export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", (adapter,)))
    weights = adapter / "adapter_model.safetensors"

    assert report.bundle.manifest.provenance.adapters == (f"tiny-adapter {sha256_of(weights)}",)
    assert report.steps[0].name == "adapters"
    assert 0 < report.steps[0].error <= 1e-6


def test_the_same_export_gives_the_same_files(exported: tuple[ExportReport, Listener], tiny_bundle: Path) -> None:
    first, second = Bundle.open(tiny_bundle).manifest.files, exported[0].bundle.manifest.files

    assert [name for name in first if first[name] != second[name]] == [DECODER]  # F32 and Q8_0


def test_an_existing_bundle_is_replaced_only_on_request(
    tiny_checkpoint: Path, bundle_copy: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_bundle(ExportOptions(tiny_checkpoint, bundle_copy))
    report = export_bundle(ExportOptions(tiny_checkpoint, bundle_copy, overwrite=True))

    assert report.bundle.manifest.decoder.precision == "F16"
    assert (bundle_copy / ENCODER).read_bytes() == b"graph"


def no_checkpoint(checkpoint: Path, _: Path) -> None:
    shutil.rmtree(checkpoint)


def no_tokenizer(checkpoint: Path, _: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def no_adapter(_: Path, adapter: Path) -> None:
    shutil.rmtree(adapter)


@pytest.mark.parametrize(
    ("damage", "error"),
    [(no_checkpoint, CheckpointNotFoundError), (no_tokenizer, CheckpointError), (no_adapter, AdapterError)],
)
def test_bad_input_is_found_before_work_begins(
    damage: Callable[[Path, Path], None], error: type[Exception], tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    damage(checkpoint, copy)
    listener = Listener()

    with pytest.raises(error):
        export_bundle(ExportOptions(checkpoint, tmp_path / "out" / "bundle", (copy,)), listener)
    assert not (tmp_path / "out").exists()
    assert not listener.begun


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """Writes beyond so many bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for size in (100_000, 300_000):  # in the front end, in the encoder
        with largest_file(size), pytest.raises(OutputWriteError, match="nothing was left behind"):
            export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("decoder", "size"), [("F16", 600_000), ("Q8_0", 600_000), ("Q2_K", 600_000)], ids=["F16", "Q8_0", "golden"]
)
def test_a_full_disk_in_the_decoder_leaves_nothing(
    decoder: Any, size: int, tiny_checkpoint: Path, tmp_path: Path, quick: None
) -> None:
    with largest_file(size), pytest.raises(OutputWriteError):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", decoder=decoder))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputWriteError),
        (OSError("1024 requested and 512 written"), OutputWriteError),
        (OSError(errno.EIO, "Input/output error"), OutputWriteError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError("something else"), OSError),
    ],
)
def test_whatever_happens_nothing_is_left(
    raised: BaseException, expected: type[BaseException], tiny_checkpoint: Path, tmp_path: Path, quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(bundle_export, "write_golden", fail)
    with pytest.raises(expected) as caught:
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
    assert isinstance(caught.value, OutputWriteError) == (expected is OutputWriteError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_step_out_of_tolerance_fails_the_export(
    error: float, tiny_checkpoint: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_export, "export_encoder", lambda path, encoder: GraphReport(0, error, 9))
    with pytest.raises(ExportError, match=r"encoder\.onnx differs from its source by .* at most 0\.0001"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("generation", "sampling", "max_new_tokens"),
    [
        ({}, Sampling(), 128),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Sampling(), 128),
        (
            {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.1, "max_new_tokens": 64},
            Sampling(temperature=1.0, top_k=50, top_p=0.8, repetition_penalty=1.1),
            64,
        ),
    ],
)
def test_sampling_is_the_checkpoints(
    generation: dict[str, object], sampling: Sampling, max_new_tokens: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    facts = prompt_facts(open_checkpoint(checkpoint))

    assert (facts.sampling, facts.max_new_tokens) == (sampling, max_new_tokens)


def test_impossible_sampling_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    with pytest.raises(CheckpointFileError, match=r"generation_config\.json holds a value out of range"):
        prompt_facts(open_checkpoint(checkpoint))
