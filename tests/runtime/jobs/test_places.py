"""Outputs of two inputs are never in one place, and stay where they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.jobs.inputs import Input, Inputs
from dasheng_edge.runtime.jobs.ledger import FileLine, folded
from dasheng_edge.runtime.jobs.places import Places

ROOT = Path("out")
NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0*?["), min_size=1, max_size=9).map(lambda name: name + ".wav"),
    min_size=1, max_size=8, unique=True,
)  # fmt: skip


def taken(places: Places, inputs: Sequence[Input]) -> list[str]:
    return [places.take(one, one.audio)[0] for one in inputs]


def owner(*lines: FileLine) -> Callable[[str, str], FileLine | None]:
    known = {folded(line.output): line for line in lines}
    return lambda output, _: known.get(folded(output))


def test_one_name_for_two_inputs() -> None:
    inputs = [*Inputs(["x/a.wav", "x/A.mp3", "y/a.wav", "z/a.wav", "\u00e9.wav", "e\u0301.wav", "x/a.wav"])]
    assert taken(Places(ROOT), inputs) == ["a", "A.mp3", "a.wav", "a.wav (2)", "\u00e9", "e\u0301.wav", "a"]


@given(NAMES)
def test_places_are_apart_inside_and_the_same_again(names: list[str]) -> None:
    inputs = [*Inputs(names)]
    first = taken(Places(ROOT), inputs)
    assert len({name.casefold() for name in first}) == len(inputs)
    assert all(".." not in Path(name).parts and not Path(name).is_absolute() for name in first)
    assert all(len(os.fsencode(Path(name).name)) <= 210 for name in first)
    lines = [FileLine(source=one.source, key=one.audio, output=at) for one, at in zip(inputs, first, strict=True)]
    known = owner(*lines)
    assert taken(Places(ROOT, known), inputs) == first
    for one, name in zip(inputs, first, strict=True):  # whichever comes first, or alone
        assert Places(ROOT, known).take(one, one.audio)[0] == name


def test_claims_go_by_source_or_content() -> None:
    known = owner(FileLine(source="a.wav", key="old", output="a", formats=("txt",)))
    (moved,) = Inputs(["/elsewhere/a.wav"])
    (same,) = Inputs(["a.wav"])
    assert Places(ROOT, known).take(same, "changed") == ("a", ("txt",))
    assert Places(ROOT, known).take(moved, "old") == ("a", ("txt",))
    assert Places(ROOT, known).take(moved, "new") == ("a.wav", ())


def test_beside_inputs() -> None:
    places = Places(None)
    (one,) = Inputs(["films/long name.mkv"])
    output, _ = places.take(one, "key")
    assert places.path(output, ".srt") == Path("films/long name.srt")


def test_long_names_leave_room_for_endings() -> None:
    for name in ("x" * 255, "é" * 127, "日" * 85):
        one = Input(name, name, name)
        assert len(os.fsencode(Places(ROOT).take(one, "key")[0])) <= 200
    assert len({Places(ROOT).take(Input(n, n, n), "")[0] for n in ("x" * 250, "x" * 251)}) == 2
