"""The ledger gives back what it was told, whatever became of its file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError
from dasheng_edge.runtime.jobs.ledger import DropLine, ErrorLine, FileLine, JobLine, Ledger, RowLine, WrittenLine
from dasheng_edge.runtime.output.rows import CaptionRow
from tests.fixtures.full_disk import largest_file

JOB = JobLine(bundle="tiny", bundle_sha256="0" * 64, settings={"prompt": None})


def row(key: str, window: int, *, last: bool = False) -> RowLine:
    return RowLine(key=key, window=window, last=last, row=CaptionRow(audio=f"{key}.wav", text=f"{key} {window}"))


def texts(ledger: Ledger, key: str) -> list[str]:
    return [row.text for row in ledger.rows(key, f"{key}.wav")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledgers") / "ledger.jsonl"


def test_what_was_told_is_known(place: Path) -> None:
    odd = "\udcff\n\u2028.wav"
    file = FileLine(source=odd, key="a", output="o", formats=("txt",), stat=(1, 2, 3, 4))
    written = WrittenLine(output="o", key="a", looks=("txt",))
    with Ledger(place, JOB, anew=True) as ledger:
        assert (ledger.is_empty, ledger.claim(odd)) == (True, None)
        ledger.add(file)
        ledger.add(row("a", 0))
        ledger.add(row("a", 1, last=True), sure=True)
        ledger.add(written)
        failed = ledger.add(ErrorLine(row=CaptionRow.of_error(odd, ValueError("no"))))
    with Ledger(place, JOB) as ledger:
        assert ledger.claim(odd) == ledger.owner("O", "other") == file
        assert [*ledger.claims(but=())] == [ledger.line_at(ledger.place(odd))] == [file]
        assert not [*ledger.claims(but={ledger.place(odd)})]
        assert (ledger.count("a"), ledger.done("a"), ledger.is_done_now("a")) == (2, True, False)
        assert (ledger.written["o"], ledger.written["p"]) == (written.digest, -1)
        assert [one.audio for one in ledger.rows("a", "renamed")] == ["renamed"] * 2
        error = ledger.line_at(failed)
        assert isinstance(error, ErrorLine)
        assert error.row.error == "no"
        ledger.add(DropLine(key="a"))
        assert (ledger.count("a"), ledger.done("a"), ledger.damaged) == (0, False, 0)


def test_a_path_is_of_the_last_that_got_it_and_kept_it(place: Path) -> None:
    first, second = (FileLine(source=source, key="k", output="a") for source in ("1", "2"))
    with Ledger(place, JOB, anew=True) as ledger:
        for line in (first, second):
            ledger.add(line)
            assert ledger.owner("A", "3") == line
        assert [ledger.owns(source, "a") for source in ("1", "2", "3")] == [False, True, False]
        ledger.add(FileLine(source="2", key="l", output="b"))
        assert ledger.owner("a", "3") is None
        assert ledger.owner("a", "1") == first
        ledger.add(first)
        assert ledger.owner("a", "3") == first


LINES = st.one_of(
    st.tuples(st.sampled_from("ab"), st.integers(0, 4)),
    st.sampled_from([
        b"", b"{}", b"null", b"[" * 9, b"\xff\x00", b'{"kind": "row"}', b'{"kind": "surprise"}', b'{"kind": "job"',
        b'{"kind": "row", "key": "a", "window": -1, "last": false, "row": {"audio": "a"}}',
    ]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, max_size=12), st.integers(0, 60), st.booleans())
def test_torn_doubled_and_foreign_lines_cost_what_they_said_alone(
    place: Path, lines: list[tuple[str, int] | bytes], torn: int, again: bool
) -> None:
    with Ledger(place, JOB, anew=True):
        pass
    known: dict[str, set[int]] = {"a": set(), "b": set()}

    def count(key: str) -> int:
        return next(window for window in range(9) if window not in known[key])

    with place.open("ab") as file:
        for line in lines * (2 if again else 1):
            if isinstance(line, bytes):
                file.write(line + b"\n")
                continue
            key, window = line
            file.write(row(key, window).model_dump_json(exclude_unset=False, exclude={"row"}).encode()[:-1])
            file.write(b', "row": ' + row(key, window).row.json_line().encode() + b"}\n")
            known[key].add(window)
        file.write(row("a", count("a")).model_dump_json().encode()[:torn])
    for _ in range(2):  # what was cut off stays away
        with Ledger(place, JOB) as ledger:
            for key, windows in known.items():
                assert texts(ledger, key) == [f"{key} {window}" for window in range(count(key))]
                assert {window for window in range(9) if ledger.has(key, window)} == windows
                beyond = {window for window in range(9) if ledger.beyond(key, window, key)}
                assert beyond == windows - set(range(count(key)))
            ledger.add(row("a", count("a"), last=True))
            assert ledger.done("a")
            ledger.add(DropLine(key="a"))
            known["a"] = set()


def test_what_is_no_ledger_is_left_alone(place: Path) -> None:
    for content in (b"mine\n", b'{"kind": "row"}\n'):
        place.write_bytes(content)
        with pytest.raises(OutputExistsError, match="is no ledger"):
            Ledger(place, JOB)
        assert place.read_bytes() == content
    place.write_bytes(b'{"kind": "jo')  # its writer was killed at once
    Ledger(place, JOB).close()
    assert json.loads(place.read_bytes())["kind"] == "job"


def test_other_questions_are_told(place: Path) -> None:
    Ledger(place, JOB, anew=True).close()
    for other, told in (
        ({"bundle_sha256": "1" * 64, "bundle": "other"}, r"another bundle \(tiny; now other\)"),
        ({"settings": {"prompt": "Why?"}}, 'question .* by default, now "Why[?]"'),
    ):
        with pytest.raises(OutputExistsError, match=told):
            Ledger(place, JOB.model_copy(update=other))
    Ledger(place, JOB).close()


def test_one_process_writes_and_says_who_it_is(place: Path) -> None:
    with Ledger(place, JOB, anew=True), pytest.raises(OutputWriteError, match=rf"process {os.getpid()} on "):
        Ledger(place, JOB)
    Ledger(place, JOB).close()


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_loses_nothing(place: Path) -> None:
    with Ledger(place, JOB, anew=True) as ledger:
        ledger.add(row("a", 0))
        size = place.stat().st_size
        with (
            largest_file(size + 40),
            pytest.raises(OutputWriteError, match="free some space, and give the same command"),
        ):
            ledger.add(row("a", 1))
        assert place.stat().st_size == size
        ledger.add(row("a", 1))
    with Ledger(place, JOB) as ledger:
        assert texts(ledger, "a") == ["a 0", "a 1"]
    with pytest.raises(OutputWriteError, match="cannot write"):
        Ledger(place / "below" / "x.jsonl", JOB)
