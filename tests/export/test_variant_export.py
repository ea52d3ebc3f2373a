"""Every member of the family from checkpoint to a bundle that verifies and runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.export.bundle_export import ExportReport, export_bundle, with_last_chunk
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.options import ExportOptions, PromptOverrides
from dasheng_edge.quant.decoder.types import PlainType
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, GOLDEN, GOLDEN_FLAT, MODEL_CARD, Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import BundleKindError, CheckpointVariantError, OutputWriteError
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.tiny_checkpoint import write_tiny_adapter, write_tiny_checkpoint, write_tiny_dasheng_torch

TONE = (0.3 * np.sin(np.arange(175_000) / 20)).astype(np.float32)  # 10.9 s: two chunks, the second one short


def exported(checkpoint: Path, decoder: PlainType = "F32", adapters: tuple[Path, ...] = ()) -> ExportReport:
    report = export_bundle(ExportOptions(checkpoint, checkpoint.parent / "bundle", adapters, decoder=decoder))
    verified = verify_bundle(Bundle.open(report.bundle.folder))
    assert verified.ok, [(seam.name, seam.error) for seam in verified.seams if not seam.ok]
    return report


@pytest.mark.parametrize(
    ("decoder", "adapted"),
    [pytest.param("F32", True, marks=pytest.mark.slow), ("Q8_0", False)],
    ids=["adapted", "quantized"],
)
def test_a_model_with_two_branches_and_a_tied_qwen3_decoder(decoder: PlainType, adapted: bool, tmp_path: Path) -> None:
    variant: str = "midashenglm-tokenizer"
    checkpoint = write_tiny_checkpoint(tmp_path / "two-branches", variant=variant)
    adapters = (write_tiny_adapter(tmp_path / "adapter", variant=variant),) if adapted else ()

    report = exported(checkpoint, decoder, adapters)

    manifest = report.bundle.manifest
    assert manifest.variant == variant
    assert manifest.decoder is not None
    assert manifest.decoder.arch == "qwen3"
    assert manifest.front_end.acoustic is not None
    assert manifest.tolerances.acoustic_nepers is not None
    assert report.assumptions
    card = (report.bundle.folder / MODEL_CARD).read_text()
    assert all(assumption.split(" (")[0] in card for assumption in report.assumptions)
    with Captioner.open(report.bundle.folder) as captioner:
        caption = captioner.caption((TONE, 16_000), max_new_tokens=4)
    assert caption.audio_tokens == manifest.front_end.tokens_of(len(TONE))


@pytest.mark.parametrize("original", [pytest.param(False, marks=pytest.mark.slow), True], ids=["hub", "original"])
def test_an_encoder_alone(original: bool, tmp_path: Path) -> None:
    if original:
        checkpoint = write_tiny_dasheng_torch(tmp_path / "dasheng_tiny.pt")
    else:
        checkpoint = write_tiny_checkpoint(tmp_path / "dasheng-tiny", variant="dasheng")

    report = exported(checkpoint)

    manifest = report.bundle.manifest
    assert manifest.variant == "dasheng"
    assert (manifest.decoder, manifest.prompt, manifest.projector_parameters) == (None, None, None)
    assert set(manifest.files) == {FRONT_END, ENCODER, GOLDEN, GOLDEN_FLAT}
    assert {path.name for path in report.bundle.folder.iterdir()} == {*manifest.files, "manifest.json", MODEL_CARD}
    with Embedder.open(report.bundle.folder) as embedder:
        embedding = embedder.embed((TONE, 16_000))
    assert embedding.frames.shape == (manifest.front_end.patches_of(len(TONE)), manifest.encoder.embed_dim)
    with pytest.raises(BundleKindError, match="dasheng-edge embed"):
        Captioner.open(report.bundle.folder)


@pytest.mark.parametrize(
    ("config", "asked", "pads", "assumed"),
    [
        ({}, None, False, True),
        ({}, True, True, False),
        ({}, False, False, False),
        ({"pad_last": True}, None, True, False),
        ({"pad_last": True}, False, False, False),
        ({"pad_last": False}, None, False, False),
    ],
)
def test_what_says_how_the_last_chunk_of_a_dasheng_runs(
    config: dict[str, Any], asked: bool | None, *, pads: bool, assumed: bool, tmp_path: Path
) -> None:
    checkpoint = write_tiny_dasheng_torch(tmp_path / "dasheng.pt", num_heads=2, **config)
    opened = with_last_chunk(open_checkpoint(checkpoint), asked)

    assert (opened.front_end.pads_last_chunk, opened.front_end.masks_last_patch) == (pads, False)
    assert any("dasheng 0.0.8" in sentence for sentence in opened.assumptions) == assumed


def test_a_dasheng_whose_last_chunk_is_filled_up(tmp_path: Path) -> None:
    checkpoint = write_tiny_dasheng_torch(tmp_path / "dasheng.pt")
    report = export_bundle(ExportOptions(checkpoint, tmp_path / "bundle", pad_last_chunk=True))

    assert report.bundle.manifest.front_end.pads_last_chunk
    assert "is filled up with zeros" in (tmp_path / "bundle" / MODEL_CARD).read_text()
    assert verify_bundle(report.bundle).ok


def test_the_last_chunk_of_a_model_that_masks_is_not_to_be_chosen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointVariantError, match=r"--pad-last-chunk .* are for a Dasheng encoder alone"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", pad_last_chunk=True))


@pytest.mark.slow
def test_prompt_defaults_can_be_chosen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    overrides = PromptOverrides(prompt="Which bird?", system="Be brief.", audio_first=False)
    report = export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", overrides=overrides))
    facts = report.bundle.prompt_facts

    assert (facts.prompt, facts.system, facts.audio_first) == ("Which bird?", "Be brief.", False)
    assert verify_bundle(Bundle.open(report.bundle.folder)).ok


def test_too_little_space_is_found_before_work_begins(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dasheng_edge.export import bundle_export

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    monkeypatch.setattr(bundle_export, "export_front_end", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(
        OutputWriteError, match=r"needs about 1\d\d\.\d MB, and 10\.0 MB are free on the disk of .*; free some space"
    ):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "out" / "bundle"))
    assert not list(tmp_path.glob("out/*"))
