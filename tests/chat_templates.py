"""Chat templates in the styles that models of this family and their fine-tunes come with, conversations for them,
and transformers' tokenizer in the place of llama.cpp's.

Each uses other parts of Jinja, so that together they use what real templates use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, object]

# As MiDashengLM's usage examples render: ChatML, parts in the caller's order, a bare audio token.
BARE = """\
{%- for turn in messages -%}
<|im_start|>{{ turn.role }}
{% if turn.content is string %}{{ turn.content }}{% else %}
{%- for part in turn.content %}{{ '<|AUDIO|>' if part.type == 'audio' else part.text }}{% endfor %}{% endif -%}
<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# After Qwen2-Audio: a default system turn, audio that is numbered through a namespace, keys of several kinds.
NUMBERED = """\
{%- set count = namespace(audio=0) %}
{%- for turn in messages %}
{%- if loop.first and turn['role'] != 'system' %}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' ~ turn['role'] ~ '\\n' }}
{%- if turn['content'] is string %}{{ turn['content'] }}
{%- else %}
{%- for part in turn['content'] %}
{%- if part.get('type') == 'audio' or 'audio' in part or 'audio_url' in part %}
{%- set count.audio = count.audio + 1 %}{{ 'Audio ' ~ count.audio ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}
{%- elif 'text' in part %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# After Qwen2.5-Omni: a macro for the content, which is stripped; the system turn's content as it is.
MACRO = """\
{%- macro body(content) -%}
    {%- if content is string -%}{{ content | trim }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type in ['audio', 'input_audio'] -%}<|audio_bos|><|AUDIO|><|audio_eos|>
            {%- elif part.type == 'text' -%}{{ part.text.strip() }}
            {%- else -%}{{ raise_exception('a part of type ' ~ part.type) }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
    {%- if messages[0].content is not string -%}{{ raise_exception('the system turn takes plain text') }}{%- endif -%}
    {{- '<|im_start|>system\\n' + messages[0].content + eos_token + '\\n' -}}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for turn in messages -%}
    {%- if turn.role not in ('user', 'assistant') %}{% continue %}{% endif -%}
    {{- '<|im_start|>' + turn.role + '\\n' + body(turn.content) + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# After Qwen3: made for text. Tools, a look back through the history, thoughts cut out of answers, thinking on request.
TEXT_ONLY = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(searching=true, question=messages|length - 1) %}
{%- for turn in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if seen.searching and turn.role == 'user' and not turn.content.startswith('<tool_response>') %}
        {%- set seen.searching = false %}{% set seen.question = index %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- set answer = turn.content %}
        {%- if '</think>' in answer %}{% set answer = answer.split('</think>')[-1].lstrip('\\n') %}{% endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > seen.question %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
        {%- generation %}{{ answer + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

# After the default of trainers: its own default system text, special tokens by name, what was not handed over.
TRAINER = """\
{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'You answer.' %}
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{%- if tools is defined and documents is defined and tools is none and documents is none %}
<|im_start|>system
{{ system if system is string else system[0]['text'] }}<|im_end|>
{% endif %}
{%- for turn in turns -%}
{{ '<|im_start|>' + turn['role'] + '\\n' }}{% for part in turn['content'] if part is mapping -%}
    {%- if part['type'] == 'audio' %}<|AUDIO|>{% else %}{{ part['text'] }}{% endif -%}
{%- else %}{{ turn['content'] }}{% endfor %}{{ eos_token }}{{ '\\n' -}}
{%- if loop.index > 8 %}{% break %}{% endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}{# {{ pad_token }} #}
{%- if strftime_now is defined and strftime_now('%Y') | int < 2000 %}{{ additional_special_tokens[0] }}{% endif %}"""

TEMPLATES = {
    "bare": BARE, "numbered": NUMBERED, "macro": MACRO, "text only": TEXT_ONLY, "trainer": TRAINER,
}  # fmt: skip
# The forms of content that each can take: parts for the user and the system, for the user only, for nobody.
FORM = {
    "bare": (True, True), "numbered": (True, True), "macro": (True, False), "text only": (False, False),
    "trainer": (True, True),
}  # fmt: skip


def content(text: str, clips: int, *, audio_first: bool, parts: bool) -> object:
    """Content of one turn, as a caller of transformers writes it."""
    if parts:
        audio: list[Message] = [{"type": "audio", "audio": "clip.wav"}] * clips
        words: list[Message] = [{"type": "text", "text": text}]
        return audio + words if audio_first else words + audio
    return "<|AUDIO|>" * clips + text if audio_first else text + "<|AUDIO|>" * clips


def history(first: object) -> list[Message]:
    """A conversation that begins with a question and goes on without audio."""
    answers = "A bell rings.", "<think>\nTwice, I think.\n</think>\n\nTwice."
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "How often?"},
        {"role": "assistant", "content": answers[1]},
    ]


class HuggingFace:
    """A tokenizer of transformers in the place of llama.cpp's."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.control_tokens: Mapping[str, int] = {token.content: i for i, token in added if token.special}
        self.added_tokens: Mapping[str, int] = {token.content: i for i, token in added if not token.special}
        self.special_texts: Mapping[str, str] = {}

    def tokenize(self, text: str, parse_special: bool = False) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, split_special_tokens=not parse_special)["input_ids"])
