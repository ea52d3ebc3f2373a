"""The tool that runs the README's examples, and what the README promises about itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import docs

REPOSITORY = Path(__file__).resolve().parents[2]


def example(shown: str, *, command: str = "python", python: str = "print('a 1.25 ms')") -> str:
    return f"Before.\n\n<!-- run: {command} -->\n```python\n{python}\n```\n\n```text\n{shown}```\n\nAfter.\n"


def test_an_example_that_still_holds_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(example("a 9.50 ms\n"), "utf-8")

    assert docs.main([str(file)]) == 0
    assert file.read_text("utf-8") == example("a 9.50 ms\n")
    assert "1 examples, 0 drifted, 0 failed" in capsys.readouterr().out


def test_a_drifted_example_fails_and_is_replaced_only_on_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "page.md"
    file.write_text(example("b 9.50 ms\n"), "utf-8")

    assert docs.main([str(file)]) == 1
    assert "-b # ms\n+a # ms" in capsys.readouterr().out
    assert file.read_text("utf-8") == example("b 9.50 ms\n")

    assert docs.main([str(file), "--write"]) == 0
    assert file.read_text("utf-8") == example("a 1.25 ms\n")
    assert list(tmp_path.iterdir()) == [file]


def test_an_example_that_fails_is_reported_and_never_pasted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    before = example("x\n", python="import sys\nsys.exit('no such bundle')")
    file.write_text(before, "utf-8")

    assert docs.main([str(file), "--write"]) == 1
    assert "exit status 1\nno such bundle" in capsys.readouterr().out
    assert file.read_text("utf-8") == before


def test_an_example_whose_files_are_absent_is_left_alone() -> None:
    text = "<!-- run if no/such/folder: python -c 1/0 -->\n```text\nx\n```\n"
    assert docs.refresh(text) == (text, [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encode   12.3 ms", "encode  107.25 ms"),
        ("│ seam ─── 1.2e-06 │", "│ seam ─ 3.9e-07 │"),
        ("took 4 s", "took 12 s"),
        ("7,340,032 bytes", "7,340,988 bytes"),
        ("sha256 " + "ab" * 32, "sha256 " + "01" * 32),
    ],
)
def test_numbers_of_the_machine_are_not_compared(one: str, other: str) -> None:
    assert docs.comparable(one) == docs.comparable(other)


@pytest.mark.parametrize(("one", "other"), [("a dog barks", "a cat"), ("12 clips", "13 clips"), ("4 0 7", "4 0 6")])
def test_words_and_counts_are_compared(one: str, other: str) -> None:
    assert docs.comparable(one) != docs.comparable(other)


def test_every_output_block_of_the_readme_belongs_to_an_example() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert len(re.findall(r"^```text$", readme, re.MULTILINE)) == len(docs.EXAMPLE.findall(readme))


@pytest.mark.parametrize("folder", ["export", "quant", "runtime"])
def test_contributing_names_each_room(folder: str) -> None:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    rooms = {path.parent.name for path in (REPOSITORY / folder).glob("*/__init__.py")}
    assert {room for room in rooms if f"{room}/" in page} == rooms
