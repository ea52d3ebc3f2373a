"""From a chat template and what the user asks to segments: text tokens, and places where audio goes.

User text can never become a control token. The template is rendered with a placeholder for each user text;
control tokens are looked for in the template's own text only; then the user's texts are put back and every
run of text between two control tokens is tokenised as plain text, in one call. For a text without control
tokens in it that gives exactly what Hugging Face's tokenizers give.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.gguf.check import MAX_TEMPLATE_LENGTH

from .chat_template import MARK, MARKS, compile_template, render_chat, template_names
from .template_meter import TemplateBoundError

__all__ = [
    "SPEECH_PROMPT", "TRANSLATION_PROMPT", "Audio", "Piece", "Prompt", "PromptBuilder", "Role", "Segment", "Text",
    "Tokenizer", "Turn", "chat_messages", "compile_template", "question", "render_chat", "template_names", "with_texts",
]  # fmt: skip


class Tokenizer(Protocol):
    """What the prompt needs of a tokenizer; `Decoder` has all of it."""

    @property
    def special_texts(self) -> Mapping[str, str]:
        """Texts of `bos_token`, `eos_token` and `pad_token`, as far as the tokenizer has them, for the template."""
        ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Tokens that plain text never contains, by their text."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Whole-word tokens that plain text may contain, such as `<tool_call>`."""
        ...

    def tokenize(self, text: str, parse_special: bool = False) -> tuple[int, ...]:
        """Token ids of a text; with parse_special False control tokens in it are plain text."""
        ...


@dataclass(frozen=True)
class Text:
    """A run of text tokens."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Audio:
    """The place of the audio embeddings of a clip."""

    clip: int


Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What somebody says in a conversation: texts, and the places of clips."""

    role: Role
    parts: tuple[str | Audio, ...]


Segment: TypeAlias = Text | Audio
Piece: TypeAlias = int | str | Audio  # a special token, a run of text with marks for users' texts, the place of a clip
_Rows = TypeVar("_Rows")


