"""Patterns of adapters: what peft takes is taken, and what does not end is ended."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.export.adapter.config import LoraFacts
from dasheng_edge.export.adapter.patterns import check_patterns
from dasheng_edge.runtime.errors import AdapterError
from tests.fixtures.lora_cases import PATTERNS, REGEXES
from tests.fixtures.tiny_checkpoint import MDL_TOOLKIT_TARGETS

MODULES = [f"decoder.model.layers.{layer}.self_attn.{name}_proj" for layer in range(24) for name in "qkvo"]
CONFIG = Path("adapter_config.json")
ENDLESS = (  # exponential in the length of a name, or a high power of it
    r"^(([a-z_.0-9])+)+!$", r"(.*)*!", r"(?:[a-z]+\.?)*(?=!)x", ".*" * 12 + "!",
    r"((a|[^!])+)+(?<!\w)",
)  # fmt: skip


def facts(field: str, pattern: str) -> LoraFacts:
    stated: Any = {"rank_pattern": {pattern: 4}, "alpha_pattern": {pattern: 4.0}}.get(field, [pattern])
    if field in ("target_modules", "exclude_modules"):
        stated = pattern
    given: dict[str, Any] = {"target_modules": ["qkv"], field: stated}
    return LoraFacts(**given)


FIELDS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_pattern")


@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_that_does_not_end_is_named(field: str) -> None:
    start = time.monotonic()
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {field} has .*takes more than 0\.2 s to match"):
        check_patterns(CONFIG, facts(field, ENDLESS[0].strip("^$")), MODULES, 0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("pattern", ENDLESS)
def test_however_it_is_made_not_to_end(pattern: str) -> None:
    with pytest.raises(AdapterError, match="takes more than"):
        check_patterns(CONFIG, facts("target_modules", pattern), MODULES, 0.2)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", ["(" * 500 + "a" + ")" * 500, "net(", "(?P<a>x)(?P<a>y)", "(?i", "[z-a]"])
def test_what_is_no_expression_is_named(field: str, pattern: str) -> None:
    with pytest.raises(AdapterError, match=rf"{field} has .*, not a regular expression \(.+\); save it again"):
        check_patterns(CONFIG, facts(field, pattern), MODULES)


def test_patterns_that_people_train_with_are_taken() -> None:
    for pattern in (*REGEXES, MDL_TOOLKIT_TARGETS, "all-linear"):
        check_patterns(CONFIG, facts("target_modules", pattern), MODULES)
    check_patterns(CONFIG, LoraFacts(target_modules=["qkv"], rank_pattern=dict.fromkeys(PATTERNS, 4)), MODULES)


@given(pattern=st.text(r"ab.*+?()[]|^$\{}1,:<=!P", max_size=12))
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_no_pattern_gets_through_that_re_refuses(pattern: str) -> None:
    with suppress(AdapterError):
        check_patterns(CONFIG, facts("target_modules", pattern), MODULES[:2])
        re.compile(pattern)
