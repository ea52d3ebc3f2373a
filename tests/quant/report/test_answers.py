"""Answers side by side: who says the same, and which words differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.quant.report.answers import difference, side_by_side
from tests.fixtures import fake_report

TEXTS = st.text("ab c.,é雨降\n", max_size=24)


@given(old=TEXTS, new=TEXTS)
def test_a_difference_makes_up_both_texts(old: str, new: str) -> None:
    pieces = difference(old, new)
    assert "".join(piece.text for piece in pieces if piece.kind != "removed") == new
    kept = "".join(piece.text for piece in pieces if piece.kind != "added")
    assert "".join(kept.split()) == "".join(old.split())
    assert all(piece.space + piece.words == piece.text for piece in pieces)


def test_words_and_ideographs_are_compared_one_by_one() -> None:
    assert [(piece.kind, piece.text) for piece in difference("A dog barks.", "A cat barks.")] == [
        ("same", "A"), ("removed", " dog"), ("added", " cat"), ("same", " barks."),
    ]  # fmt: skip
    assert [piece.text for piece in difference("雨が降る", "雪が降る")] == ["雨", "雪", "が降る"]


def test_every_answer_is_there_once_and_clips_that_differ_come_first() -> None:
    report = fake_report.report()
    rows = side_by_side(report)
    assert {row.clip.clip for row in rows} == {clip.clip for clip in report.clips}
    for row in rows:
        groups = [row.agreeing, *(answer.candidates for answer in row.others)]
        assert sorted(name for group in groups for _, name in group) == sorted(fake_report.NAMES)
        assert row.differing == len(fake_report.NAMES) - len(row.agreeing)
    counts = [row.differing for row in rows]
    assert counts == sorted(counts, reverse=True)
