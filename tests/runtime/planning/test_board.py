"""Boards: the files that come with the package, those of users, and what was measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dasheng_edge.runtime.errors import BoardError
from dasheng_edge.runtime.gguf.check import BLOCKS
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.planning.board import (
    STANDS_FOR,
    board_names,
    is_calibrated,
    load_board,
    store_calibration,
)


@pytest.mark.parametrize("name", board_names())
def test_a_board_says_where_its_figures_come_from(name: str) -> None:
    board = load_board(name)
    assert board.figures
    for figure in board.figures:
        assert figure.guess or "https://" in figure.source
    assert set(board.rates[-1].types) == set(STANDS_FOR.values())


def test_every_type_has_a_rate() -> None:
    assert STANDS_FOR.keys() == BLOCKS.keys()


def test_rates_of_other_numbers_of_threads_lie_between(tmp_path: Path) -> None:
    fields = json.loads(load_board("pi5").model_dump_json())
    (four,) = fields["rates"]
    one = json.loads(json.dumps(four)) | {"threads": 1, "int8_gop_per_s": 30.0}
    one["types"]["Q4_K"]["decode_gb_per_s"] = 4.4
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fields | {"rates": [one, four]}))
    board = load_board(str(path))
    assert board.rated(1).int8_gop_per_s == 30
    assert board.rated(2).int8_gop_per_s == pytest.approx(30 + (150 - 30) / 3)
    assert board.rated(3).types["Q4_K"].decode_gb_per_s == pytest.approx(4.4 + 2 * 6 / 3)
    assert board.rated(4) == board.rated(None) == board.rated(64)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"), ("[]", "got a list, expected an object"), ("[" * 50_000, "not a board"),
        ("null", "got null, expected an object"), ("", "no JSON"), (b"\xff\xfe", "no JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "decode"), ('{"name": "x"}', "memory_mb is missing"),
        (b" " * (1 << 20) + b"{}", "more than"),
    ],
)  # fmt: skip
def test_what_is_no_board_is_said(content: str | bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BoardError, match=why):
        load_board(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory_mb", 0), ("memory_mb", "NaN"), ("rates", []), ("start_s", -1), ("surprise", 1), ("disk_mb_per_s", 1e12),
     ("name", None), ("rates", {}), ("rates", 3), ("rates", [[]]), ("memory_mb", 1e-300), ("watts", "many")],
)  # fmt: skip
def test_a_figure_that_cannot_be_is_refused(field: str, value: object, tmp_path: Path) -> None:
    fields = json.loads(load_board("n100").model_dump_json()) | {field: value}
    path = tmp_path / "board.json"
    path.write_text(json.dumps(fields).replace('"NaN"', "NaN"))
    with pytest.raises(BoardError, match=field) as refused:
        load_board(str(path))
    assert not re.search("dictionary|instance|[Tt]uple|Input|None", str(refused.value)), "that is Python"


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_what_the_shell_of_windows_redirects_is_read(coding: str, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(load_board("pi5").model_dump_json(), coding)
    assert load_board(str(path)) == load_board("pi5")


def test_the_same_number_of_threads_twice_is_refused(tmp_path: Path) -> None:
    fields = json.loads(load_board("n100").model_dump_json())
    path = tmp_path / "board.json"
    path.write_text(json.dumps(fields | {"rates": 2 * fields["rates"]}))
    with pytest.raises(BoardError, match="different numbers of threads"):
        load_board(str(path))


def test_unknown_boards_are_told_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="pi5"):
        load_board("pi6")
    with pytest.raises(BoardError, match="is a folder"):
        load_board(str(tmp_path))


def test_this_machine_is_known_once_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(BoardError, match="--calibrate"):
        load_board("here")
    assert not is_calibrated()
    board = load_board("rk3588")
    for _ in range(2):
        assert store_calibration(board).parent == tmp_path
    assert is_calibrated()
    assert load_board("here") == board
    for content in ("", "{", board.model_dump_json().replace("rates", "speeds")):
        (tmp_path / "machine.json").write_text(content)
        with pytest.raises(BoardError, match=r"cannot be read.*--calibrate"):
            load_board("here")
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    with pytest.raises(BoardError, match=FOLDER_VARIABLE):
        store_calibration(board)
