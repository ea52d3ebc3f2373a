"""Decoders in other types: what is refused before any work, what is written, and how its loss is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from dasheng_edge.quant.decoder import quantize as decoder_quant
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.quant.decoder.imatrix_file import Entry, Imatrix, read_imatrix, write_imatrix
from dasheng_edge.quant.decoder.importance import input_of
from dasheng_edge.quant.decoder.quantize import (
    check_decoder,
    measure,
    parse_tensor_types,
    quantize_decoder,
)
from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, DecoderOptions, DecoderType
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.errors import BundleKindError, ClipsError, DashengEdgeError, QuantizeError
from tests.fixtures.bundle_kinds import write_encoder_bundle

Q8_0 = GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def stored_as(source: Bundle, precision: str) -> Bundle:
    """The same bundle, which says that its decoder is of another type."""
    assert source.manifest.decoder is not None
    decoder = source.manifest.decoder.model_copy(update={"precision": precision})
    return Bundle(source.folder, source.manifest.model_copy(update={"decoder": decoder}))


def some_imatrix(path: Path, source: Bundle, width: int = 0, leave_out: str = "") -> Path:
    """Random importances for all matrices but one, of their width or another."""
    generator = np.random.default_rng(0)
    entries = {
        name: Entry(generator.uniform(0.1, 9, width or tensor.shape[1]).astype(np.float32), 1)
        for name, tensor in gguf_tensors(source.path(DECODER)).items()
        if input_of(name) is not None and name != leave_out
    }
    write_imatrix(path, Imatrix(entries, ("random",)))
    return path


# Overrides


def test_overrides_are_parsed_in_their_order() -> None:
    got = parse_tensor_types(("attn_v=q8_0", r"blk\.(0|1)\.ffn=Q4_K", "a=b=F16"))
    assert list(got.items()) == [
        ("attn_v", Q8_0), (r"blk\.(0|1)\.ffn", GGMLQuantizationType.Q4_K), ("a=b", GGMLQuantizationType.F16),
    ]  # fmt: skip
    assert parse_tensor_types(()) == {}


@pytest.mark.parametrize("text", ["attn_v", "=Q8_0", "attn_v=", "attn_v=Q9", "", "Q8_0", "attn_v=8"])
def test_overrides_that_cannot_be_read(text: str) -> None:
    with pytest.raises(QuantizeError, match=r"--tensor-type .* cannot be read; expected PATTERN=TYPE, .*attn_v=Q8_0"):
        parse_tensor_types((text,))


def test_an_override_that_is_none_once_it_is_lowered() -> None:
    with pytest.raises(QuantizeError, match=r"'\(\?P<a>attn_v\)' is no regular expression: unknown extension \?p"):
        parse_tensor_types(("(?P<a>attn_v)=Q8_0",))


def test_an_override_that_is_no_regular_expression() -> None:
    with pytest.raises(QuantizeError, match=r"'\(attn' is no regular expression: missing \)"):
        parse_tensor_types(("(attn=Q8_0",))


# What is refused before any work


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_K_M", "IQ2_XXS"])
def test_a_quantized_decoder_is_not_quantized_again(source: Bundle, stored: str) -> None:
    with pytest.raises(QuantizeError, match=rf"is {stored} already.*whose decoder is F32, BF16 or F16"):
        check_decoder(stored_as(source, stored), DecoderOptions("Q3_K_M"))
    check_decoder(stored_as(source, stored), DecoderOptions(stored))  # type: ignore[arg-type]


@pytest.mark.parametrize(("stored", "kind"), [("F16", "F32"), ("F16", "BF16"), ("BF16", "F32")])
def test_a_larger_type_is_refused(source: Bundle, stored: str, kind: DecoderType) -> None:
    with pytest.raises(QuantizeError, match=rf"is {stored}, which {kind} would store larger and no better; choose"):
        check_decoder(stored_as(source, stored), DecoderOptions(kind))


def test_a_bundle_without_decoder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    alone = Bundle.open(write_encoder_bundle(tiny_bundle, tmp_path / "alone"))
    with pytest.raises(BundleKindError, match="holds a Dasheng encoder only"):
        check_decoder(alone, DecoderOptions("Q8_0"))


def test_an_importance_matrix_of_another_model_is_refused(source: Bundle, tmp_path: Path) -> None:
    check_decoder(source, DecoderOptions("Q4_0", some_imatrix(tmp_path / "right.gguf", source)))
    # llama-imatrix says nothing about the head, unless it is told to.
    check_decoder(
        source, DecoderOptions("Q4_0", some_imatrix(tmp_path / "headless", source, leave_out="output.weight"))
    )
    lacking = some_imatrix(tmp_path / "lacking", source, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(QuantizeError, match=r"lacking says nothing about blk\.1\.ffn_up\.weight and 0 more matrices"):
        check_decoder(source, DecoderOptions("Q4_0", lacking))
    with pytest.raises(
        QuantizeError, match=r"and 13 more matrices of .*, or is of other widths; measure one with this"
    ):
        check_decoder(source, DecoderOptions("Q4_0", some_imatrix(tmp_path / "narrow", source, width=8)))
    with pytest.raises(ClipsError, match="there is no importance matrix"):
        check_decoder(source, DecoderOptions("Q4_0", tmp_path / "gone"))


def test_an_override_that_matches_nothing_is_refused(source: Bundle) -> None:
    check_decoder(source, DecoderOptions("Q8_0", tensor_types={"ATTN_V": Q8_0}))  # lowered, as llama-quantize does
    with pytest.raises(QuantizeError, match=r"--tensor-type attn_w matches no matrix of the decoder; expected e\.g\."):
        check_decoder(source, DecoderOptions("Q8_0", tensor_types={"attn_v": Q8_0, "attn_w": Q8_0}))


def test_options_that_would_go_nowhere_are_refused(source: Bundle, tmp_path: Path) -> None:
    imatrix = some_imatrix(tmp_path / "i", source)
    with pytest.raises(QuantizeError, match=r"--imatrix goes with a decoder to be quantized, F32 is stored without"):
        check_decoder(source, DecoderOptions("F32", imatrix))
    with pytest.raises(QuantizeError, match=r"--tensor-type norm matches no matrix"):  # vectors only
        check_decoder(source, DecoderOptions("Q8_0", tensor_types={"norm": Q8_0}))
    with pytest.raises(QuantizeError, match=r"is Q8_0 already"):
        check_decoder(stored_as(source, "Q8_0"), DecoderOptions("Q8_0", tensor_types={"attn_v": Q8_0}))
    with pytest.raises(QuantizeError, match=r"--imatrix goes with a decoder to be quantized, Q8_0 is stored"):
        check_decoder(stored_as(source, "Q8_0"), DecoderOptions("Q8_0", imatrix))


def test_an_override_may_need_an_importance_matrix(source: Bundle, tmp_path: Path) -> None:
    options = DecoderOptions("Q4_0", tensor_types={"attn_v": GGMLQuantizationType.IQ2_XXS})
    with pytest.raises(QuantizeError, match=r"--tensor-type attn_v=IQ2_XXS needs an importance matrix; pass --cal"):
        check_decoder(source, options)
    check_decoder(source, options, measured=True)
    check_decoder(source, replace(options, imatrix=some_imatrix(tmp_path / "i", source)))


@pytest.mark.parametrize("pattern", ["(?<=attn_)v", "(?i)attn", "(?s:attn)", "(?#why)attn", "attn.++"])
def test_patterns_that_only_python_knows_are_refused(pattern: str) -> None:
    with pytest.raises(QuantizeError, match=r"llama\.cpp's regular expressions have no '.*'; write it without"):
        parse_tensor_types((f"{pattern}=Q8_0",))


@pytest.mark.parametrize(
    "pattern", ["(?:attn_v)", "attn(?=_v)", "attn(?!_q)", r"a\++", "(a+)+", r"attn_[qkv]\.weight$"]
)
def test_patterns_of_both_languages(pattern: str) -> None:
    assert list(parse_tensor_types((f"{pattern}=Q8_0",))) == [pattern]


def test_types_that_need_an_importance_matrix(source: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    with pytest.raises(QuantizeError, match=r"IQ2_XXS needs an importance matrix; pass --calibrate CLIPS .* --imatrix"):
        quantize_decoder(source, target, DecoderOptions("IQ2_XXS"), 1)
    assert not target.exists()
    report = quantize_decoder(source, target, DecoderOptions("IQ2_XXS", some_imatrix(tmp_path / "i", source)), 1)
    assert report.types["IQ2_XXS"] > 0


# What is written


def test_the_same_type_is_a_copy(source: Bundle, tmp_path: Path) -> None:
    report = quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions("F32"), 1)
    assert (tmp_path / "x.gguf").read_bytes() == source.path(DECODER).read_bytes()
    assert (report.relative_error, set(report.types)) == (0, {"F32"})
    assert report.bytes == source.manifest.files[DECODER].bytes


@pytest.mark.parametrize("kind", ["BF16", "F16", "Q8_0", "Q4_K_M"])
def test_each_type_is_within_its_tolerance(source: Bundle, tmp_path: Path, kind: DecoderType) -> None:
    begun: list[int] = []
    report = quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions(kind), 1, begun.append)
    limit = DECODER_TOLERANCES[kind].weights
    assert limit / 20 < report.relative_error <= limit
    assert sum(report.types.values()) == len(begun) == len(gguf_tensors(source.path(DECODER)))
    assert report.bytes == (tmp_path / "x.gguf").stat().st_size < source.manifest.files[DECODER].bytes


def test_an_importance_matrix_changes_what_is_kept(source: Bundle, tmp_path: Path) -> None:
    """The weights of important inputs come nearer to the source, those of others may not."""
    path = some_imatrix(tmp_path / "imatrix.gguf", source)
    errors = []
    importances = read_imatrix(path)
    for imatrix in (None, path):
        quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions("Q4_0", imatrix), 1)
        errors.append(weighted_error(source.path(DECODER), tmp_path / "x.gguf", importances))
    assert errors[1] < 0.98 * errors[0]


def weighted_error(source: Path, target: Path, imatrix: Imatrix) -> float:
    """The mean over all layers' matrices of sum(importance * difference^2)."""
    wanted, got = gguf_tensors(source), gguf_tensors(target)
    total = 0.0
    for name in imatrix.entries:
        rows = wanted[name].shape[0]
        difference = got[name].rows(0, rows) - wanted[name].rows(0, rows)
        total += float((imatrix.importance(name) * np.square(difference)).sum())
    return total


