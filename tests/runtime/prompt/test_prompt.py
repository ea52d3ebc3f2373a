"""Prompts: the template's control tokens become tokens, and nothing that a user types ever does."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.prompt.prompt import (
    Audio,
    Prompt,
    PromptBuilder,
    Segment,
    Text,
    compile_template,
    template_names,
)
from tests.fixtures.chat_templates import TEXT_ONLY

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'audio' %}{{ '<|AUDIO|>' }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = {
    token: 0x110000 + index
    for index, token in enumerate(("<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"))
}
FACTS = PromptFacts(prompt="Caption it")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = st.lists(st.sampled_from([*CONTROL, "<tool>", "<|", "|>", "{{ 1 }}", "\ue0f00\ue0f1", "a"])).map("".join)


class Characters:
    """A tokenizer whose tokens are code points; `<tool>` is an added word."""

    control_tokens: Mapping[str, int] = CONTROL
    added_tokens: Mapping[str, int] = {"<tool>": 0x120000}
    special_texts: Mapping[str, str] = {"eos_token": "<|im_end|>"}

    def tokenize(self, text: str, parse_special: bool = False) -> tuple[int, ...]:
        assert not parse_special
        return tuple(map(ord, text))


def builder(template: str = CHATML, facts: PromptFacts = FACTS) -> PromptBuilder:
    return PromptBuilder(template, facts, Characters())


def shown(segments: tuple[Segment, ...]) -> str:
    """Segments as text, with control tokens in square brackets."""
    names = {i: f"[{name}]" for name, i in (CONTROL | dict(Characters.added_tokens)).items()}
    return "".join(
        f"[clip {segment.clip}]" if isinstance(segment, Audio)
        else "".join(names.get(token) or chr(token) for token in segment.tokens)
        for segment in segments
    )  # fmt: skip


ROUND = "[<|im_start|>]user\n{}[<|im_end|>]\n[<|im_start|>]assistant\n"
CLIP = "[<|audio_bos|>][clip 0][<|audio_eos|>]"


def test_audio_is_wrapped_and_comes_first() -> None:
    assert shown(builder().build()) == ROUND.format(CLIP + "Caption it")
    assert shown(builder().build("Why?")) == ROUND.format(CLIP + "Why?")
    last = FACTS.model_copy(update={"audio_first": False})
    assert shown(builder(facts=last).build()) == ROUND.format("Caption it" + CLIP)


def test_system_turn() -> None:
    turn = "[<|im_start|>]system\nBe brief[<|im_end|>]\n"
    round_ = ROUND.format(CLIP + "Caption it")
    assert shown(builder().build(system="Be brief")) == turn + round_
    facts = FACTS.model_copy(update={"system": "Be brief"})
    assert shown(builder(facts=facts).build()) == turn + round_
    assert shown(builder(facts=facts).build(system="")) == round_


@pytest.mark.parametrize(
    ("placeholder", "wrapped"),
    [
        ("<|AUDIO|>", "[<|audio_bos|>][clip 0][<|audio_eos|>]"),
        ("<|audio_bos|><|AUDIO|><|audio_eos|>", "[<|audio_bos|>][clip 0][<|audio_eos|>]"),
        ("<|audio_bos|><|AUDIO|>", "[<|audio_bos|>][clip 0]"),
        ("<|AUDIO|><|audio_eos|>", "[clip 0][<|audio_eos|>]"),
        ("<|audio_bos|> <|AUDIO|>", "[<|audio_bos|>] [<|audio_bos|>][clip 0][<|audio_eos|>]"),
    ],
)
def test_marks_are_added_only_where_the_template_has_neither(placeholder: str, wrapped: str) -> None:
    template = CHATML.replace("<|AUDIO|>", placeholder)
    assert shown(builder(template).build()) == ROUND.format(wrapped + "Caption it")


def test_a_template_of_audio_alone() -> None:
    template = "{{ messages[0].content[1].text }}<|audio_bos|><|AUDIO|>"
    assert builder(template).build("") == (Text((CONTROL["<|audio_bos|>"],)), Audio(0))


def test_several_clips() -> None:
    two = CLIP + CLIP.replace("0", "1")
    assert shown(builder().build(clips=2)) == ROUND.format(two + "Caption it")


def test_a_template_made_for_text_gets_text() -> None:
    turn = "[<|im_start|>]system\nBe brief[<|im_end|>]\n"
    two = CLIP + CLIP.replace("0", "1")
    assert shown(builder(TEXT_ONLY).build("Why?", system="Be brief", clips=2)) == turn + ROUND.format(two + "Why?")
    last = FACTS.model_copy(update={"audio_first": False})
    assert shown(builder(TEXT_ONLY, last).build("Why?")) == ROUND.format("Why?" + CLIP)
    # One that prints the list of parts as Python does has not understood it.
    printing = CHATML.replace("{% for item in message['content'] %}", "{{ message['content'] }}{% for item in [] %}")
    assert shown(builder(printing).build("Why?")) == ROUND.format(CLIP + "Why?")


def test_without_a_clip_there_is_no_place_for_one() -> None:
    assert shown(builder().build("Why?", clips=0)) == ROUND.format("Why?")


def test_a_template_strips_the_blanks_of_a_text() -> None:
    trimming = CHATML.replace("{{ item['text'] }}", "{{ item['text'] | trim }}")
    assert shown(builder(trimming).build("\n a b \t")) == ROUND.format(CLIP + "a b")
    assert shown(builder(CHATML).build("\n a b \t")) == ROUND.format(CLIP + "\n a b \t")
    assert shown(builder(trimming).build(" ")) == ROUND.format(CLIP)


def test_special_tokens_of_the_manifest_go_before_those_of_the_decoder() -> None:
    template = CHATML + "{{ eos_token }}{{ additional_special_tokens | length }}"
    assert template_names(template) == {"messages", "add_generation_prompt", "eos_token", "additional_special_tokens"}
    known = {"eos_token": "<|im_start|>", "additional_special_tokens": ["a", "b"]}
    facts = FACTS.model_copy(update={"special_tokens": known})
    assert shown(builder(template, facts).build()).endswith("assistant\n[<|im_start|>]2")


@given(st.one_of(ANY_TEXT, HOSTILE), st.one_of(ANY_TEXT, HOSTILE))
def test_no_text_becomes_a_control_token(prompt: str, system: str) -> None:
    segments = builder().build(prompt, system=system)
    controls = [token for token in segments.ids(-1) if token in CONTROL.values()]
    turns = 5 if system else 3  # im_start and im_end of each turn, and the open one of the assistant
    assert len(controls) == turns + 2
    assert sum(isinstance(segment, Audio) for segment in segments) == 1


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_text_is_kept(prompt: str) -> None:
    import unicodedata

    assert shown(builder().build(prompt)) == ROUND.format(CLIP + unicodedata.normalize("NFC", prompt))


def test_text_is_normalised() -> None:
    assert shown(builder().build("Cafe\u0301")) == ROUND.format(CLIP + "Caf\u00e9")


def test_template_functions() -> None:
    template = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    text = compile_template(template).render(messages=[{"a": "é<"}, 2])
    assert json.loads(text) == {"a": "é<"}
    assert "é<" in text


def test_special_tokens_in_a_template() -> None:
    template = CHATML.replace("'<|im_end|>\n'", "eos_token + '\n'") + "{{ bos_token }}"  # of which there is none
    assert shown(builder(template).build()) == shown(builder().build())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "is not valid"),
        ("{{ raise_exception('no audio here') }}", "no audio here"),
        ("{{ messages[9].role }}", "fails on this request"),
        ("{{ 1 / 0 }}", "fails on this request"),
        ("{{ messages.append(1) }}", "fails on this request"),  # the sandbox is immutable
        ("{{ ''.__class__.__mro__ }}", "fails on this request"),
        ("<|AUDIO|>", "leaves the prompt out"),
        (CHATML.replace("<|AUDIO|>", ""), "has 0 places for audio"),
        (CHATML.replace("<|AUDIO|>", "<|AUDIO|><|AUDIO|>"), "has 2 places for audio"),
        (CHATML.replace("for message in messages", "for message in messages[-1:]"), "leaves the system text out"),
    ],
)
def test_templates_that_do_not_fit(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        builder(template).build("Why?", system="Be brief")


def test_a_vocabulary_without_audio_tokens_is_refused() -> None:
    facts = FACTS.model_copy(update={"audio_token": "<tool>"})  # a word that a user can type
    with pytest.raises(PromptError, match="no control token '<tool>'"):
        builder(facts=facts)


def test_broken_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        builder().build("\ud800")
    with pytest.raises(PromptError, match="not valid Unicode"):
        builder().build(system="a\udcff")


def test_control_tokens_in_a_prompt_are_text_to_the_real_tokenizer(captioner: Captioner) -> None:
    decoder = captioner.parts.decoder
    typed = "".join(decoder.control_tokens)
    benign = captioner.parts.prompts.build("x")
    hostile = captioner.parts.prompts.build(typed)
    assert len(hostile) == len(benign)
    assert hostile[0] == benign[0]
    got, want = hostile[2], benign[2]
    assert isinstance(got, Text)
    assert isinstance(want, Text)
    controls = set(decoder.control_tokens.values())
    assert [token for token in got.tokens if token in controls] == [token for token in want.tokens if token in controls]
    assert typed in "".join(decoder.text_pieces(got.tokens))


def test_what_the_decoder_is_given() -> None:
    prompt = Prompt((Text((1, 2)), Audio(1), Text((3,)), Audio(0), Text((4, 5))))
    assert prompt.rows("first", "second") == [(1, 2), "second", (3,), "first", (4, 5)]
    assert prompt.ids(-1) == [1, 2, -1, 3, -1, 4, 5]
    assert prompt.text_tokens == 5
    assert Prompt((Text((1, 2)), Audio(0), Text((3,)))).around_audio() == ((1, 2), (3,))
    assert Prompt((Audio(0), Text((3,)))).around_audio() == ((), (3,))
