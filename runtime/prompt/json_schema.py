"""From a JSON schema to a grammar of llama.cpp's kind (GBNF), so that an answer is JSON that the schema allows.

Of JSON Schema, this takes what can be written as a grammar without guessing; all else is refused by name, since whoever
asks relies on it. Every text of the user's becomes a quoted literal, sizes are bounded before anything is written, and
no rule refers to itself before it has read a character: llama.cpp's parser does not stand everything.

An object's properties are written in the order of the schema, and no others than it names. White space is at most a
space, or a line with its indent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from dasheng_edge.runtime.errors import PromptError

MAX_SCHEMA_BYTES = 32 << 10  # as JSON
MAX_DEPTH = 24  # of schemas in schemas
MAX_PROPERTIES = 100  # of an object: its rules have as many alternatives as there are pairs of them
MAX_REPEATS = 500  # of a character or an item, if it is counted; llama.cpp makes a rule of each
MAX_REPEATS_IN_ALL = 20_000  # which llama.cpp takes 50 ms to read
MAX_GRAMMAR_BYTES = 512 << 10
# How many ways to read what was written are open at a time. llama.cpp follows all of them at every token, and there is
# no limit where options that begin alike hold themselves: so there are no such.
MAX_WAYS = 64
VALUES_PER_WAY = 64  # of an enum, which are compared as fast

Schema: TypeAlias = "Mapping[str, Any] | bool"

_JSON = {
    "ws": r'| " " | "\n" [ ]{0,20}',
    "value": "object | array | string | number | boolean | null",
    "object": 'map-open ( pair ( comma pair )* ws )? "}"',
    "pair": "string colon value",
    "array": 'list-open ( value ( comma value )* ws )? "]"',
    "map-open": '"{" ws', "list-open": '"[" ws', "comma": '"," ws', "colon": '":" ws',
    # No half of a surrogate pair, which is no character.
    "character": r'[^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" ( [0-9a-cA-CefEF] hex | [dD] [0-7] ) hex hex )',
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" character* "\""',
    "integer": '"-"? ( "0" | [1-9] [0-9]{0,15} )',
    "number": 'integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,2} )?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}  # fmt: skip
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    "null": type(None),
}  # fmt: skip
_STARTS = {
    "object": "{", "array": "[", "string": '"', "number": "0", "integer": "0", "boolean": "tf", "null": "n",
}  # fmt: skip
_NOTES = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment",
     "$defs", "definitions")
)  # fmt: skip
_KEYS: Mapping[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength")),
}


def grammar_of(schema: object) -> str:
    """A grammar whose root is `root`; "object" is any JSON object.

    Raises:
        PromptError: this is no schema, it is too large, or has something that is not supported.
    """
    if isinstance(schema, str) and schema == "object":
        return _written({"root": "object", **_JSON})
    try:
        text = json.dumps(schema, allow_nan=False)
        text.encode()
        if not isinstance(schema, Mapping) or json.loads(text) != schema:
            raise ValueError("it is no JSON object")  # noqa: TRY301  # said below
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the form of the answer is no JSON schema: {error}; expected an object of JSON") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise PromptError(
            f"the JSON schema has {len(text)} characters, expected at most {MAX_SCHEMA_BYTES}; shorten it"
        )
    return _Writer(schema).grammar()


def _written(rules: Mapping[str, str]) -> str:
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


class _Writer:
    """Writes the rules of one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._rules = root, dict(_JSON)
        self._refs: dict[str, str] = {}  # names of rules by what refers to them
        self._repeats = 0

    def grammar(self) -> str:
        root = self._rule(self._root, "$", 0, ())
        _Ways(self._place).check(self._root)
        text = _written({"root": root, **self._rules})
        if len(text) > MAX_GRAMMAR_BYTES:
            raise PromptError(f"the JSON schema makes a grammar of {len(text)} characters; simplify it")
        return text

    def _new(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _rule(self, schema: Schema, where: str, depth: int, refs: tuple[str, ...]) -> str:
        """The name of a rule for a schema; `refs` are those that led here with no character between them."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise _refused(where, f"is {json.dumps(schema):.60}; expected a schema")
        if depth > MAX_DEPTH:
            raise _refused(where, f"is nested more than {MAX_DEPTH} deep")
        keys = schema.keys() - _NOTES
        if "$ref" in keys:
            return self._referred(schema, keys, where, depth, refs)
        if "allOf" in keys:  # as some libraries write a reference with a note
            _only(keys, {"allOf"}, where)
            first, *others = _listed(schema["allOf"], f"{where}.allOf")
            if others:
                raise _refused(where, "has an allOf of several schemas, expected one; join them")
            return self._rule(first, f"{where}.allOf[0]", depth + 1, refs)
        if "anyOf" in keys:
            _only(keys, {"anyOf"}, where)
            options = _listed(schema["anyOf"], f"{where}.anyOf")
            names = [
                self._rule(option, f"{where}.anyOf[{index}]", depth + 1, refs) for index, option in enumerate(options)
            ]
            return self._new(" | ".join(names))
        if keys & {"enum", "const"}:
            return self._values(schema, keys, where)
        types = _types(schema, where)
        if types is None:
            _only(keys, set(), where)
            return "value"
        _only(keys, {"type"}.union(*(_KEYS.get(name, ()) for name in types)), where)
        return self._new(" | ".join(self._typed(name, schema, where, depth) for name in types))

    def _referred(
        self, schema: Mapping[str, Any], keys: set[str], where: str, depth: int, refs: tuple[str, ...]
    ) -> str:
        _only(keys, {"$ref"}, where)
        ref = schema["$ref"]
        if ref in refs:
            raise _refused(where, f"refers to itself by {ref!r}")
        if not isinstance(ref, str):
            self._place(ref, where)
        if ref in self._refs:
            return self._refs[ref]
        name = self._refs[ref] = self._new("")
        self._rules[name] = self._rule(self._place(ref, where), ref, depth + 1, (*refs, ref))
        return name

    def _place(self, ref: object, where: str = "") -> Any:
        """What a reference refers to."""
        place: Any = self._root
        path = ref.split("/") if isinstance(ref, str) else [""]
        if path[0] != "#":
            raise _refused(where, f"refers to {ref!r}; expected #, or a path in this schema such as #/$defs/NAME")
        for step in path[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, Mapping) or key not in place:
                raise _refused(where, f"refers to {ref!r}, which does not exist")
            place = place[key]
        return place

    def _values(self, schema: Mapping[str, Any], keys: set[str], where: str) -> str:
        _only(keys, {"enum", "const", "type"}, where)
        values = [schema["const"]] if "const" in keys else _listed(schema["enum"], f"{where}.enum")
        if {"enum", "const"} <= keys and schema["const"] not in _listed(schema["enum"], f"{where}.enum"):
            raise _refused(where, "has a const that is not in its enum")
        types = _types(schema, where)
        left = [value for value in values if types is None or any(_is(value, name) for name in types)]
        if not left:
            raise _refused(where, "has no value of its type")
        return self._new(" | ".join(_literal(value, where) for value in left))

    def _typed(self, name: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        if name == "object" and schema.keys() & _KEYS["object"]:
            return self._object(schema, where, depth)
        if name == "array" and schema.keys() & _KEYS["array"]:
            item = self._rule(schema.get("items", True), f"{where}.items", depth + 1, ())
            return self._new(_repeated(f"list-open {{}} {_CLOSE}", item, *self._counts(schema, "Items", where)))
        if name == "string" and schema.keys() & _KEYS["string"]:
            least, most = self._counts(schema, "Length", where)
            return self._new(rf'"\"" character{_braces(least, most)} "\""')
        return name

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _refused(where, "has properties or required of another type")
        if len(properties) > MAX_PROPERTIES:
            raise _refused(where, f"has {len(properties)} properties, expected at most {MAX_PROPERTIES}")
        if missing := [name for name in required if name not in [*properties]]:
            raise _refused(where, f"requires {missing[0]!r}, which is none of its properties")
        others = schema.get("additionalProperties", True)
        if not properties:
            if others is False:
                return self._new('map-open "}"')
            value = self._rule(others, f"{where}.additionalProperties", depth + 1, ())
            pair = self._new(f"string colon {value}")
            return self._new(f'map-open ( {pair} ( comma {pair} )* ws )? "}}"')
        if not isinstance(others, bool):
            self._rule(others, f"{where}.additionalProperties", depth + 1, ())  # none are written, but it must be one
        pairs = [
            self._new(f"{_literal(name, where)} colon {self._rule(value, f'{where}.{name}', depth + 1, ())}")
            for name, value in properties.items()
        ]
        return self._new(f'map-open {self._in_order(pairs, [name in required for name in properties])} "}}"')

    def _counts(self, schema: Mapping[str, Any], what: str, where: str) -> tuple[int, int | None]:
        least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
        for count in (least, 0 if most is None else most):
            if type(count) is not int or not 0 <= count <= MAX_REPEATS:
                raise _refused(where, f"has min{what} or max{what} of {count!r:.40}, expected 0 to {MAX_REPEATS}")
        if most is not None and most < least:
            raise _refused(where, f"has a max{what} below min{what}")
        self._repeats += least if most is None else most
        if self._repeats > MAX_REPEATS_IN_ALL:
            raise _refused(where, f"counts more than {MAX_REPEATS_IN_ALL} characters and items in all; simplify it")
        return least, most

    def _in_order(self, pairs: Sequence[str], needed: Sequence[bool]) -> str:
        """Pairs in their order, of which those that are not needed may be left out."""
        behind = [""] * len(pairs) + ["ws"]  # what may follow behind the one before, with its comma
        for index in reversed(range(1, len(pairs))):
            behind[index] = self._new(" | ".join(_next(pairs, needed, behind, index, "comma ", "ws")))
        return self._new(" | ".join(_next(pairs, needed, behind, 0, "", '""')))


class _Ways:
    """Counts the ways to read an answer that are open at a time, of a schema for which there is a grammar."""

    def __init__(self, place: Callable[[object], Any]) -> None:
        self._place = place
        self._refs: dict[str, int] = {}
        self._recursive = self._alike = False

    def check(self, schema: Schema) -> None:
        ways = self._most(schema)
        if self._recursive and self._alike:
            raise _refused("anyOf", "refers to itself, and has options that begin alike; have them differ in type")
        if ways > MAX_WAYS:
            raise _refused("anyOf", f"can be read in {ways} ways at a time, expected at most {MAX_WAYS}; simplify it")

    def _most(self, schema: object) -> int:
        if not isinstance(schema, Mapping):
            return 1
        if "$ref" in schema:
            ref = schema["$ref"]
            if ref not in self._refs:
                self._refs[ref] = 0
                self._refs[ref] = self._most(self._place(ref))
            self._recursive |= not self._refs[ref]
            return max(1, self._refs[ref])
        if "allOf" in schema:
            return self._most(schema["allOf"][0])
        if "anyOf" in schema:
            starts = Counter(start for option in schema["anyOf"] for start in self._starts(option))
            alike = max(starts.values())
            self._alike |= alike > 1
            return alike * max(map(self._most, schema["anyOf"]))
        if "enum" in schema:
            return 1 + len(schema["enum"]) // VALUES_PER_WAY
        inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
        return max(map(self._most, inner))

    def _starts(self, schema: Schema) -> set[str]:
        """Characters that a value may begin with; "0" is any number's."""
        if not isinstance(schema, Mapping):
            return set("".join(_STARTS.values()))
        if "$ref" in schema:
            return self._starts(self._place(schema["$ref"]))
        if "allOf" in schema:
            return self._starts(schema["allOf"][0])
        if "anyOf" in schema:
            return set().union(*map(self._starts, schema["anyOf"]))
        if values := [schema["const"]] if "const" in schema else schema.get("enum"):
            return {"0" if text[0] in "-0123456789" else text[0] for text in map(json.dumps, values)}
        return set("".join(_STARTS[name] for name in _types(schema, "") or _STARTS))


_CLOSE = 'ws "]"'


def _next(
    pairs: Sequence[str], needed: Sequence[bool], behind: Sequence[str], start: int, before: str, end: str
) -> Iterable[str]:
    """What may come from one of the pairs on: it, or one behind it if none that is needed lies between."""
    for index in range(start, len(pairs)):
        yield f"{before}{pairs[index]} {behind[index + 1]}"
        if needed[index]:
            return
    yield end


def _repeated(around: str, item: str, least: int, most: int | None) -> str:
    if most == 0:
        return around.format("")
    rest = f"{item} ( comma {item} ){_braces(max(least - 1, 0), None if most is None else most - 1)}"
    return around.format(rest if least else f"( {rest} )?")


def _braces(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _types(schema: Mapping[str, Any], where: str) -> list[str] | None:
    """The types of a schema's values; None if it says nothing about them."""
    if "type" not in schema:
        return next(([name] for name, keys in _KEYS.items() if schema.keys() & keys), None)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not types or not all(isinstance(name, str) and name in _TYPES for name in types):
        raise _refused(where, f"has the type {json.dumps(schema['type']):.60}; expected {', '.join(_TYPES)}")
    return cast("list[str]", types)


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _literal(value: object, where: str) -> str:
    """A JSON value as a quoted text of the grammar."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(where, "has a text that is not valid Unicode") from None
    if not text.isprintable():
        text = json.dumps(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _listed(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _refused(where, "is no list, or an empty one")
    return value


def _only(keys: Iterable[str], allowed: Iterable[str], where: str) -> None:
    if others := sorted({*keys} - {*allowed}):
        raise _refused(where, f"has {others[0]!r}, which is not supported there; leave it out")


def _refused(where: str, why: str) -> PromptError:
    return PromptError(f"the JSON schema {why} (at {where:.200})")