class Prompt(tuple[Segment, ...]):
    """The segments of one request, in the order in which the decoder is given them."""

    __slots__ = ()

    @property
    def text_tokens(self) -> int:
        """How many tokens are text."""
        return sum(len(segment.tokens) for segment in self if isinstance(segment, Text))

    def rows(self, *clips: _Rows) -> list[tuple[int, ...] | _Rows]:
        """Text tokens, with what is given for each clip in its place: its embeddings, for the decoder."""
        return [segment.tokens if isinstance(segment, Text) else clips[segment.clip] for segment in self]

    def ids(self, audio: int) -> list[int]:
        """All token ids, with one `audio` in place of each clip."""
        return [token for segment in self for token in (segment.tokens if isinstance(segment, Text) else (audio,))]

    def around_audio(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Text tokens before and behind the only clip."""
        place = self.index(Audio(0))
        before, after = Prompt(self[:place]), Prompt(self[place + 1 :])
        return tuple(before.ids(0)), tuple(after.ids(0))


SPEECH_PROMPT = "Transcribe the speech into text <|{language}|>"  # of the family's training
TRANSLATION_PROMPT = "Translate the speech into English text"  # of nobody's: what comes of it is the model's
# Places for texts in one rendering, each of which may hold a long text: usual are as many as there are texts. In
# conversations of more than eight, each may come twice.
MAX_MARKS = 16
_MARK_PATTERN = re.compile(MARK.format(r"(\d+)"))
# Whether the content of the user, and that of the others, are lists of parts, as processors of audio models send them,
# or plain text, which is all that templates of text models take. The first that a template can render is right.
CONTENT_FORMS = ((True, True), (True, False), (False, False))


class PromptBuilder:
    """Renders prompts with one chat template and tokenizer.

    Raises:
        PromptError: the template is not valid, or the tokenizer has no such audio tokens.
    """

    def __init__(self, template: str, facts: PromptFacts, tokenizer: Tokenizer) -> None:
        self._template = compile_template(template)
        self.asks_time = "strftime_now" in template_names(template)
        self._facts = facts
        self._tokenizer = tokenizer
        control = tokenizer.control_tokens
        for token in (facts.audio_token, facts.audio_bos_token, facts.audio_eos_token):
            if token not in control:
                raise PromptError(
                    f"the decoder's vocabulary has no control token {token!r}, which marks the audio in the "
                    "prompt; export the bundle again from a checkpoint whose tokenizer has it"
                )
        # The longest first, so that no token hides a longer one that it begins.
        names = sorted({*control, *tokenizer.added_tokens}, key=len, reverse=True)
        self.has_blank_tokens = any(name != name.strip() for name in names)  # white space may be part of such a token
        self._special = re.compile(f"({'|'.join(map(re.escape, names))})")  # in brackets, `split` keeps them

    def build(self, prompt: str | None = None, *, system: str | None = None, clips: int = 1) -> Prompt:
        """One request's prompt; None means the bundle's default, and `system=""` no system turn but the template's.

        Raises:
            PromptError: the template fails, leaves a text out, or has not as many places for audio as there are clips.
        """
        texts = [self._facts.prompt if prompt is None else prompt]
        if system := self._facts.system if system is None else system:
            texts.append(system)
        return self._prompt(self.pieces(texts, clips), texts)

    def chat(self, turns: Sequence[Turn]) -> Prompt:
        """The prompt of a conversation, for the answer to its last turn; nothing is added but by the template.

        Clips are numbered in the order in which they come. Raises what `build` raises.
        """
        texts, marked, names = list[str](), list[Turn](), list[str]()
        for number, turn in enumerate(turns, 1):
            parts: list[str | Audio] = []
            for part in turn.parts:
                if isinstance(part, str):
                    parts.append(_marked(len(texts), _checked(part)))
                    texts.append(part)
                    names.append(f"{turn.role}'s text in message {number}")
                else:
                    parts.append(part)
            marked.append(Turn(turn.role, tuple(parts)))
        return self._prompt(self._laid_out(marked, texts, names), texts)

    def _prompt(self, pieces: Iterable[Piece], texts: Sequence[str]) -> Prompt:
        return Prompt(segment for segment in self._filled(pieces, texts) if segment != Text(()))

    def pieces(self, texts: Sequence[str], clips: int = 1) -> list[Piece]:
        """What the template makes of a prompt, and of a system text if there is one, with marks where these go.

        Raises:
            PromptError: as `build`.
        """
        marked = [_marked(index, _checked(text)) for index, text in enumerate(texts)]
        turns = question(marked[0], self._facts, system="".join(marked[1:]), clips=clips)
        return self._laid_out(turns, texts, ["prompt", "system text"])

    def _laid_out(self, turns: Sequence[Turn], texts: Sequence[str], names: Sequence[str]) -> list[Piece]:
        """What the template makes of turns with marks in the place of texts, in the first form that it takes."""
        errors: list[PromptError] = []
        for form in CONTENT_FORMS:
            try:
                return self._in_form(turns, texts, names, form)
            except PromptError as error:  # noqa: PERF203  # three rounds at most
                if isinstance(error.__cause__, TemplateBoundError):
                    raise  # it did too much once, which is enough
                errors.append(error)
        raise errors[0]

    def _in_form(
        self, turns: Sequence[Turn], texts: Sequence[str], names: Sequence[str], form: tuple[bool, bool]
    ) -> list[Piece]:
        rendered = self._render(turns, len(texts), form)
        for index, (what, text) in enumerate(zip(names, texts, strict=False)):
            if text.strip() and MARK.format(index) not in rendered:
                raise PromptError(f"the bundle's chat template leaves the {what} out; it does not support one")
        pieces, clips = [*self._cut(rendered)], sum(not isinstance(part, str) for turn in turns for part in turn.parts)
        if (places := sum(isinstance(piece, Audio) for piece in pieces)) != clips:
            raise PromptError(
                f"the bundle's chat template has {places} places for audio ({self._facts.audio_token}), "
                f"expected {clips}; correct the template in the checkpoint and export again"
            )
        return pieces

    def _render(self, turns: Sequence[Turn], texts: int, form: tuple[bool, bool]) -> str:
        messages = chat_messages(turns, self._facts, form)
        special_tokens = self._facts.special_tokens
        if special_tokens is None:  # the bundle does not say, as those of schema 1
            special_tokens = dict(self._tokenizer.special_texts)
        try:
            rendered = render_chat(self._template, messages, special_tokens)
        except Exception as error:  # a template can fail in any way that Python can
            raise PromptError(f"the bundle's chat template fails on this request: {str(error)[:500]}") from error
        places = _MARK_PATTERN.findall(rendered)
        if MARKS.search(_MARK_PATTERN.sub("", rendered)) or {*map(int, places)} - {*range(texts)}:
            raise PromptError("the bundle's chat template writes U+E0F0 or U+E0F1, which mark what users wrote")
        most = max(MAX_MARKS, 2 * texts)
        if len(places) > most or len(rendered) > MAX_TEMPLATE_LENGTH:
            raise PromptError(
                f"the bundle's chat template renders {len(rendered)} characters and the texts {len(places)} times, "
                f"expected at most {MAX_TEMPLATE_LENGTH} and {most}; correct it in the checkpoint and export again"
            )
        return rendered

    def _cut(self, rendered: str) -> Iterator[Piece]:
        """The rendered text, cut at special tokens and where audio goes."""
        facts, control = self._facts, {**self._tokenizer.added_tokens, **self._tokenizer.control_tokens}
        bos, eos = control[facts.audio_bos_token], control[facts.audio_eos_token]
        pieces = [piece for piece in self._special.split(rendered) if piece]  # special tokens, and runs between them
        clip = 0
        for index, piece in enumerate(pieces):
            if piece != facts.audio_token:
                yield control.get(piece, piece)
                continue
            # The published processor adds both marks where the template has neither.
            before, after = pieces[index - 1] if index else "", (*pieces[index + 1 :], "")[0]
            bare = before != facts.audio_bos_token and after != facts.audio_eos_token
            yield from (bos, Audio(clip), eos) if bare else (Audio(clip),)
            clip += 1

    def _filled(self, pieces: Iterable[Piece], texts: Sequence[str]) -> Iterator[Segment]:
        """Tokens of the pieces, with the users' texts in them."""
        tokens: list[int] = []
        for piece in pieces:
            if isinstance(piece, Audio):
                yield Text(tuple(tokens))
                yield piece
                tokens = []
            else:
                tokens += self.plain(with_texts(piece, texts)) if isinstance(piece, str) else [piece]
        yield Text(tuple(tokens))

    def plain(self, text: str) -> tuple[int, ...]:
        """Tokens of a run of text between special tokens."""
        # Qwen2's and Qwen3's tokenizers normalise before they split; llama.cpp leaves that to its caller.
        return self._tokenizer.tokenize(unicodedata.normalize("NFC", text), parse_special=False)


def with_texts(run: str, texts: Sequence[str]) -> str:
    """A run of a rendered text, with the texts in the place of their marks; the blanks around them are outside."""
    return _MARK_PATTERN.sub(lambda match: texts[int(match.group(1))].strip(), run)


def question(prompt: str, facts: PromptFacts, *, system: str = "", clips: int = 1) -> list[Turn]:
    """The turns of one request: clips and prompt in the order that the model was trained with."""
    audio = tuple(map(Audio, range(clips)))
    turns = [Turn("user", (*audio, prompt) if facts.audio_first else (prompt, *audio))]
    return [Turn("system", (system,)), *turns] if system else turns


def chat_messages(
    turns: Sequence[Turn], facts: PromptFacts, form: tuple[bool, bool] = CONTENT_FORMS[0]
) -> list[dict[str, object]]:
    """The turns as a chat template is given them; `form` is one of CONTENT_FORMS."""
    user_in_parts, others_in_parts = form
    return [
        {"role": turn.role, "content": _content(turn, facts, user_in_parts if turn.role == "user" else others_in_parts)}
        for turn in turns
    ]


def _content(turn: Turn, facts: PromptFacts, in_parts: bool) -> object:
    if in_parts:
        return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "audio"} for part in turn.parts]
    return "".join(part if isinstance(part, str) else facts.audio_token for part in turn.parts)


def _marked(index: int, text: str) -> str:
    """The mark of a text between the blanks around that text, so that a template that strips it strips those.

    Blanks alone are harmless and stay as they are.
    """
    core = text.strip()
    return text.replace(core, MARK.format(index), 1) if core else text


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the text {text[:40]!r} is not valid Unicode: {error.reason}") from error
    return text
