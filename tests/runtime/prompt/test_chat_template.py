"""Chat templates come from anybody: what they may do is bounded, whatever they try."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.prompt import template_meter
from dasheng_edge.runtime.prompt.chat_template import compile_template, render_chat, template_names
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.prompt.template_meter import MAX_COST, Meter, TemplateBoundError

START = "{% set n = namespace(a='x', b=[1], d={}) %}"
BIG = "{% set n = namespace(a='x' * 100000) %}"


def repeated(step: str, start: str = START, times: int = 100_000) -> str:
    return f"{start}{{% for i in range({times}) %}}{step}{{% endfor %}}{{{{ n.a }}}}{{{{ n.b }}}}{{{{ n.d }}}}"


class Characters:
    """A tokenizer whose tokens are code points."""

    control_tokens: Mapping[str, int] = {"<|AUDIO|>": 0x110000, "<|audio_bos|>": 0x110001, "<|audio_eos|>": 0x110002}
    added_tokens: Mapping[str, int] = {}
    special_texts: Mapping[str, str] = {}

    def tokenize(self, text: str, parse_special: bool = False) -> tuple[int, ...]:
        assert not parse_special
        return tuple(map(ord, text))


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops of nothing": "{% for i in range(9999) %}{% for j in range(9999) if j < 0 %}{% endfor %}{% endfor %}",
    "a text that doubles": repeated("{% set n.a = n.a + n.a %}"),
    "a text that is joined to itself": repeated("{% set n.a = n.a ~ n.a %}"),
    "a list that doubles": repeated("{% set n.b = n.b + n.b %}"),
    "lists in lists": repeated("{% set n.b = [n.b, n.b] %}"),
    "objects in objects": repeated("{% set n.d = {'a': n.d, 'b': n.d} %}"),
    "arguments in objects": repeated("{% set n.d = dict(a=n.d, b=n.d) %}"),
    "views of objects": repeated("{% set n.d = {'a': n.d.items(), 'b': n.d.values()} %}"),
    "a circle": START + "{% set n.a = n %}{{ n }}",
    "a macro without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros that branch": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "callers that branch": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 18
    + "x"
    + "{% endcall %}" * 18,
    "much text in a loop": "{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}",
    "much text in a macro": "{% macro f() %}" + "y" * 9999 + "{% endmacro %}" + "{{ f() }}" * 999,
    "a large number": repeated("{% set n.a = n.a * n.a %}", "{% set n = namespace(a=99999) %}"),
    "a text times a number": "{{ 'x' * 999999999 }}",
    "a number times a text": "{{ 999999999 * 'x' }}",
    "a list times a number": "{{ [1] * 999999999 }}",
    "constants": "{% if 'x' * 999999999 %}{% endif %}",
    "a large range": "{{ range(10 ** 12) | list }}",
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a width that is a value": "{{ '%*d' % (999999999, 1) }}",
    "many decimals": "{{ '%.999999999f' % 1.0 }}",
    "the filter": "{{ '%999999999s' | format('x') }}",
    "the method": "{{ '{:999999999}'.format(1) }}",
    "its map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "centred": "{{ 'x'.center(999999999) }}",
    "centred by a filter": "{{ 'x' | center(999999999) }}",
    "filled up": "{{ 'x'.ljust(999999999) }}",
    "zeros": "{{ 'x'.zfill(999999999) }}",
    "tabs": "{{ '\t'.expandtabs(999999999) }}",
    "indented": "{{ 'x\ny' | indent(999999999) }}",
    "JSON indented": "{{ [1] | tojson(indent=999999999) }}",
    "batches": "{{ [1] | batch(999999999, 0) | list }}",
    "JSON with long separators": "{{ range(9999) | list | tojson(separators=('x' * 9999, 'y')) }}",
    "rounded": "{{ 1.5 | round(999999999, 'floor') }}",
    "replaced by more": "{{ ('x' * 9999).replace('', 'y' * 9999) }}",
    "replaced by a filter": "{{ ('x' * 9999) | replace('', 'y' * 9999) }}",
    "joined": "{{ range(9999) | join('x' * 9999) }}",
    "joined by a method": "{{ ('x' * 9999).join(['a'] * 9999) }}",
    "joined in a map": "{{ (['abc'] * 9999) | map('join', 'x' * 9999) | list | length }}",
    "looked for in a list": "{{ range(9999) | select('in', range(9999) | list) | list | length }}",
    "stripped": "{{ ('x' * 99999).strip('y' * 99999) }}",
    "split": repeated("{% set x = n.a.split('x') %}", BIG),
    "searched": repeated("{% if 'y' in n.a %}{% endif %}", BIG),
    "cut": repeated("{% set x = n.a[1:] %}", BIG),
    "the time, widely": "{{ strftime_now('%999999999d') }}",
    "the time, often": "{{ strftime_now('%Y' * 9999) }}",
    "5000 brackets": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "12000 terms": "{{ " + "+".join(["1"] * 12000) + " }}",
    "30 nested loops": "{% for i in range(9) %}" * 30 + "{% endfor %}" * 30,
    "20000 digits": "{{ " + "9" * 20000 + " }}",
    "70000 characters": "x" * 70_000,
    "a message of 99999 characters": "{{ raise_exception('x' * 99999) }}",
    "what is paid back": "{{ (['']*9999) | map('=begun', -99999999) | list | length }}{{ 'x' * 9999999 }}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_would_not_end_or_fit_is_an_error(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_meter, "MAX_COST", 100_000)
    start = time.perf_counter()
    with pytest.raises(PromptError) as caught:
        PromptBuilder(ENDLESS[case], PromptFacts(prompt="Why?"), Characters()).build()
    assert time.perf_counter() - start < 10
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{{ lipsum() }}",
        "{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}",
        "{% filter upper %}x{% endfilter %}",
        "{% set x | upper %}x{% endset %}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'].mro() }}",
        "{{ '' | attr('upper') }}",
        "{{ namespace.__init__.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{{ self }}",
        "{{ cycler(1).next() }}",
    ],
)
def test_what_chat_templates_do_not_need_is_refused(source: str) -> None:
    with pytest.raises(PromptError):
        PromptBuilder(source, PromptFacts(prompt="Why?"), Characters()).build()


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        ("{{ 'a b'.split(' ')[-1] ~ 1 }}", "b1"),
        ("{{ '%s: %d' % ('a', 2) }}", "a: 2"),
        ("{{ '%s' | format(1) }}", "1"),
        ("{{ ['b', 'a'] | sort | join(', ') }}", "a, b"),
        ("{{ 'ab'.replace('a', 'c') | upper }}", "CB"),
        ("{% for i in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ ' ' if not loop.last }}{% endfor %}", "1/2 2/2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{{ 3 * 'ab' }}", "ababab"),
        ("{% macro f(x, y=2) %}{{ x + y }}{{ caller() }}{% endmacro %}{% call f(2) %}!{% endcall %}", "4!"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | trim }}", "a1"),
        ("{{ {'a': [1]} | tojson(indent=1) }}", '{\n "a": [\n  1\n ]\n}'),
        ("{{ [1, 2, 3] | select('odd') | list }}", "[1, 3]"),
        ("{{ 'x\ny' | indent(2) }}", "x\n  y"),
        ("{{ 1.25 | round(1) }}", "1.2"),
        ("{{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }}", "[1, 2]"),
        ("{{ 'a' in ['a', 'b'] and 1 < 2 <= 2 }}", "True"),
        ("{% generation %}{{ messages | length }}{% endgeneration %}", "0"),
        ("{{ nothing is defined }}{{ nothing }}", "False"),
    ],
)
def test_what_chat_templates_do_is_rendered(source: str, rendered: str) -> None:
    assert render_chat(compile_template(source), [], {}) == rendered


@pytest.mark.parametrize(
    "source",
    [
        "\ue0f00\ue0f1\ue0f09\ue0f1",
        "{{ '\\ue0f00\\ue0f1' }}",
        "{{ text }}{{ text[0] }}",
        "{{ text }}{{ text.replace('0', '7') }}",
    ],
)
def test_marks_are_the_runtimes_alone(source: str) -> None:
    source = f"<|AUDIO|>{source.replace('text', 'messages[0].content[1].text')}"
    with pytest.raises(PromptError, match=r"U\+E0F0"):
        PromptBuilder(source, PromptFacts(prompt="Why?"), Characters()).build()


def test_a_text_is_not_repeated_without_end() -> None:
    text = "{{ messages[0].content[1].text }}"
    with pytest.raises(PromptError, match="the texts 17 times, expected at most 65536 and 16"):
        PromptBuilder(f"<|AUDIO|>{text * 17}", PromptFacts(prompt="Why?"), Characters()).build()


def test_names_of_a_template_that_is_nested_too_deeply() -> None:
    with pytest.raises(TemplateBoundError):
        template_names(ENDLESS["5000 brackets"])


def test_each_rendering_has_a_meter_of_its_own() -> None:
    template = compile_template("{% for i in range(30000) %}{{ i }}{% endfor %}")
    assert len({render_chat(template, [], {}) for _ in range(5)}) == 1
    meter = Meter()
    meter.spend(MAX_COST)
    with pytest.raises(TemplateBoundError, match="does too much"):
        meter.spend(1)
