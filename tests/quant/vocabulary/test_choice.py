"""Which tokens are kept: text of kept tokens has the same tokens as before, and all other text is still spelled."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.quant.vocabulary.choice import ROWS, Merges, choose
from dasheng_edge.runtime.errors import QuantizeError
from tests.fixtures.places import REPOSITORY, SHARED

from .tokenizers_cut import Cut, Whole

MICRO = REPOSITORY / "benchmarks" / "micro" / "checkpoint"
QWEN = SHARED / "qwen2_5_omni_tokenizer"
CAPTIONS = (
    "A dog barks while rain falls, and someone says 'hello' 3 times.\n",
    "Ein Hund bellt, während es regnet.\n",
    "雨が降る中、犬が吠えています。\n",
    "Собака лает под дождём!\n\n",
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    [one for line in CAPTIONS for one in (line, line.upper(), *line.split())]
)


@pytest.fixture(
    scope="module",
    params=[
        "micro",
        pytest.param(
            "qwen", marks=[pytest.mark.slow, pytest.mark.skipif(not QWEN.is_dir(), reason="no shared data: tokenizer")]
        ),
    ],
)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    if request.param == "micro":
        return Whole.read(MICRO, folder)
    shutil.copytree(QWEN, folder / "qwen")
    shutil.copyfile(MICRO / "chat_template.jinja", folder / "qwen" / "chat_template.jinja")
    return Whole.read(folder / "qwen", folder)


def chosen(whole: Whole, texts: list[str], size: int | None) -> NDArray[np.bool_]:
    tokens = [token for text in texts for token in whole.llama_cpp.tokenize(text)]
    counts = np.bincount(np.array(tokens, np.int64), minlength=len(whole.unused))
    return choose(whole.merges, whole.always, whole.unused, counts, size)


@pytest.fixture(scope="module", params=["corpus", "number", "both"])
def cut(request: pytest.FixtureRequest, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    texts = [] if request.param == "number" else [*CAPTIONS]
    size = {"corpus": None, "number": 512, "both": 384}[request.param]
    return whole.cut(chosen(whole, texts, size), tmp_path_factory.mktemp("cut"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_text_of_kept_tokens_has_the_same_tokens(data: st.DataObject, whole: Whole, cut: Cut) -> None:
    kept = np.flatnonzero(cut.kept).tolist()
    ids = data.draw(st.lists(st.sampled_from(kept), max_size=12))
    text = data.draw(st.just(whole.hugging_face.decode(ids)) | TEXT)
    before = whole.hugging_face.encode(text).ids
    after = cut.hugging_face.encode(text)
    wanted = cut.mapped(before)
    event(f"kept: {wanted is not None}")
    if wanted is not None:
        assert after.ids == wanted
    # What is written is what was given, in either case.
    normal = whole.hugging_face.normalizer.normalize_str(text)
    assert cut.hugging_face.decode(after.ids, skip_special_tokens=False) == normal
    # And llama.cpp does as the oracle, but for control tokens in the text.
    if not any(text in normal for text in whole.llama_cpp.control_tokens):
        assert [*cut.llama_cpp.tokenize(normal)] == after.ids
        assert cut.llama_cpp.detokenize(after.ids) == normal


def test_the_corpus_has_the_same_tokens(whole: Whole, tmp_path: Path) -> None:
    cut = whole.cut(chosen(whole, [*CAPTIONS], None), tmp_path)
    for text in (*CAPTIONS, "".join(CAPTIONS)):
        assert [*cut.llama_cpp.tokenize(text)] == cut.mapped([*whole.llama_cpp.tokenize(text)]) is not None


def test_each_kept_token_is_written_as_before(whole: Whole, cut: Cut) -> None:
    for token in np.flatnonzero(cut.kept).tolist():
        assert cut.llama_cpp.piece(int(cut.ids[token])) == whole.llama_cpp.piece(token)
    assert cut.llama_cpp.control_tokens.keys() == whole.llama_cpp.control_tokens.keys()
    assert cut.llama_cpp.special_texts == whole.llama_cpp.special_texts
    ends = [model.is_end for model in (whole.llama_cpp, cut.llama_cpp)]
    assert [ends[1](int(cut.ids[token])) for token in whole.always] == [ends[0](token) for token in whole.always]


def test_the_most_frequent_are_kept_and_then_those_that_are_merged_first(whole: Whole) -> None:
    kept = chosen(whole, [*CAPTIONS], 448)
    assert kept.sum() == 448
    # A larger choice by the same counts holds the smaller one, as long as no token was too large for what was left.
    by_rank = np.argsort(whole.merges.ranks, kind="stable")
    first = [token for token in by_rank.tolist() if whole.merges.ranks[token] < 50]
    assert chosen(whole, [], 512)[first].all()


def toy() -> Merges:
    """a b c ab abc x: ab of a and b, abc of ab and c; x is of no merge."""
    return Merges.read([b"a", b"b", b"c", b"ab", b"abc", b"xy"], [b"a b", b"ab c", b"q r"])


def counts(**of: int) -> NDArray[np.int64]:
    return np.array([of.get(name, 0) for name in ("a", "b", "c", "ab", "abc", "xy")])


def test_a_token_brings_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasheng_edge.quant.vocabulary.choice.ROWS", 1)
    nothing = np.zeros(6, np.bool_)
    assert choose(toy(), [0], nothing, counts(abc=1), None).tolist() == [True] * 5 + [False]
    # abc and its parts do not fit into three, so what comes next in the order does.
    assert choose(toy(), [0], nothing, counts(abc=9, b=1), 3).tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "--vocab 0 is too few"),
        (1, "need 2; give at least so many"),
        (6, "leaves nothing to drop: the vocabulary has 6"),
    ],
)
def test_numbers_that_cannot_be(size: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasheng_edge.quant.vocabulary.choice.ROWS", 1)
    with pytest.raises(QuantizeError, match=said):
        choose(toy(), [0, 1], np.zeros(6, np.bool_), counts(), size)


def test_a_corpus_that_needs_all_is_refused() -> None:
    with pytest.raises(QuantizeError, match="the corpus needs 1 tokens, and that leaves nothing to drop"):
        choose(toy(), [0], np.zeros(6, np.bool_), counts(), None)
    assert ROWS == 64
