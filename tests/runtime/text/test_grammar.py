"""Answers of a prescribed form: a text is accepted if, and only if, it is JSON that the schema allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, PromptError
from dasheng_edge.runtime.prompt.json_schema import grammar_of
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.grammar import Grammar
from dasheng_edge.runtime.text.sequences import Sequences


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Any:
    opened = Decoder.open(tiny_bundle / DECODER, EngineSettings(), n_ctx=256)
    yield opened
    opened.close()


def accepts(model: Decoder, schema: object, text: str) -> bool:
    """Whether the grammar allows each token of a text, and an end behind it."""
    grammar = Grammar(model, grammar_of(schema))
    end = next(token for token in model.control_tokens.values() if model.is_end(token))
    try:
        for token in (*model.tokenize(text), end):
            wanted = np.full(model.n_vocab, -1.0, np.float32)
            wanted[token] = 1.0
            if grammar.next(wanted, lambda logits: int(logits.argmax())) != token:
                return False
    except DecoderError:
        return False
    finally:
        grammar.close()
    return True


TYPES: dict[str, Any] = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def is_valid(schema: Any, value: Any) -> bool:
    """What JSON Schema says of a value, where properties come in order and no others than those that are named."""
    if "anyOf" in schema or schema == {}:
        return not schema or any(is_valid(option, value) for option in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(one) and value == one for one in schema["enum"])
    kind = schema["type"]
    if kind in ("integer", "number"):
        return not isinstance(value, bool) and isinstance(value, int if kind == "integer" else (int, float))
    if not isinstance(value, TYPES[kind]):
        return False
    if kind == "string":
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99))
    if kind == "array":
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
        return fits and all(is_valid(schema.get("items", {}), item) for item in value)
    if kind == "object" and "properties" in schema:
        known = [name for name in schema["properties"] if name in value]
        fits = list(value) == known and {*schema.get("required", ())} <= {*value}
        return fits and all(is_valid(schema["properties"][name], value[name]) for name in known)
    return True


TEXTS = st.text('ab"\\é漢😀\n', max_size=4)
NUMBERS = st.integers(-(10**9), 10**9) | st.sampled_from([0.5, -2.25, 1e-05, 1e16])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def bounds(least: str, most: str) -> Any:
    return st.fixed_dictionaries({}, optional={least: st.integers(0, 1), most: st.integers(1, 3)})


def objects(inner: Any) -> Any:
    properties = st.dictionaries(st.sampled_from(["a", "b", "c", '"', "é\n"]), inner, min_size=1, max_size=3)
    return properties.flatmap(
        lambda named: st.lists(st.sampled_from([*named]), unique=True).map(
            lambda required: {"type": "object", "properties": named, "required": required}
        )
    )


SCHEMAS = st.recursive(
    st.sampled_from([{"type": kind} for kind in ("null", "boolean", "integer", "number", "object", "array")])
    | st.just({})
    | bounds("minLength", "maxLength").map(lambda more: {"type": "string", **more})
    | st.lists(st.none() | TEXTS | st.integers(0, 9), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
        | st.tuples(inner, bounds("minItems", "maxItems")).map(lambda two: {"type": "array", "items": two[0], **two[1]})
        | objects(inner)
    ),
    max_leaves=5,
)


def instances(schema: Any) -> Any:
    """Values that a schema allows."""
    if schema == {}:
        return VALUES
    if "anyOf" in schema:
        return st.one_of([instances(option) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "string":
        return st.text('ab"é\\', min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 4))
    if kind == "array":
        inner, least = instances(schema.get("items", {})), schema.get("minItems", 0)
        return st.lists(inner, min_size=least, max_size=schema.get("maxItems", 3))
    if kind == "object" and "properties" in schema:
        named = {name: instances(value) for name, value in schema["properties"].items()}
        optional = {name: value for name, value in named.items() if name not in schema["required"]}
        needed = {name: value for name, value in named.items() if name in schema["required"]}
        return st.fixed_dictionaries(needed, optional=optional).map(
            lambda value: {name: value[name] for name in named if name in value}
        )
    plain = {"null": st.none(), "boolean": st.booleans(), "integer": st.integers(-99, 99), "number": NUMBERS}
    return plain[kind] if kind in plain else VALUES.filter(lambda value: isinstance(value, TYPES[kind]))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(data=st.data(), schema=SCHEMAS, indent=st.sampled_from([None, 2]), escaped=st.booleans())
def test_a_text_is_accepted_if_and_only_if_the_schema_allows_it(
    model: Decoder, data: st.DataObject, schema: Any, indent: int | None, escaped: bool
) -> None:
    value = data.draw(st.one_of(instances(schema), VALUES))
    # A value or name that the schema states is written in one way.
    stated = isinstance(value, (dict, list)) or "enum" in str(schema)
    text = json.dumps(value, indent=indent, ensure_ascii=escaped and not stated)
    assert accepts(model, schema, text) == is_valid(schema, value), text
    assert not accepts(model, schema, text + ",")


PERSON = {
    "$defs": {
        "Sex": {"enum": ["f", "m"], "type": "string"},
        "Person": {
            "type": "object", "title": "Person", "additionalProperties": False, "required": ["sex"],
            "properties": {
                "sex": {"$ref": "#/$defs/Sex"},
                "knows": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
            },
        },
    },
    "$ref": "#/$defs/Person",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "text", "accepted"),
    [
        (PERSON, '{"sex": "f"}', True),
        (PERSON, '{"sex": "f", "knows": [{"sex": "m", "knows": []}]}', True),
        (PERSON, '{"knows": []}', False),
        (PERSON, '{"sex": "x"}', False),
        ("object", '{"a": [1, {"b": null}]}', True),
        ("object", "[]", False),
        ({"type": ["string", "null"]}, "null", True),
        ({"type": ["string", "null"]}, "5", False),
        ({"const": 5}, "5", True),
        ({"allOf": [{"type": "null"}], "description": "nothing"}, "null", True),
        ({"anyOf": [{"allOf": [{"type": "null"}]}, {"const": 5}]}, "6", False),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": 1, "b": 2}', True),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": "1"}', False),
        ({"type": "object", "additionalProperties": False}, "{}", True),
        ({"type": "object", "additionalProperties": False}, '{"a": 1}', False),
        ({"type": "string"}, '"\\ud83d\\ude00"', False),  # halves of a pair
        ({"type": "string"}, '"\\u00e9\\n"', True),
        ({"type": "string"}, '"a', False),
        ({"type": "number"}, "1.", False),
        ({"type": "number"}, "01", False),
    ],
)
def test_examples(model: Decoder, schema: object, text: str, accepted: bool) -> None:
    assert accepts(model, schema, text) == accepted


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=1), Sampling(repetition_penalty=1.3)])
def test_answers_have_the_form(model: Decoder, sampling: Sampling) -> None:
    schema = {"type": "array", "items": {"enum": ["rain", "dog"]}, "minItems": 2, "maxItems": 2}
    sequences = Sequences(model, 4)
    answers = [Answer([model.tokenize("What?")], 60, sampling.model_copy(update={"seed": seed})) for seed in range(3)]
    for answer in answers[:2]:
        answer.grammar = grammar_of(schema)
    sequences.begin(answers)
    while len(sequences):
        sequences.step()
    for answer in answers[:2]:
        assert answer.error is None
        assert is_valid(schema, json.loads(model.detokenize(answer.tokens)))
        assert model.is_end(answer.tokens[-1])
    sequences.close()


def test_a_grammar_that_llama_cpp_does_not_take(model: Decoder) -> None:
    with pytest.raises(PromptError, match="does not take"):
        Grammar(model, "root ::= nothing")
