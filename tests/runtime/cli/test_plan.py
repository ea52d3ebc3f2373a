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


def test_recipes_are_words_too_and_a_bundle_by_default(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = json.loads(run("plan", tiny_bundle, "small", "tiny", "--board", "pi5", "--json").stdout)
    monkeypatch.setenv("DASHENG_EDGE_BUNDLE", str(tiny_bundle))
    assert json.loads(run("plan", "small", "tiny", "--board", "pi5", "--json").stdout) == named
    assert [one["name"] for one in named["predictions"]] == [str(tiny_bundle), "small", "tiny"]


def test_all_recipes_go_with_some_and_are_a_word_too(tiny_bundle: Path) -> None:
    every = json.loads(run("plan", tiny_bundle, "--recipes", "all", "--board", "pi5", "--json").stdout)
    for words in (["all"], ["small", "--recipes", "all"], ["--recipes", "small,all,tiny"]):
        assert json.loads(run("plan", tiny_bundle, *words, "--board", "pi5", "--json").stdout) == every


@pytest.mark.parametrize("name", [*RECIPE_SIZES, "all"])
@pytest.mark.parametrize("before", [(), ("--recipes",), ("--recipes", "all,")])
def test_a_recipe_that_is_misspelt_is_told(name: str, before: tuple[str, ...], tiny_bundle: Path) -> None:
    wrong = f"{name}l"
    words = (wrong,) if not before else (before[0], "".join((*before[1:], wrong)))
    refused = run("plan", tiny_bundle, *words, "--board", "pi5")
    assert refused.exit_code == 1
    assert f"did you mean {name}?" in refused.stderr


def test_low_memory_is_told_beside(tiny_bundle: Path) -> None:
    (one,) = json.loads(run("plan", tiny_bundle, "--board", "pi5", "--json").stdout)["predictions"]
    (low,) = json.loads(run("plan", tiny_bundle, "--board", "pi5", "--low-memory", "--json").stdout)["predictions"]
    assert (one["low_memory_peak_bytes"], one["low_memory_fits"]) == (low["peak_bytes"], low["fits"])
    assert one["low_memory_caption_s"] == low["caption_s"] > one["caption_s"]
    assert low["low_memory_peak_bytes"] is None
    shown = run("plan", tiny_bundle, "--board", "pi5", "--threads", "1").stdout
    assert "rates are those of 4 threads" in shown
    assert max(len(line) for line in shown.splitlines() if line[0] in "┏┃┡│└") <= 80


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
        ((), "no bundle is named"),
        (("nowhere", "--board", "pi5"), "cannot open bundle"),
        (("small", "--board", "pi5"), "no bundle is named"),
        (("BUNDLE", "--board", "pi6"), "did you mean pi5"),
        (("BUNDLE", "--board", "mine.json"), "does not exist"),
        (("BUNDLE", "--board", "."), "is a folder"),
        (("BUNDLE", "--recipes", "smal", "--board", "pi5"), "did you mean small"),
    ],
)
def test_wrong_use(words: tuple[str, ...], why: str, tiny_bundle: Path) -> None:
    words = tuple(str(tiny_bundle) if word == "BUNDLE" else word for word in words)
    shown = run("plan", *words)
    assert shown.exit_code
    assert why in shown.stderr
