"""`dasheng-edge ask` and `dasheng-edge chat`: conversations about audio."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.names import printable, printable_json

from .options import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    LowMemoryOption,
    Sha256Option,
    Tf32Option,
    ThreadsOption,
    TokensOption,
    check_stdin,
    engine_options,
    say,
)
from .requests.questions import (
    MinPOption,
    NgramOption,
    RepetitionOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampling_of,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.engine.conversation import Message, Part, Reply

MAX_FORM_BYTES = 1 << 20
FormOption = Annotated[
    Path | None,
    typer.Option(
        "--schema", metavar="FILE", exists=True, dir_okay=False, help="JSON schema that the answer is to follow."
    ),
]


def ask(
    bundle: BundleArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about the audio.")],
    *,
    audio: Annotated[list[str], typer.Option(metavar="FILE", help="Audio or video file, - is stdin; may be repeated.")],
    system: SystemOption = None,
    schema: FormOption = None,
    as_json: JsonOption = False,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    no_repeat_ngram_size: NgramOption = None,
    seed: SeedOption = None,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    check_sha256: Sha256Option = True,
) -> None:
    """Ask one question about one audio file or several together, such as "Are the two speakers the same?"

    All files go into one prompt, in their order. To ask about each of many files, use caption with --prompt or --ask.
    """
    check_stdin(audio)
    form = None if schema is None else _form(schema)
    from dasheng_edge.runtime.captioner import Captioner
    from dasheng_edge.runtime.engine.conversation import ChatOptions, Message

    options = engine_options(bundle, device, threads, allow_tf32, low_memory, mapped=True, few=True)
    with Captioner.open(bundle, options=options, check_sha256=check_sha256) as captioner:
        sampling = sampling_of(
            captioner.bundle, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
            repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size,
        )  # fmt: skip
        clips: list[Part] = [sys.stdin.buffer if name == "-" else Path(name) for name in audio]
        content = [*clips, question] if captioner.bundle.prompt_facts.audio_first else [question, *clips]
        messages = [*system_message(system), Message("user", content)]
        stream = captioner.chat_stream(messages, ChatOptions(max_new_tokens, sampling, schema=form))
        if as_json:
            typer.echo(printable_json(json.dumps(_fields(audio, stream.finish()), ensure_ascii=False)))
        else:
            try:
                for piece in stream:
                    typer.echo(printable(piece, keep="\n"), nl=False)
                    sys.stdout.flush()
            finally:
                typer.echo()
        for warning in stream.reply.warnings:
            say(f"warning: {warning}")


def system_message(text: str | None) -> list[Message]:
    """The message for a system text that was typed; "" is none, in place of the bundle's."""
    from dasheng_edge.runtime.engine.conversation import Message

    return [] if text is None else [Message("system", text)]


def _form(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(MAX_FORM_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{path} is no JSON schema: {error}", param_hint="'--schema'") from error


def _fields(audio: list[str], reply: Reply) -> dict[str, Any]:
    """An answer, as JSON shows it."""
    fields = dataclasses.asdict(reply)
    del fields["logprobs"]
    fields["timings"] = {key: round(value, 3) for key, value in fields["timings"].items()}
    return {"audio": audio, **fields}


def chat(
    bundle: BundleArgument,
    *,
    audio: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Audio for the first question; may be repeated.")
    ] = None,
    system: SystemOption = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    no_repeat_ngram_size: NgramOption = None,
    seed: SeedOption = None,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    check_sha256: Sha256Option = True,
) -> None:
    """Talk about audio in a terminal: ask, and ask further; what was said before is remembered.

    /audio FILE adds audio to the next question, /help says what else there is. Ctrl-C stops an answer, Ctrl-D ends.
    Where stdin is no terminal, each line of it is a question.
    """
    from dasheng_edge.runtime.engine.conversation import ChatOptions
    from dasheng_edge.runtime.engine.engine import Engine

    from .requests.talk import Talk, typed_line

    options = engine_options(bundle, device, threads, allow_tf32, low_memory)
    with Engine.open(bundle, options=options, check_sha256=check_sha256) as engine:
        sampling = sampling_of(
            engine.bundle, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
            repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size,
        )  # fmt: skip
        talk = Talk(engine, ChatOptions(max_new_tokens, sampling), system_message(system), say)
        for name in audio or ():
            talk.add(name)
        ok = talk.run(typed_line)
    raise typer.Exit(0 if ok else 1)