def test_overrides_hold_for_the_tensors_that_match(source: Bundle, tmp_path: Path) -> None:
    options = DecoderOptions("Q4_0", tensor_types={"attn_v": Q8_0, r"blk\.0\.ffn_down": GGMLQuantizationType.F16})
    report = quantize_decoder(source, tmp_path / "x.gguf", options, 1)
    tensors = gguf_tensors(tmp_path / "x.gguf")
    assert [tensors[f"blk.{i}.attn_v.weight"].kind for i in (0, 1)] == [Q8_0] * 2
    assert tensors["blk.0.ffn_down.weight"].kind == GGMLQuantizationType.F16
    assert tensors["blk.1.ffn_down.weight"].kind not in (GGMLQuantizationType.F16, Q8_0)
    assert report.types["Q8_0"] >= 2


def test_overrides_that_llama_cpp_would_ignore_are_refused(source: Bundle, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="--tensor-type needs a quantized --decoder: with F32"):
        quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions("F32", tensor_types={"attn_v": Q8_0}), 1)
    one_bit = {"attn_v": GGMLQuantizationType.Q1_0}
    with pytest.raises(QuantizeError, match="cannot store tensors in Q1_0"):
        quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions("Q8_0", tensor_types=one_bit), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GGMLQuantizationType), ids=lambda kind: kind.name)
