"""The house has the plan that it is to have, and the check of it sees what would break it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import structure
from tests.structure import MAX_FUNCTION_LINES, MAX_MODULES, Module, broken, circles, folders, module_graph, modules

LONG_FUNCTION = "def long() -> None:\n" + "    print()\n" * MAX_FUNCTION_LINES


def module(path: str, source: str = "") -> Module:
    return Module(Path(path), structure._name(Path(path)), source)


def test_the_house_holds() -> None:
    assert broken(modules()) == []


def test_all_folders_are_looked_at() -> None:
    names = {one.name for one in modules()}
    assert {"dasheng_edge", "dasheng_edge.runtime.captioner", "benchmarks.render", "tests.structure"} <= names
    graph = module_graph(modules())
    assert "dasheng_edge.runtime.captioner" in graph["benchmarks.demo"] | graph["dasheng_edge.runtime"]


@pytest.mark.parametrize(
    "source",
    [
        "from .b import x",
        "from . import b",
        "from dasheng_edge.runtime.text import b",
        "from dasheng_edge.runtime.text.b import x",
        "import dasheng_edge.runtime.text.b as c",
        "from ..text.b import x",
        "def f():\n    from .b import x",
        "if TYPE_CHECKING:\n    from .b import x",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    every = [module("runtime/text/a.py", source), module("runtime/text/b.py"), module("runtime/text/__init__.py")]
    assert module_graph(every)["dasheng_edge.runtime.text.a"] == {"dasheng_edge.runtime.text.b"}


def test_a_package_imports_relative_to_itself() -> None:
    every = [module("quant/__init__.py", "from .cli import main"), module("quant/cli.py", "import numpy, os.path")]
    graph = module_graph(every)
    assert graph == {"dasheng_edge.quant": {"dasheng_edge.quant.cli"}, "dasheng_edge.quant.cli": set()}


def test_circles_are_groups_that_reach_each_other() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [("b", "c"), ("d", "e")]


def test_a_circle_of_modules_is_an_error() -> None:
    every = [module("quant/a.py", "from .b import x"), module("quant/b.py", "from .a import y")]
    (first, second) = broken(every, known=())  # of modules, and of rooms: both stand in none
    assert first == second
    assert "dasheng_edge.quant.a and dasheng_edge.quant.b import each other" in first
    assert broken(every, known={("dasheng_edge.quant.b", "dasheng_edge.quant.a")}) == []


def test_a_circle_of_rooms_is_an_error() -> None:
    every = [
        module("runtime/audio/a.py", "import dasheng_edge.runtime.text.a"), module("runtime/audio/b.py"),
        module("runtime/text/a.py"), module("runtime/text/b.py", "import dasheng_edge.runtime.audio.b"),
    ]  # fmt: skip
    (why,) = broken(every, known=())
    assert "dasheng_edge.runtime.audio and dasheng_edge.runtime.text import each other" in why


def test_a_known_circle_that_is_none_is_an_error() -> None:
    one_way = [module("quant/a.py", "from .b import x"), module("quant/b.py")]
    for known in (("dasheng_edge.quant.a", "dasheng_edge.quant.b"), ("dasheng_edge.quant.gone", "numpy")):
        (why,) = broken(one_way, known={known})
        assert f"{known[0]} -> {known[1]}, which closes no circle any more" in why


def test_what_is_too_long_is_an_error() -> None:
    (why,) = broken([module("quant/a.py", LONG_FUNCTION)], known=())
    assert why == f"quant/a.py:1 long has {MAX_FUNCTION_LINES + 1} lines, {MAX_FUNCTION_LINES} are allowed"
    assert "quant/a.py has 401 lines" in broken([module("quant/a.py", "\n" * 401)], known=())[0]


def test_a_corridor_is_an_error() -> None:
    many = [module(f"quant/m{index}.py") for index in range(MAX_MODULES + 1)]
    assert folders([*many, module("quant/__init__.py")]) == {"quant": MAX_MODULES + 1}
    assert "quant has 15 modules, 14 are allowed" in broken(many, known=())[0]
    assert broken([module(f"benchmarks/m{index}.py") for index in range(20)], known=()) == []


def test_the_report_says_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    every = (
        module("quant/a.py", f"from .b import x  # why\n{LONG_FUNCTION}"),
        module("quant/b.py", "from .a import y\n"),
    )
    monkeypatch.setattr(structure, "modules", lambda: every)
    assert structure.main() == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].split() == ["quant", "2", "63"]
    assert "arrows from the rooms of quant: 2" in lines
    assert "circles: 2" in lines
    assert "lines of library code: 63" in lines
    assert "comments: 1 of 63 lines that are not blank, 1.6%" in lines
    assert "    61  quant/a.py:2 long" in lines
    assert "structure: quant/a.py:2 long has 61 lines" in printed.err
