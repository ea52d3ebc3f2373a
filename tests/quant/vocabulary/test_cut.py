"""A bundle with fewer tokens computes what it did: the same rows give the same logits, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_quant
from dasheng_edge.quant.bundle_quant import QuantizeOptions, QuantizeReport, quantize_bundle, quantize_options
from dasheng_edge.quant.decoder.types import DecoderOptions, DecoderType
from dasheng_edge.quant.recipes import RECIPES, Recipe
from dasheng_edge.quant.vocabulary.corpus import VocabularyOptions
from dasheng_edge.quant.vocabulary.cut import cut_clip
from dasheng_edge.quant.vocabulary.gguf_cut import new_ids
from dasheng_edge.runtime.bundle.bundle import DECODER, MODEL_CARD, Bundle
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, check_flat_golden, read_golden
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, resolve_here
from dasheng_edge.runtime.errors import BundleKindError, QuantizeError
from dasheng_edge.runtime.gguf.check import TOKENS
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.program import program_of
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.bundle_kinds import write_encoder_bundle
from tests.fixtures.places import MICRO, REPOSITORY

CLIPS = REPOSITORY / "benchmarks" / "micro" / "clips"
CORPUS = "a dog barks while rain falls, followed by birds singing\nsomeone knocks\n"
ANSWER = "a guitar plays, followed by people applauding, followed by a car horn honking"  # to the clip, by micro
needs_micro = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(CORPUS)
    return path


def cut(source: Path, out: Path, recipe: Recipe | None = None, **vocabulary: Any) -> QuantizeReport:
    options = quantize_options(source, out, recipe or Recipe(None, None, None))
    return quantize_bundle(replace(options, vocabulary=VocabularyOptions(**vocabulary), threads=1))


def kept_of(before: Bundle, after: Bundle) -> np.ndarray[Any, np.dtype[np.bool_]]:
    names = [read_header(bundle.path(DECODER), (TOKENS,)).array(TOKENS) for bundle in (before, after)]
    return np.isin(np.arange(len(names[0])), [i for i, name in enumerate(names[0]) if name in set(names[1])])


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "IQ4_NL", "Q2_K")
]


@pytest.fixture(scope="module", params=["F32", "Q4_K_M", *SLOW])
def pair(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """A bundle in a type, and what is cut of it."""
    folder = tmp_path_factory.mktemp("pair")
    kind: DecoderType = request.param
    whole = tiny_bundle
    if kind != "F32":
        whole = folder / "whole"
        quantize_bundle(QuantizeOptions(tiny_bundle, whole, decoder=DecoderOptions(kind), threads=1))
    cut(whole, folder / "cut", size=384)
    return Bundle.open(whole), Bundle.open(folder / "cut")


def test_logits_of_kept_tokens_are_the_same(pair: tuple[Bundle, Bundle]) -> None:
    whole, fewer = pair
    kept, logits = kept_of(whole, fewer), []
    texts = [clip.text for clip in read_golden(whole)], [clip.text for clip in read_golden(fewer)]
    for bundle, clips in zip(pair, texts, strict=True):
        decoder = Decoder.open(bundle.path(DECODER), resolve_here(EngineOptions().changed(threads=1)))
        rows = []
        for text in clips:
            assert text is not None
            decoder.prefill(text.segments, reserve=4)
            rows.append(decoder.logits().copy())
        decoder.close()
        logits.append(np.stack(rows))
    assert logits[0][:, kept].tobytes() == logits[1].tobytes()


def test_the_bundle_is_one_like_any_other(pair: tuple[Bundle, Bundle]) -> None:
    whole, fewer = pair
    assert verify_bundle(fewer, EngineSettings()).ok
    before, after = whole.decoder_facts, fewer.decoder_facts
    assert (before.vocab_size, after.vocab_size) == (448, 384)
    assert before.parameters - after.parameters == 2 * 64 * before.hidden_size  # the head is a matrix of its own
    assert after.precision == before.precision
    assert fewer.manifest.program == program_of(fewer.manifest, fewer.path(DECODER))
    check_flat_golden(fewer, read_golden(fewer))
    facts = fewer.manifest.quantization
    assert facts is not None
    assert facts.vocabulary is not None
    assert (facts.vocabulary.tokens_before, facts.vocabulary.corpora) == (448, {})
    assert "384 of 448 tokens" in fewer.path(MODEL_CARD).read_text()


def test_golden_vectors_follow(pair: tuple[Bundle, Bundle]) -> None:
    whole, fewer = pair
    kept = kept_of(whole, fewer)
    ids = new_ids(kept)
    for before, after in zip(read_golden(whole), read_golden(fewer), strict=True):
        assert before.text is not None
        assert after.text is not None
        assert after.text.logits.tolist() == before.text.logits[kept].tolist()
        assert after.text.tokens.tolist() == ids[before.text.tokens].tolist()
        assert (after.text.prompt == AUDIO_MARK).tolist() == (before.text.prompt == AUDIO_MARK).tolist()
        assert after.patches.tobytes() == before.patches.tobytes()
        assert cut_clip(replace(before, text=None), kept).text is None


@pytest.mark.slow
def test_what_is_cut_first_and_quantized_is_what_is_quantized_and_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    cut(tiny_bundle, tmp_path / "both", Recipe(None, "Q4_K_M", None), size=384)
    quantize_bundle(QuantizeOptions(tiny_bundle, tmp_path / "first", decoder=DecoderOptions("Q4_K_M"), threads=1))
    cut(tmp_path / "first", tmp_path / "then", size=384)
    both, then = (read_header(tmp_path / name / DECODER) for name in ("both", "then"))
    data = [header.path.read_bytes()[header.data :] for header in (both, then)]
    assert both.tensors == then.tensors
    assert data[0] == data[1]


@needs_micro
def test_answers_are_the_same_and_other_text_is_spelled(corpus: Path, tmp_path: Path) -> None:
    corpus.write_text(f"{CORPUS}{ANSWER}\n")
    report = cut(MICRO, tmp_path / "out", RECIPES["small"], corpora=(corpus,))
    assert report.bundle.decoder_facts.vocab_size < 768
    assert report.bytes < report.source_bytes / 2
    with Captioner.open(tmp_path / "out", threads=1) as captioner:
        clip = CLIPS / "scene_9000006.flac"
        assert captioner.caption(clip).text == ANSWER
        captioner.caption(clip, prompt="Was hört man? 雨")  # nothing in it was in the corpus


@needs_micro
def test_answers_that_change_are_counted(corpus: Path, tmp_path: Path) -> None:
    options = quantize_options(MICRO, tmp_path / "out", Recipe("int8", "Q6_K", "q8_0"))
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in sorted(CLIPS.glob("scene*.flac"))[:6]:
        (clips / clip.name).symlink_to(clip)
    report = quantize_bundle(replace(options, vocabulary=VocabularyOptions((corpus,), 448), calibrate=clips, threads=1))
    (step,) = [step for step in report.steps if step.name == "answers"]
    changed = 0
    with Captioner.open(tmp_path / "out", threads=1) as fewer, Captioner.open(MICRO, threads=1) as whole:
        for clip in sorted(clips.iterdir()):
            changed += fewer.caption(clip).text != whole.caption(clip).text
    assert step.note == f"{changed} of 6 change with fewer tokens"
    assert changed


def test_a_cut_bundle_can_be_cut_again(
    tiny_bundle: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasheng_edge.quant.vocabulary.choice.ROWS", 1)
    cut(tiny_bundle, tmp_path / "one", size=384)
    report = cut(tmp_path / "one", tmp_path / "two", size=350, corpora=(corpus,))
    facts = report.bundle.manifest.quantization
    assert facts is not None
    assert facts.vocabulary is not None
    assert facts.vocabulary.tokens_before == 448  # that it was trained with
    assert [*facts.vocabulary.corpora] == ["corpus.txt"]


def test_a_later_quantization_says_what_was_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    first = cut(tiny_bundle, tmp_path / "cut", size=384).bundle.manifest.quantization
    options = quantize_options(tmp_path / "cut", tmp_path / "out", Recipe(None, "Q8_0", None))
    second = quantize_bundle(replace(options, threads=1)).bundle.manifest.quantization
    assert first is not None
    assert second is not None
    assert second.vocabulary == first.vocabulary is not None


def test_a_bundle_that_was_not_cut_does_not_speak_of_it(tiny_bundle: Path, tmp_path: Path) -> None:
    report = quantize_bundle(QuantizeOptions(tiny_bundle, tmp_path / "out", decoder=DecoderOptions("Q8_0"), threads=1))
    assert "vocabulary" not in report.bundle.manifest.model_dump_json()


@pytest.mark.parametrize("size", [0, 255, 447, 448, 10**9])
def test_numbers_that_cannot_be(size: int, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"is too few|leaves nothing to drop"):
        cut(tiny_bundle, tmp_path / "out", size=size)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_alone_has_no_tokens(tiny_bundle: Path, tmp_path: Path) -> None:
    alone = write_encoder_bundle(tiny_bundle, tmp_path / "alone")
    with pytest.raises(BundleKindError, match="holds a Dasheng encoder only"):
        cut(alone, tmp_path / "out", size=384)


@pytest.mark.parametrize("where", ["save_golden", "write_cut_gguf", "count_tokens"])
def test_an_interruption_leaves_nothing(
    where: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"dasheng_edge.quant.vocabulary.cut.{where}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut(tiny_bundle, tmp_path / "out", size=384)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tiny_bundle: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[QuantizeOptions] = []

    def refuse(options: QuantizeOptions, _: object) -> None:
        asked.append(options)
        raise QuantizeError("no")

    monkeypatch.setattr(bundle_quant, "quantize_bundle", refuse)
    arguments = ["quantize", str(tiny_bundle), "--out", str(tmp_path / "out"), "--vocab", str(corpus), "--vocab", "384"]
    assert CliRunner().invoke(build_app(), arguments).exit_code == 1
    assert [options.vocabulary for options in asked] == [VocabularyOptions((corpus,), 384)]
