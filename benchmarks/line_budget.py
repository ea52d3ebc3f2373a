"""Reports the longest functions and modules and the share of comments; fails where one is over its budget.

python -m benchmarks.line_budget FOLDER...
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

FUNCTION_LINES = 60
MODULE_LINES = 400
SHOWN = 5  # of the longest of each, even when all are within the budget


@dataclass(frozen=True)
class Measured:
    """Lines of one function or module, and where it is."""

    lines: int
    where: str


def functions_of(path: Path, source: str) -> list[Measured]:
    """All functions and methods of a module, decorators not counted."""
    return [
        Measured(node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    ]


def comment_lines(source: str) -> int:
    """Lines that hold a comment, alone or behind code; docstrings are not comments."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def print_longest(title: str, measured: list[Measured], budget: int) -> int:
    """Prints the longest few and everything over the budget; returns how many are over it."""
    longest = sorted(measured, key=lambda one: (-one.lines, one.where))
    over = sum(one.lines > budget for one in longest)
    print(f"{title}: {len(longest)}, longest of {budget} lines allowed")
    for one in longest[: max(SHOWN, over)]:
        print(f"  {one.lines:4}  {one.where}{'   <-- over' if one.lines > budget else ''}")
    return over


def main(folders: list[str]) -> int:
    """Exit status 1 if anything is over its budget."""
    missing = [folder for folder in folders if not Path(folder).is_dir()]
    if missing or not folders:
        print(f"line_budget: expected folders to measure, got {missing or 'none'}", file=sys.stderr)
        return 2
    sources = {path: path.read_text("utf-8") for folder in folders for path in sorted(Path(folder).rglob("*.py"))}
    modules = [Measured(len(source.splitlines()), str(path)) for path, source in sources.items()]
    functions = [one for path, source in sources.items() for one in functions_of(path, source)]
    over = print_longest("functions", functions, FUNCTION_LINES) + print_longest("modules", modules, MODULE_LINES)
    filled = sum(bool(line.strip()) for source in sources.values() for line in source.splitlines())
    comments = sum(comment_lines(source) for source in sources.values())
    print(f"comments: {comments} of {filled} lines that are not blank, {comments / max(filled, 1):.1%}")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
