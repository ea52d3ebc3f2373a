"""The decoder as GGUF: what is written, what llama.cpp's quantizer makes of it, and what can go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch

from dasheng_edge.export.adapter.merge import MergedTensors, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf import decoder as decoder_gguf
from dasheng_edge.export.gguf.checks import check_tensors
from dasheng_edge.export.gguf.decoder import (
    COPIED,
    VOCABULARY_BYTES,
    intermediate_type,
    measure,
    needed_bytes,
    stored_bytes,
    tensor_count,
    write_gguf,
)
from dasheng_edge.export.gguf.tokenizer import Vocabulary, read_vocabulary
from dasheng_edge.quant.decoder import gguf_file
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, DecoderOptions, PlainType
from dasheng_edge.runtime.errors import ExportError
from tests.fixtures.tiny_checkpoint import ROWS, write_tiny_adapter, write_tiny_checkpoint


@pytest.fixture(scope="module")
def merged(tiny_checkpoint: Path) -> MergedTensors:
    return MergedTensors(open_checkpoint(tiny_checkpoint))


@pytest.fixture(scope="module")
def vocabulary(tiny_checkpoint: Path) -> Vocabulary:
    return read_vocabulary(tiny_checkpoint, ROWS)


@pytest.fixture(scope="module")
def f32(merged: MergedTensors, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "decoder.gguf"
    write_gguf(path, merged, vocabulary, "F32")
    return path


@pytest.fixture(scope="module")
def quantized(f32: Path) -> Callable[[PlainType], Path]:
    """That file in another type, which llama.cpp makes once."""

    def make(kind: PlainType) -> Path:
        path = f32.with_name(f"{kind}.gguf")
        if not path.exists():
            quantize(f32, path, DecoderOptions(kind), threads=1)
        return path

    return make


@pytest.mark.parametrize("kind", COPIED)
def test_matrices_are_stored_in_the_type_and_vectors_in_f32(
    kind: PlainType, merged: MergedTensors, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    written: list[int] = []
    write_gguf(tmp_path / "x.gguf", merged, vocabulary, kind, written.append)
    report = measure(tmp_path / "x.gguf", merged, kind)
    tensors = gguf.GGUFReader(tmp_path / "x.gguf").tensors

    assert len(tensors) == 27
    assert all(tensor.tensor_type.name == (kind if len(tensor.shape) == 2 else "F32") for tensor in tensors)
    assert report.relative_error <= DECODER_TOLERANCES[kind].weights
    check_tensors(report, DECODER_TOLERANCES[kind])
    assert sum(written) == stored_bytes(merged, kind) == sum(tensor.n_bytes for tensor in tensors)


def test_f32_is_exact(f32: Path, merged: MergedTensors) -> None:
    assert measure(f32, merged, "F32").relative_error == 0


def test_adapters_are_in_the_file(f32: Path, merged: MergedTensors, vocabulary: Vocabulary, tmp_path: Path) -> None:
    adapted = open_adapters([write_tiny_adapter(tmp_path / "adapter")], merged.checkpoint)
    write_gguf(tmp_path / "x.gguf", adapted, vocabulary, "F32")

    assert measure(tmp_path / "x.gguf", adapted, "F32").relative_error == 0
    assert measure(f32, adapted, "F32").relative_error > 0.01


def test_the_error_is_that_of_the_matrices(merged: MergedTensors, vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", merged, vocabulary, "BF16")
    names = [name for name in merged.checkpoint.sources if name.startswith("decoder.")]
    matrices = [merged.tensor(name) for name in names if len(merged.shape(name)) == 2]
    error = sum(float((m.bfloat16().double() - m).square().sum()) for m in matrices)
    power = sum(float(m.double().square().sum()) for m in matrices)

    report = measure(tmp_path / "x.gguf", merged, "BF16")
    assert report.relative_error == pytest.approx((error / power) ** 0.5, rel=1e-6)
    assert report.relative_error <= report.worst_error <= 1.1 * report.relative_error
    assert report.vector_error == 0


def overwrite_tensor(path: Path, name: str, value: float) -> None:
    """Zero a tensor in a GGUF file, or set its first float32."""
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    content = np.zeros(tensor.n_bytes // 4, np.float32) if not value else np.array([value], np.float32)
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(content.tobytes())


@pytest.mark.parametrize("kind", get_args(PlainType))
def test_one_zeroed_matrix_does_not_hide_behind_the_others(
    kind: PlainType, f32: Path, merged: MergedTensors, tmp_path: Path
) -> None:
    shutil.copy(f32, tmp_path / "x.gguf")
    overwrite_tensor(tmp_path / "x.gguf", "blk.1.attn_v.weight", 0)
    report = measure(tmp_path / "x.gguf", merged, "F32")

    assert report.relative_error < 0.3  # less than Q2_K may cost
    with pytest.raises(ExportError, match=r"layers\.1\.self_attn\.v_proj\.weight in decoder\.gguf differs .* by 1 "):
        check_tensors(report, DECODER_TOLERANCES[kind])


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_vectors_must_be_exact(value: float, f32: Path, merged: MergedTensors, tmp_path: Path) -> None:
    shutil.copy(f32, tmp_path / "x.gguf")
    overwrite_tensor(tmp_path / "x.gguf", "blk.0.attn_norm.weight", value)
    report = measure(tmp_path / "x.gguf", merged, "F32")

    with pytest.raises(ExportError, match=r"norms and biases in decoder\.gguf differ"):
        check_tensors(report, DECODER_TOLERANCES["Q2_K"])


def test_a_nan_in_a_matrix_is_the_worst(f32: Path, merged: MergedTensors, tmp_path: Path) -> None:
    shutil.copy(f32, tmp_path / "x.gguf")
    overwrite_tensor(tmp_path / "x.gguf", "blk.0.ffn_up.weight", float("nan"))
    report = measure(tmp_path / "x.gguf", merged, "F32")

    assert np.isnan([report.relative_error, report.worst_error]).all()
    assert report.worst_matrix == "decoder.model.layers.0.mlp.up_proj.weight"


def test_progress_is_told_of_each_tensor(f32: Path, merged: MergedTensors, tmp_path: Path) -> None:
    quantized: list[int] = []
    quantize(f32, tmp_path / "x.gguf", DecoderOptions("Q8_0"), threads=1, advance=quantized.append)
    measured: list[int] = []
    measure(tmp_path / "x.gguf", merged, "Q8_0", measured.append)

    assert sum(quantized) == sum(measured) == tensor_count(merged) == 27


def test_tensors_are_streamed_in_blocks(
    f32: Path, merged: MergedTensors, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_gguf, "BLOCK_BYTES", 100_000)
    blocks: list[int] = []
    write_gguf(tmp_path / "x.gguf", merged, vocabulary, "F32", blocks.append)

    assert (tmp_path / "x.gguf").read_bytes() == f32.read_bytes()
    assert max(blocks) <= 100_000


def test_the_quantizer_is_fed_with_what_is_exact(merged: MergedTensors, tmp_path: Path) -> None:
    half = MergedTensors(open_checkpoint(write_tiny_checkpoint(tmp_path / "bf16", dtype="bfloat16")))
    adapted = open_adapters([write_tiny_adapter(tmp_path / "adapter")], half.checkpoint)

    assert intermediate_type(merged, "Q8_0") == "F32"
    assert intermediate_type(half, "Q8_0") == "BF16"
    assert intermediate_type(adapted, "Q8_0") == "exact"
    assert intermediate_type(half, "F16") == "F16"


@pytest.mark.parametrize("kind", [kind for kind in get_args(PlainType) if kind not in COPIED])
def test_llama_cpp_quantizes_to_every_type(
    kind: PlainType,
    f32: Path,
    quantized: Callable[[PlainType], Path],
    merged: MergedTensors,
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = measure(quantized(kind), merged, kind)

    assert DECODER_TOLERANCES[kind].weights / 2 <= report.relative_error <= DECODER_TOLERANCES[kind].weights
    check_tensors(report, DECODER_TOLERANCES[kind])
    assert report.bytes < f32.stat().st_size / 3
    assert report.fallbacks == ()
    assert capfd.readouterr() == ("", "")  # llama.cpp's log is not for the user


def test_rows_that_a_type_cannot_divide_are_reported(tiny_checkpoint: Path) -> None:
    assert decoder_gguf._falls_back((256, 320), "Q4_K_M")
    assert decoder_gguf._falls_back((256, 320), "IQ4_XS")
    assert not decoder_gguf._falls_back((256, 320), "Q8_0")
    assert not decoder_gguf._falls_back((320,), "Q4_K_M")


def test_a_weight_beyond_half_precision_is_refused(
    merged: MergedTensors, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MergedTensors, "rows", lambda self, name, start, stop: torch.full((stop - start, 256), 1e5))
    with pytest.raises(ExportError, match="holds 100000, F16 reaches 65504; export with --decoder BF16"):
        write_gguf(tmp_path / "x.gguf", merged, vocabulary, "F16")


@pytest.mark.parametrize("kind", get_args(PlainType))
def test_the_space_that_is_asked_for_is_enough_and_not_much_more(
    kind: PlainType,
    quantized: Callable[[PlainType], Path],
    merged: MergedTensors,
    vocabulary: Vocabulary,
    tmp_path: Path,
) -> None:
    first, used = intermediate_type(merged, kind), 0
    write_gguf(tmp_path / "first", merged, vocabulary, first)
    used += (tmp_path / "first").stat().st_size
    if first != kind:
        assert first == "F32"
        used += quantized(kind).stat().st_size

    files = 1 if kind in COPIED else 2
    assert used <= needed_bytes(merged, kind) <= 1.3 * used + files * VOCABULARY_BYTES


def test_what_adapters_leave_alone_stays_as_small_as_it_was(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "bf16", dtype="bfloat16"))
    adapted = open_adapters([write_tiny_adapter(tmp_path / "adapter", modules_to_save=["lm_head"])], checkpoint)
    write_gguf(tmp_path / "x.gguf", adapted, read_vocabulary(checkpoint.folder, ROWS), "exact")
    wide = {name for name, tensor in gguf_tensors(tmp_path / "x.gguf").items() if tensor.kind.name == "F32"}
    report = measure(tmp_path / "x.gguf", adapted, "F32")

    matrices = {name for name in wide if "norm" not in name and not name.endswith("bias")}
    adapted_here = {f"blk.{i}.ffn_{part}.weight" for i in range(2) for part in ("gate", "up", "down")}
    assert adapted_here | {"output.weight"} <= matrices <= adapted_here | {"output.weight", "token_embd.weight"}
    assert report.relative_error == report.vector_error == 0
    assert (tmp_path / "x.gguf").stat().st_size < 0.9 * stored_bytes(adapted, "F32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_copied_as_they_are(dtype: Any, tmp_path: Path) -> None:
    merged = MergedTensors(open_checkpoint(write_tiny_checkpoint(tmp_path / "tiny", dtype=dtype)))
    kind = intermediate_type(merged, "Q4_K_M")
    write_gguf(tmp_path / "x.gguf", merged, read_vocabulary(tmp_path / "tiny", ROWS), kind)

    assert kind == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    assert measure(tmp_path / "x.gguf", merged, "F32").relative_error == 0


def test_sampled_rows_are_spread_over_large_tensors() -> None:
    assert gguf_file.sampled_rows((100,)) == [(0, 100)]
    ranges = gguf_file.sampled_rows((10_000, 1024))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 10_000
    assert sum(stop - start for start, stop in ranges) == gguf_file.SAMPLED_PLACES * 256
    assert np.all(np.diff([start for start, _ in ranges]) > 0)
