"""What is refused as the form of an answer, before llama.cpp sees any of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.prompt.json_schema import MAX_GRAMMAR_BYTES, grammar_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    ["type", "object", "array", "string", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "#", "a",
     "#/a", "#/anyOf/0", "additionalProperties", "minItems", "maxItems", "minLength", "maxLength", "oneOf", "pattern"]
)  # fmt: skip
ALMOST = st.recursive(
    WORDS | st.integers(-1, 600) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


def doubled(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": [doubled(depth - 1)] * 2}} if depth else {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("anything", "no JSON schema"),
        ([], "no JSON schema"),
        ({1: 2}, "no JSON schema"),
        ({"enum": [float("nan")]}, "no JSON schema"),
        ({"enum": [b""]}, "no JSON schema"),
        ({"enum": ["\ud800"]}, "not valid Unicode"),
        ({"enum": ["x" * 40_000]}, "expected at most"),
        (nested(30), "deep"),
        ({"type": "strings"}, "has the type"),
        ({"type": []}, "has the type"),
        ({"pattern": "a+"}, "'pattern', which is not supported"),
        ({"type": "string", "pattern": "a+"}, "'pattern', which is not supported"),
        ({"type": "string", "format": "date"}, "'format', which is not supported"),
        ({"type": "integer", "minimum": 0}, "'minimum', which is not supported"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems', which is not supported"),
        ({"allOf": [{}, {}]}, "allOf of several"),
        ({"oneOf": [{}]}, "'oneOf', which is not supported"),
        ({"anyOf": [{}], "type": "null"}, "'type', which is not supported"),
        ({"anyOf": []}, "empty"),
        ({"anyOf": [5]}, "expected a schema"),
        ({"enum": []}, "empty"),
        ({"enum": ["a"], "type": "null"}, "no value of its type"),
        ({"enum": ["a"], "const": "b"}, "not in its enum"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "none of its properties"),
        ({"type": "object", "properties": []}, "of another type"),
        ({"required": [[]]}, "none of its properties"),
        ({"type": "object", "properties": {str(index): {} for index in range(101)}}, "101 properties"),
        ({"type": "array", "maxItems": 501}, "501"),
        ({"type": "array", "minItems": True}, "True"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "below"),
        ({"$ref": "https://example.org/schema"}, "expected #"),
        ({"$ref": 5}, "expected #"),
        ({"$ref": "#/$defs/a"}, "does not exist"),
        ({"type": "array", "items": [{"type": "string", "maxLength": 500}] * 2}, "expected a schema"),
        ({"anyOf": [{"type": "string", "maxLength": 500}] * 41}, "20000 characters"),
        ({"anyOf": [{"type": "string"}] * 65}, "65 ways"),
        (doubled(7), "128 ways"),
        ({"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "array"}]}}, "begin alike"),
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "refers to itself"),
    ],
)
def test_what_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        grammar_of(schema)


@given(st.one_of(JSON, ALMOST))
def test_anything_is_a_grammar_of_bounded_size_or_refused_in_words(schema: Any) -> None:
    try:
        grammar = grammar_of(schema)
    except PromptError:
        return
    assert len(grammar) <= MAX_GRAMMAR_BYTES
    assert all(" ::= " in line for line in grammar.splitlines())