def test_an_override_of_any_type_is_made_or_refused(source: Bundle, tmp_path: Path, kind: GGMLQuantizationType) -> None:
    """None may crash this process or leave half a file."""
    options = DecoderOptions("Q8_0", some_imatrix(tmp_path / "i.gguf", source), {"attn_output": kind})
    try:
        report = quantize_decoder(source, tmp_path / "x.gguf", options, 1)
    except DashengEdgeError:
        return
    assert report.types.get(kind.name, 0) > 0


# The measure


def test_the_error_is_that_of_all_matrices_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    matrices = {f"m{i}.weight": generator.normal(size=(8, 64)).astype(np.float32) * 10**i for i in range(2)}
    noise = {name: generator.normal(size=(8, 64)).astype(np.float32) for name in matrices}
    vector = np.ones(64, np.float32)
    paths = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, share in zip(paths, (0.0, 0.1), strict=True):
        writer = gguf.GGUFWriter(path, "qwen2")
        for name, matrix in matrices.items():
            writer.add_tensor(name, matrix + np.float32(share) * noise[name])
        writer.add_tensor("norm.weight", vector * np.float32(1 + share))  # vectors are not counted
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    wanted = np.concatenate([matrix.ravel() for matrix in matrices.values()])
    added = 0.1 * np.concatenate([one.ravel() for one in noise.values()])
    report = measure(*paths)
    assert report.relative_error == pytest.approx(np.linalg.norm(added) / np.linalg.norm(wanted), rel=1e-4)
    assert report.types == {"F32": 3}


def test_what_the_quantizer_raises_is_passed_on(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise QuantizeError("no")

    monkeypatch.setattr(decoder_quant, "quantize", fail)
    with pytest.raises(QuantizeError, match="no"):
        quantize_decoder(source, tmp_path / "x.gguf", DecoderOptions("Q8_0"), 1)
