"""What a chat template pays for: operators, calls, filters and tests, in proportion to what they look at and make.

So a rendering takes time and memory in proportion to `MAX_COST`, whatever the template does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, LoopContext
from jinja2.tests import TESTS
from jinja2.utils import Namespace

MAX_COST = 1_000_000  # characters, items and steps: half a second at most. Published templates spend 10,000.
ITEM_COST = 4  # of looking at a value, in characters
MAX_PADDING = 64  # characters that a filter or method may put in, or strip, at a time
_FORMAT = re.compile(r"(?:[^%]|%(?:\(\w+\))?[sdif%])*")  # of `%`, without widths
FILTERS: Mapping[str, Callable[..., Any]] = JINJA_FILTERS  # each with a signature of its own
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape", "format",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "trim", "truncate",
    "unique", "upper", "wordcount",
)  # fmt: skip
_TEXT_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
})  # fmt: skip
_METHODS: Mapping[type, frozenset[str]] = {
    str: _TEXT_METHODS, dict: frozenset({"get", "items", "keys", "values"}), list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}), LoopContext: frozenset({"changed", "cycle"}),
}  # fmt: skip


class TemplateBoundError(SecurityError):
    """A template does something that cannot be bounded, or too much of what can."""


class Meter:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._left = MAX_COST

    def spend(self, cost: int) -> None:
        """Pay for something before it is done; nothing is for free, and nothing is paid back."""
        self._left -= max(cost, 1)
        if self._left < 0:
            raise TemplateBoundError(f"it does too much: more than {MAX_COST} steps, items and characters")

    def weigh(self, *values: object) -> None:
        """Pay for looking at values whole, with all that is in them."""
        waiting: list[object] = [*values]
        while waiting:
            value = waiting.pop()
            self.spend(ITEM_COST)
            if isinstance(value, str):
                self.spend(len(value))
            elif isinstance(value, int):
                self.spend(value.bit_length() // 8)
            elif isinstance(value, Mapping):
                waiting += [*value, *value.values()]
            elif isinstance(value, list | tuple | AbstractSet | ValuesView):
                waiting += value
            elif isinstance(value, Namespace):
                waiting.append(value._Namespace__attrs)  # noqa: SLF001  # it shows nothing


class MeteredContext(Context):
    """What a rendering knows, and its own meter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter()


def paid_method(meter: Meter, owner: object, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method that a template may call, which has been paid for."""
    if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
        raise TemplateBoundError(f"the method {name!r} of {type(owner).__name__} is not supported")
    if name != "get":
        meter.weigh(owner)
    if name == "join" and args:
        return (_items(meter, args[0], owner), *args[1:])
    if name == "replace" and len(args) > 1:
        _pay_for_replace(meter, str(owner), *args[:2])
    if name in ("strip", "lstrip", "rstrip"):
        check_padding(args[0] if args else None)
    return args


def pay_for_format(meter: Meter, text: str, values: object) -> None:
    if not _FORMAT.fullmatch(text):
        raise TemplateBoundError(f"the format {text[:40]!r} is not supported, only %s, %d, %i and %f without widths")
    for _ in range(text.count("%")):
        meter.weigh(values)


def _pay_for_replace(meter: Meter, text: str, old: object, new: object) -> None:
    meter.spend((text.count(str(old)) + 1) * len(str(new)))


def _items(meter: Meter, items: Iterable[Any], between: object) -> list[Any]:
    listed = list(items)
    meter.weigh(listed)
    meter.spend(len(listed) * len(str(between)))
    return listed


def check_padding(padding: object) -> None:
    size = len(padding) if isinstance(padding, str) else padding if isinstance(padding, int) else 0
    if not -MAX_PADDING <= size <= MAX_PADDING:
        raise TemplateBoundError(f"it strips or puts in {size} characters at a time, expected at most {MAX_PADDING}")


# Filters whose results may be far larger than what they are given, with Jinja's signatures.


@pass_context
def _join(context: MeteredContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Any:
    return FILTERS["join"](context.eval_ctx, _items(context.meter, value, d), d, attribute)


@pass_context
def _replace(context: MeteredContext, s: str, old: str, new: str, count: int | None = None) -> Any:
    _pay_for_replace(context.meter, str(s), old, new)
    return FILTERS["replace"](context.eval_ctx, s, old, new, count)


@pass_context
def _trim(_: MeteredContext, value: str, chars: str | None = None) -> Any:
    check_padding(chars)
    return FILTERS["trim"](value, chars)


@pass_context
def _indent(context: MeteredContext, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    check_padding(width)
    context.meter.spend(len(str(s)) * (width if isinstance(width, int) else len(width)))
    return FILTERS["indent"](s, width, first, blank)


@pass_context
def _round(_: MeteredContext, value: float, precision: int = 0, method: str = "common") -> Any:
    check_padding(precision)
    return FILTERS["round"](value, precision, method)


@pass_context
def _format(context: MeteredContext, value: str, *args: Any, **kwargs: Any) -> Any:
    pay_for_format(context.meter, str(value), args or kwargs)
    return FILTERS["format"](value, *args, **kwargs)


@pass_context
def _to_json(
    context: MeteredContext,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' own, which escapes nothing for HTML; what indents is paid for as it is written."""
    check_padding(indent)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value):
        context.meter.spend(len(part))
        parts.append(part)
    return "".join(parts)


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that pays for what it is given and gives. It asks for the context, so Jinja never folds it."""
    wants = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def metered(context: MeteredContext, *args: Any, **kwargs: Any) -> Any:
        context.meter.weigh(args, kwargs)
        passed = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*((passed[wants.name],) if wants else ()), *args, **kwargs)
        context.meter.weigh(result)
        return result

    return metered


_OWN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "join": _join, "replace": _replace, "trim": _trim, "indent": _indent, "round": _round, "format": _format,
    "tojson": _to_json,
}  # fmt: skip


def filters() -> dict[str, Any]:
    """All that templates may use. Jinja's others pad, wrap and number without a limit; chat templates need none."""
    chosen: dict[str, Any] = {**{name: FILTERS[name] for name in _FILTERS}, **_OWN_FILTERS}
    return {name: _metered(function) for name, function in chosen.items()}


def tests() -> dict[str, Any]:
    """Jinja's own."""
    chosen: dict[str, Any] = dict(TESTS)
    return {name: _metered(test) for name, test in chosen.items()}
