"""What clips are asked, as options say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from dasheng_edge.runtime.cli.options import language_option, wrong_value
from dasheng_edge.runtime.languages.language import Language
from dasheng_edge.runtime.output.caption_formats import SPEECH
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT

if TYPE_CHECKING:
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.bundle.manifest import Sampling
    from dasheng_edge.runtime.captioner import Captioner
    from dasheng_edge.runtime.jobs.pieces import Questions

_NAMED = re.compile(r"[\w-]+=")
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, metavar="T", help="0: always the likeliest token. Default: the bundle's.")
]
TopKOption = Annotated[
    int | None, typer.Option(min=0, metavar="K", help="Sample from the K likeliest tokens; 0: from all.")
]
TopPOption = Annotated[
    float | None,
    typer.Option(max=1.0, metavar="P", help="Sample from the likeliest tokens that together have probability P."),
]
MinPOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, metavar="P", help="Leave out tokens below P times the likeliest one's."),
]
RepetitionOption = Annotated[
    float | None, typer.Option(metavar="R", help="Makes tokens that were used less likely; above 0, 1: no penalty.")
]
NgramOption = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="No N tokens in a row are written twice; 0: they may be.")
]
PromptOption = Annotated[str | None, typer.Option(metavar="TEXT", help="What to ask; default: the bundle's prompt.")]
AskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]TEXT",
        help="What to ask, with a name for the answer; several are answered in one go. 'NAME=' is the bundle's prompt.",
    ),
]
SeedOption = Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of the sampling.")]
SpeechOption = Annotated[
    Language | None,
    language_option("Transcribe speech in a language such as en, too; subtitles show it without brackets."),
]
SystemOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System text, '' for none; default: the bundle's.")
]


class Asked:
    """What is asked, which is checked before a bundle is opened, but for what depends on the bundle."""

    def __init__(
        self,
        prompt: str | None,
        ask: list[str] | None,
        speech: Language | None,
        system: str | None,
        max_new_tokens: int | None,
        **sampling: float | None,
    ) -> None:
        if ask and prompt is not None:
            raise typer.BadParameter("--prompt is one question, --ask several; give all of them with --ask")
        self._prompt, self._system, self._max_new_tokens, self._sampling = prompt, system, max_new_tokens, sampling
        self.named = _named(prompt, ask or [], speech) if ask or speech is not None else None

    def questions(self, captioner: Captioner, *, changes: bool = False) -> Questions:
        """The same for a bundle, with its sampling where none is given."""
        from dasheng_edge.runtime.jobs.pieces import Questions

        sampling = sampling_of(captioner.bundle, **self._sampling)
        return Questions(self._prompt, self._system, self._max_new_tokens, sampling, self.named, changes)


def sampling_of(bundle: Bundle, **given: float | None) -> Sampling:
    """The bundle's sampling, with what options say in its place."""
    from pydantic import ValidationError

    from dasheng_edge.runtime.bundle.manifest import Sampling

    stated = {name: value for name, value in given.items() if value is not None}
    try:
        return Sampling.model_validate(bundle.prompt_facts.sampling.model_dump() | stated)
    except ValidationError as error:
        option = str(error.errors()[0]["loc"][0]).replace("_", "-")
        raise typer.BadParameter(wrong_value(error), param_hint=f"'--{option}'") from error


def _named(prompt: str | None, ask: list[str], speech: Language | None) -> dict[str, str | None]:
    """Several questions by their names, that of the caption first unless others are asked."""
    questions: dict[str, str | None] = {} if ask else {"caption": prompt}
    for text in ask:
        name, given, asked = text.partition("=") if _NAMED.match(text) else (text, "", text)
        if not name.strip() or name in questions:
            raise typer.BadParameter(f"--ask {text!r} has no name of its own; give it one, as in name='What is it?'")
        questions[name] = asked if asked or not given else None
    if speech is not None:
        questions[SPEECH] = SPEECH_PROMPT.format(language=speech.code)
    return questions
