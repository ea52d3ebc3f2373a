"""A decoder that was just written is finite on the golden texts, and says what attention costs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export import bundle_export
from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.bundle_export import export_bundle
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.checks import DecoderCheck, check_golden
from dasheng_edge.export.gguf.decoder import write_gguf
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.export.graphs.session import GraphReport
from dasheng_edge.export.options import ExportOptions
from dasheng_edge.export.reference.decoder import greedy_texts
from dasheng_edge.quant.decoder.activations import Activations
from dasheng_edge.quant.decoder.types import DecoderType
from dasheng_edge.runtime.bundle.bundle import MODEL_CARD
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.verify import AttentionError
from tests.fixtures.tiny_checkpoint import ROWS


def test_what_f16_cannot_hold_is_refused_and_bf16_taken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    tensors: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    tensors["decoder.model.layers.0.mlp.up_proj.weight"] *= 2e5  # fits into F16, what comes of it does not
    save_file(tensors, checkpoint / "model.safetensors")
    merged = MergedTensors(open_checkpoint(checkpoint))
    audio = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    texts = greedy_texts(merged, [382, 385, AUDIO_MARK, 386, 198], [audio], frozenset(), 1)

    problems: dict[DecoderType, str] = {}
    for kind in ("F16", "BF16"):
        write_gguf(tmp_path / kind, merged, read_vocabulary(checkpoint, ROWS), kind)
        problems[kind] = check_golden(tmp_path / kind, texts, kind).problem
    assert re.fullmatch(
        r"ffn_up of block 0 reaches \S+ on the golden clips, and F16 holds at most 65504; "
        r"export with --decoder BF16 or F32",
        problems["F16"],
    )
    assert not problems["BF16"]


@pytest.mark.parametrize(("kind", "instead"), [("F16", "BF16 or F32"), ("BF16", "F32"), ("Q4_0", "BF16 or F32")])
def test_logits_that_are_not_finite_are_refused(kind: DecoderType, instead: str) -> None:
    check = DecoderCheck(AttentionError(1e-3, np.nan), Activations({"ffn_up-0": 3.0}), kind)
    assert check.problem == f"its logits are not finite on the golden clips; export with --decoder {instead}"


def test_an_export_that_is_not_finite_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("export_front_end", "export_encoder", "export_projector"):  # which cost seconds
        monkeypatch.setattr(bundle_export, name, lambda *_: GraphReport(0, 0.0, 1))
    check = DecoderCheck(AttentionError(1e-3, np.inf), Activations({"ffn_up-0": 7e4}), "F16")
    monkeypatch.setattr(bundle_export, "check_golden", lambda *_: check)
    with pytest.raises(ExportError, match=r"by inf relative RMS: ffn_up of block 0 reaches 7e\+04 .*nothing was"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", decoder="F16"))
    assert not list(tmp_path.iterdir())


def test_the_card_tells_what_attention_costs(tiny_bundle: Path) -> None:
    card = (tiny_bundle / MODEL_CARD).read_text()
    found = re.search(r" (\S+) with keys and values in F32 and no flash attention, (\S+) by default; largest act", card)
    assert found is not None
    assert float(found[1]) < 1e-5 < float(found[2])
