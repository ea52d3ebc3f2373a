"""The templates of this folder: what they may call, and how text gets into each kind of document."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dasheng_edge.quant.compare import pareto, recommend
from dasheng_edge.runtime.machine import load

from . import answers, audio, plots, quantities, tables, wording
from .wording import visible

_FOLDER = Path(__file__).parent
_MODULES = {
    "pareto": pareto, "rule": recommend, "answers": answers, "audio": audio, "plots": plots, "quantities": quantities,
    "tables": tables, "wording": wording, "load": load,
}  # fmt: skip
# What means something to CommonMark or GitHub: a backslash before punctuation; code; a cell's end; marks of emphasis,
# strike-through and formulas that touch a word, but not an underscore within one; the end of a link's text; the
# beginning of a tag and of an entity; a colon of a URL or an emoji, and the point of www. What means something at the
# start of a line only never stands there.
_SPECIAL = re.compile(
    r"\\(?=[!-/:-@\[-`{-~]|\Z)|[`|]|(?<=\S)[*~$]|[*~$](?=\S)|(?<![^\W_])_(?=\S)|(?<=\S)_(?![^\W_])|\](?=[(\[:])"
    r"|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|:(?=//|[a-z_]+:)|(?<=www)\."
)


def html(text: str) -> str:
    """Text of whatever origin, for between tags and within quotes."""
    return escape(visible(text))


def markdown(text: str) -> str:
    """Text in one line that Markdown shows as it is."""
    line = " ".join(visible(text).split())
    return _SPECIAL.sub(lambda mark: {"<": "&lt;", "&": "&amp;"}.get(mark[0], f"\\{mark[0]}"), line)


def environment(escaped: Callable[[str], str] | None = None) -> Environment:
    """Templates that put text into a document through `escaped`, unless it is markup already; None: plain text."""

    def finalize(value: object) -> Markup:
        assert escaped is not None
        return value if isinstance(value, Markup) else Markup(escaped(str(value)))  # noqa: S704

    made = Environment(
        autoescape=escaped is not None,  # noqa: S701  # plain text is for report.json
        finalize=finalize if escaped else None,
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names: dict[str, Any] = made.globals
    names.update(_MODULES, style=Markup((_FOLDER / "report.css").read_text("utf-8")))  # noqa: S704
    return made
