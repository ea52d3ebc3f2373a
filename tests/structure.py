"""The plan of the house as it is built: modules of each folder, who imports whom, circles, and what is too long.

    python -m tests.structure

Imports are read from the sources, those inside functions and those for types only included: a circle that is hidden
in a function is a circle. Nothing is imported and nothing need be installed. The exit status is 1 where a limit or a
rule is broken; `test_structure.py` asks for the same.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARY = ("export", "quant", "runtime")
FOLDERS = (*LIBRARY, "benchmarks", "boards", "tests")
MAX_FUNCTION_LINES, MAX_MODULE_LINES = 60, 400
MAX_MODULES = 14  # of a folder of the library; more is a corridor
SHOWN = 5  # of the longest
ROOT = "runtime/package"  # the folder that becomes `dasheng_edge` itself

Arrow = tuple[str, str]  # importer, imported
Graph = Mapping[str, Collection[str]]

# Imports that close a circle and are still to be cut. The list only shrinks: an entry that closes none is an error.
KNOWN_CIRCLES: frozenset[Arrow] = frozenset()


@dataclass(frozen=True)
class Module:
    """A file and what stands in it."""

    path: Path  # in the repository
    name: str  # as it is imported
    source: str

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def lines(self) -> int:
        """All of them."""
        return self.source.count("\n")

    @cached_property
    def tree(self) -> ast.Module:
        """Parsed once."""
        return ast.parse(self.source)

    def functions(self) -> Iterator[tuple[int, str]]:
        """Lines of each function or method and where it begins, decorators not counted."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                yield node.end_lineno - node.lineno + 1, f"{self.path}:{node.lineno} {node.name}"

    def comments(self) -> int:
        """Lines that hold a comment, alone or behind code; docstrings are not comments."""
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        return sum(token.type == tokenize.COMMENT for token in tokens)

    def imports(self, known: Collection[str]) -> set[str]:
        """Those of the known modules that it imports."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(self.package.split(".")[: -(node.level - 1) or None]) if node.level else ""
                base = ".".join(filter(None, (base, node.module)))
                members = {f"{base}.{alias.name}" for alias in node.names}
                found |= members & set(known) or {base}
        return {name for name in found if name in known and name != self.name}


@cache
def modules(root: Path = REPOSITORY) -> tuple[Module, ...]:
    """All modules of the repository."""
    return tuple(
        Module(path.relative_to(root), _name(path.relative_to(root)), path.read_text("utf-8"))
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    )


def _name(path: Path) -> str:
    folder = path.parent.as_posix()
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    if folder == ROOT:
        parts = parts[2:]
    return ".".join(["dasheng_edge", *parts] if path.parts[0] in LIBRARY else parts)


def module_graph(every: Iterable[Module]) -> dict[str, set[str]]:
    """What each module imports."""
    found = {module.name: module for module in every}
    return {name: module.imports(found) for name, module in found.items()}


def room(name: str) -> str:
    """The sub-package of a module; a module that stands in none is a room of its own."""
    depth = 3 if name.startswith("dasheng_edge.") else 2
    return ".".join(name.split(".")[:depth])


def room_graph(graph: Graph) -> dict[str, set[str]]:
    """What each room imports."""
    found: dict[str, set[str]] = {}
    for name, imported in graph.items():
        found.setdefault(room(name), set()).update(room(one) for one in imported)
    return {name: imported - {name} for name, imported in found.items()}


def without(graph: Graph, arrows: Collection[Arrow]) -> dict[str, set[str]]:
    """A graph without some of its arrows."""
    return {name: {one for one in imported if (name, one) not in arrows} for name, imported in graph.items()}


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of nodes each of which reaches all others of its group."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {tuple(sorted(one for one in reached[name] if name in reached[one])) for name in graph}
    return sorted(group for group in groups if group)


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += graph[name]
    return found


def broken(every: Iterable[Module], known: Collection[Arrow] = KNOWN_CIRCLES) -> list[str]:
    """The limits and rules that do not hold, a sentence each."""
    every = tuple(every)
    graph = module_graph(every)
    cut = without(graph, known)
    found = [
        f"{' and '.join(group)} import each other: move what both need into one of them or below both"
        for group in [*circles(cut), *circles(room_graph(cut))]
    ]
    found += [
        f"KNOWN_CIRCLES lists {importer} -> {imported}, which closes no circle any more: remove the entry"
        for importer, imported in known
        if not _closes(importer, imported, graph)
    ]
    longest = [(MAX_MODULE_LINES, module.lines, str(module.path)) for module in every]
    longest += [(MAX_FUNCTION_LINES, *function) for module in every for function in module.functions()]
    found += [f"{where} has {lines} lines, {limit} are allowed" for limit, lines, where in longest if lines > limit]
    return found + [
        f"{folder} has {count} modules, {MAX_MODULES} are allowed: give those of one noun a folder"
        for folder, count in folders(every).items()
        if count > MAX_MODULES and folder.startswith(LIBRARY)
    ]


def _closes(importer: str, imported: str, graph: Graph) -> bool:
    if imported not in graph.get(importer, ()):
        return False
    return importer in _reached(graph, imported) or room(importer) in _reached(room_graph(graph), room(imported))


def folders(every: Iterable[Module]) -> dict[str, int]:
    """How many modules each folder has, those of its folders not counted."""
    return dict(sorted(Counter(one.path.parent.as_posix() for one in every if one.path.name != "__init__.py").items()))


def table(every: Iterable[Module]) -> Iterator[str]:
    """The lines of the report."""
    every = tuple(every)
    lines = Counter(dict.fromkeys(folders(every), 0))
    for module in every:
        lines[module.path.parent.as_posix()] += module.lines
    yield f"{'folder':32} {'modules':>8} {'lines':>8}"
    for folder, count in folders(every).items():
        yield f"{folder:32} {count:8} {lines[folder]:8}"
    graph = module_graph(every)
    for folder in (*LIBRARY, "benchmarks"):
        prefix = f"dasheng_edge.{folder}" if folder in LIBRARY else folder
        inside = room_graph({name: to for name, to in graph.items() if f"{name}.".startswith(f"{prefix}.")})
        arrows = sorted((name, one) for name, to in inside.items() for one in to)
        yield f"arrows from the rooms of {folder}: {len(arrows)}"
    groups = [*circles(graph), *circles(room_graph(graph))]
    yield f"circles: {len(groups)}"
    yield from (f"  {' <-> '.join(group)}" for group in groups)
    library = [module for module in every if module.path.parts[0] in LIBRARY]
    yield f"lines of library code: {sum(module.lines for module in library)}"
    filled = sum(bool(line.strip()) for module in every for line in module.source.splitlines())
    comments = sum(module.comments() for module in every)
    yield f"comments: {comments} of {filled} lines that are not blank, {comments / max(filled, 1):.1%}"
    yield f"longest modules, {MAX_MODULE_LINES} lines are allowed"
    yield from _longest((module.lines, str(module.path)) for module in every)
    yield f"longest functions, {MAX_FUNCTION_LINES} lines are allowed"
    yield from _longest(function for module in every for function in module.functions())


def _longest(found: Iterable[tuple[int, str]]) -> Iterator[str]:
    yield from (f"  {lines:4}  {where}" for lines, where in sorted(found, key=lambda one: (-one[0], one[1]))[:SHOWN])


def main() -> int:
    """Exit status 1 if a limit or a rule is broken."""
    print(*table(modules()), sep="\n")  # noqa: T201  # a report
    wrong = broken(modules())
    for one in wrong:
        print(f"structure: {one}", file=sys.stderr)  # noqa: T201
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
