"""`dasheng-edge plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.planning.board import Board, board_names, load_board
from dasheng_edge.runtime.planning.recipes import RECIPE_SIZES


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], prog_name="dasheng-edge")


def test_a_bundle_and_its_recipes_on_a_board(tiny_bundle: Path) -> None:
    shown = run("plan", tiny_bundle, "--recipes", "all", "--board", "pi5")
    assert (shown.exit_code, shown.stderr) == (0, "")
    for text in ("Raspberry Pi 5", *RECIPE_SIZES, "guessed, not measured", "is the finest that fits"):
        assert text in shown.stdout
    told = json.loads(run("plan", tiny_bundle, "--recipes", "small, tiny", "--board", "pi5", "--json").stdout)
    assert [one["name"] for one in told["predictions"]] == [str(tiny_bundle), "small", "tiny"]
    for one in told["predictions"]:
        assert one["peak_bytes"] == sum(one["peak_parts"].values())
        assert one["caption_s"] == pytest.approx(
            one["front_end_s"] + one["encoder_s"] + one["prefill_s"] + one["decode_s"]
        )
        assert one["joules"] == pytest.approx(one["caption_s"] * 11.6)
    assert told["take"] in {one["name"] for one in told["predictions"]}


def test_a_board_without_room(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(load_board("pi5").model_copy(update={"memory_mb": 64.0}).model_dump_json())
    shown = run("plan", tiny_bundle, "--board", path)
    assert shown.exit_code == 0
    assert "nothing fits" in shown.stdout


def test_boards_are_listed() -> None:
    told = json.loads(run("plan", "--boards", "--json").stdout)
    assert set(board_names()) <= told.keys()
    assert "pi5: Raspberry Pi 5" in run("plan", "--boards").stdout


def test_calibrate_stores_what_holds_then(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    unknown = run("plan", tiny_bundle)
    assert unknown.exit_code == 1
    assert "--calibrate" in unknown.stderr
    board = load_board("n100").model_copy(update={"figures": ()})
    monkeypatch.setattr("dasheng_edge.runtime.planning.calibrate.calibrate", lambda _: board)
    told = run("plan", "--calibrate", "--json")
    assert Board.model_validate_json(told.stdout) == board
    assert str(tmp_path) in told.stderr
    assert "Intel N100" in run("plan", tiny_bundle).stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name a bundle"),
        (("nowhere", "--board", "pi5"), "cannot open bundle"),
        (("--board", "pi6"), "name a bundle"),
    ],
)
def test_wrong_use(words: tuple[str, ...], why: str) -> None:
    shown = run("plan", *words)
    assert shown.exit_code
    assert why in shown.stderr
