"""The tools that run the examples of pages and write some of them, and what the pages promise about themselves."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from benchmarks import command_reference, docs
from dasheng_edge.runtime.cli.app import build_app
from tests.fixtures.places import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
COMMANDS = typer.main.get_group(build_app())


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


def test_code_of_a_shell_is_run_as_it_is_shown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```sh\n# twice\necho a\necho 'b c'\n```\n\n```text\n```\n", "utf-8")

    assert docs.main([str(page), "--write"]) == 0
    assert page.read_text("utf-8").endswith("```text\na\nb c\n```\n")


def test_a_shell_stops_at_the_first_command_that_fails() -> None:
    text = "<!-- run -->\n```sh\nfalse\necho a\n```\n\n```text\na\n```\n"
    assert [drift.failed for drift in docs.refresh(text)[1]] == [True]


def test_markdown_that_a_program_writes_is_compared_as_it_is(tmp_path: Path) -> None:
    begin, end = "<!-- run as Markdown: python -c \"print('- 0.5')\" -->\n", "<!-- end -->\n\nAfter.\n"
    page = tmp_path / "page.md"
    page.write_text(f"{begin}- 0.7\n{end}", "utf-8")

    assert docs.main([str(page)]) == 1
    assert docs.main([str(page), "--write"]) == 0
    assert page.read_text("utf-8") == f"{begin}- 0.5\n{end}"


def test_all_files_are_checked_although_the_first_has_drifted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pages = [tmp_path / name for name in ("a.md", "b.md")]
    for page in pages:
        page.write_text(example("b\n"), "utf-8")
    assert docs.main([str(page) for page in pages]) == 1
    assert capsys.readouterr().out.count("1 drifted") == 2


def test_an_example_with_nothing_to_run_is_an_error() -> None:
    (drift,) = docs.refresh("<!-- run -->\n```text\n```\n")[1]
    assert (drift.failed, "expected code" in drift.difference) == (True, True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_output_block_of_a_page_belongs_to_an_example(page: Path) -> None:
    text = page.read_text("utf-8")
    examples = [match for match in docs.EXAMPLE.finditer(text) if not match["markdown"]]
    served = text.count("<!-- served -->")  # which tests/docs runs against a server
    assert len(re.findall(r"^```(?:text|json)$", text, re.MULTILINE)) == len(examples) + served
    assert text.count("<!-- run") == len(docs.EXAMPLE.findall(text))


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a shell script; those of a pipe or a list come one by one."""
    for line in re.sub(r" 2> ?\S+", "", script.replace("\\\n", " ")).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        words.whitespace_split = True
        for separator, command in itertools.groupby(words, lambda word: word in {"|", "&&", "||", ";"}):
            if not separator:
                yield list(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_takes_every_command_of_a_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHENG_EDGE_BUNDLE", str(REPOSITORY / "tests/fixtures/bundle"))  # as the pages say first
    context = COMMANDS.make_context("dasheng-edge", [], resilient_parsing=True)
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        assert not re.search(r"\S +#", block), "comments stand above commands"
        if "curl " in block:  # whose JSON goes over lines
            continue
        for words in simple_commands(block):
            if words[0] == "dasheng-edge" and "--list-devices" not in words:  # which lists them at once
                command = COMMANDS.get_command(context, words[1])
                assert command is not None, words
                command.make_context(words[1], words[2:], parent=context)  # raises where an option is not known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", prose)
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_the_reference_names_every_option_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    command_reference.main()
    sections = capsys.readouterr().out.split("\n## ")
    assert len(sections) == len(COMMANDS.commands)
    for text, (name, command) in zip(sections, COMMANDS.commands.items(), strict=True):
        assert text.removeprefix("## ").startswith(f"{name}\n")
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in options if option not in text] == []


@pytest.mark.parametrize("folder", ["export", "quant", "runtime"])
def test_contributing_names_each_room(folder: str) -> None:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    rooms = {path.parent.name for path in (REPOSITORY / folder).glob("*/__init__.py")}
    assert {room for room in rooms if f"{room}/" in page} == rooms
