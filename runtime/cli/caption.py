"""`dasheng-edge caption`."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dasheng_edge.runtime.errors import NOT_OF_A_CLIP, AudioError, DashengEdgeError, clip_error
from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.output.caption_formats import JsonFormat, LineFormat, TextFormat
from dasheng_edge.runtime.output.rows import CaptionRow

from .options import (
    AudioArgument,
    BundleArgument,
    DeviceOption,
    JsonLinesOption,
    Sha256Option,
    StrictOption,
    Tf32Option,
    ThreadsOption,
    TokensOption,
    TrackOption,
    check_stdin,
    engine_options,
    name_option,
    say,
    wrong_value,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.audio.read import AudioSource, AudioStream
    from dasheng_edge.runtime.audio.windows import Span
    from dasheng_edge.runtime.bundle.manifest import Sampling
    from dasheng_edge.runtime.caption import Caption
    from dasheng_edge.runtime.captioner import Captioner

# For fewer clips one by one, it does not pay to have the weights repacked; for several together, it never does: the
# wider a step, the less llama.cpp gains by its other layouts, and prompts are decoded faster without them.
MIN_REPACKING_CLIPS = 10
_LINES: dict[str, type[LineFormat]] = {"text": TextFormat, "json": JsonFormat}
FormatOption = Annotated[
    str | None,
    name_option(
        ["text", "json"], "FORMAT", "How captions are printed", "text, json; default: text",
        flag="--format",
    ),
]  # fmt: skip
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
SystemOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System text, '' for none; default: the bundle's.")
]
WindowOption = Annotated[
    float | None, typer.Option(metavar="S", help="Caption windows of S seconds, each with its times.")
]
HopOption = Annotated[
    float | None, typer.Option(metavar="S", help="Seconds from one window to the next; default: half a window.")
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=256, metavar="N", help="Decode up to N files or windows together; default: as many as pay here."
    ),
]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Work while the audio comes, as from a microphone through a pipe.")
]


def caption(
    bundle: BundleArgument,
    audio: AudioArgument,
    *,
    prompt: PromptOption = None,
    system: SystemOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is generated.")] = False,
    lines: FormatOption = None,
    as_json: JsonLinesOption = False,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    no_repeat_ngram_size: NgramOption = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of the sampling.")] = None,
    window: WindowOption = None,
    hop: HopOption = None,
    batch: BatchOption = None,
    live: LiveOption = False,
    track: TrackOption = None,
    strict: StrictOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    check_sha256: Sha256Option = True,
) -> None:
    """Caption audio files, or ask about them with --prompt.

    A file that cannot be read costs one line on stderr and exit code 1; the others are still captioned. A file that is
    longer than the model answers well about (3.5 minutes) is captioned in windows of 30 s every 15 s.
    """
    name = lines or ("json" if as_json else "text")
    if as_json and name != "json":
        raise typer.BadParameter(f"--json is --format json, but --format {name} is given too; choose one of them")
    if stream and name != "text":
        typed = "--json" if as_json else f"--format {name}"
        raise typer.BadParameter(f"--stream prints text as it comes, {typed} whole captions; choose one of them")
    if (batch or 1) > 1 and (stream or live):
        raise typer.BadParameter("--batch works on several clips at a time, --stream and --live on one; choose one")
    windows = _windows(window, hop, live=live)
    check_stdin(audio)
    from dasheng_edge.runtime.captioner import Captioner

    options = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size,
    }  # fmt: skip
    one_by_one = batch == 1 or stream or live
    few = len(audio) < MIN_REPACKING_CLIPS and windows is None
    engine = engine_options(bundle, device, threads, allow_tf32, mapped=not one_by_one or few, few=few)
    with Captioner.open(bundle, options=engine, check_sha256=check_sha256) as captioner:
        run = _Run(
            captioner, prompt, system, max_new_tokens, _sampling(captioner, options),
            live=live, lines=_LINES[name](len(audio) == 1), stream=stream)  # fmt: skip
        clips = _clips(captioner, _streams(captioner, audio, track, strict=strict), windows, live=live)
        if not run.show_all(clips, 1 if one_by_one else batch or captioner.parts.decoder.settings.batch):
            raise typer.Exit(1)


def _windows(window: float | None, hop: float | None, *, live: bool) -> tuple[float, float] | None:
    """Window and hop in seconds, if they were given."""
    from dasheng_edge.runtime.audio.windows import check_windows

    if window is None:
        if hop is not None:
            raise typer.BadParameter("--hop says how windows follow each other; give --window too")
        return None
    if live:
        raise typer.BadParameter("--live works on one clip while it comes, --window cuts clips; choose one")
    step = window / 2 if hop is None else hop
    try:
        check_windows(window, step)
    except AudioError as error:
        raise typer.BadParameter(str(error)) from error
    return window, step


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A file or a window of it; `error` says why it cannot be read."""

    file: int  # its place among those that were named
    name: str
    audio: AudioSource
    span: Span | None = None
    error: DashengEdgeError | None = None


def _streams(
    captioner: Captioner, names: Iterable[str], track: str | None, *, strict: bool
) -> Iterator[tuple[str, AudioStream]]:
    """The files by their names, as they will be read."""
    from dasheng_edge.runtime.audio.read import read_audio

    rate_hz = captioner.bundle.manifest.front_end.sample_rate_hz
    wanted = int(track) if track is not None and track.isdecimal() else track
    for name in names:
        source = sys.stdin.buffer if name == "-" else name
        yield name, read_audio(source, sample_rate_hz=rate_hz, strict=strict, track=wanted)


def _clips(
    captioner: Captioner,
    files: Iterable[tuple[str, AudioStream]],
    windows: tuple[float, float] | None,
    *,
    live: bool,
) -> Iterator[_Clip]:
    """The files as clips: whole, in windows, or as they come."""
    for file, (name, source) in enumerate(files):
        if live:
            yield _Clip(file, name, source)
            continue
        try:
            for span in _spans(captioner, source, name, windows):
                yield _Clip(file, name, span.audio, span)
        except Exception as error:  # noqa: BLE001  # whatever a file does, the others go on
            yield _Clip(file, name, source, error=clip_error(name, error))


def _spans(captioner: Captioner, source: AudioSource, name: str, windows: tuple[float, float] | None) -> Iterator[Span]:
    """The whole clip if the model answers well about all of it, else windows; only windows if they were asked for."""
    from dasheng_edge.runtime.audio.windows import HOP_S, WINDOW_S, spans

    rate_hz = captioner.bundle.manifest.front_end.sample_rate_hz
    whole_s = 0.0 if windows else captioner.bundle.prompt_facts.comfortable_s
    window_s, hop_s = windows or (WINDOW_S, HOP_S)
    for place, span in enumerate(spans(source, rate_hz, whole_s=whole_s, window_s=window_s, hop_s=hop_s)):
        if not windows and not place and not span.whole:
            why = f"{name} is longer than {whole_s:g} s, beyond which this model's answers get worse"
            say(f"note: {why}; it is captioned in windows of {window_s:g} s every {hop_s:g} s (see --window)")
        yield span


def _sampling(captioner: Captioner, options: dict[str, float | None]) -> Sampling:
    """The bundle's sampling with the options that were given."""
    from pydantic import ValidationError

    from dasheng_edge.runtime.bundle.manifest import Sampling

    given = {name: value for name, value in options.items() if value is not None}
    try:
        facts = captioner.bundle.prompt_facts
        return Sampling.model_validate(facts.sampling.model_dump() | given)
    except ValidationError as error:
        option = str(error.errors()[0]["loc"][0]).replace("_", "-")
        raise typer.BadParameter(wrong_value(error), param_hint=f"'--{option}'") from error


@dataclasses.dataclass(frozen=True)
class _Run:
    """What every clip is asked, and how the answers are printed."""

    captioner: Captioner
    prompt: str | None
    system: str | None
    max_new_tokens: int | None
    sampling: Sampling
    live: bool
    lines: LineFormat
    stream: bool

    def show_all(self, clips: Iterator[_Clip], batch: int) -> bool:
        """Print captions of clips, `batch` of them decoded together; returns whether all went well.

        A window that fails ends its file.
        """
        failed: set[int] = set()
        going = (clip for clip in clips if clip.file not in failed)
        for clip, result in self._together(going, batch) if batch > 1 else self._one_by_one(going):
            if clip.file not in failed and not self._show(clip, result):
                failed.add(clip.file)
        return not failed

    def _together(self, clips: Iterator[_Clip], batch: int) -> Iterator[tuple[_Clip, Caption | DashengEdgeError]]:
        """Clips in their order with what came of them."""
        waiting: deque[_Clip] = deque()

        def audio() -> Iterator[AudioSource]:
            for clip in clips:
                waiting.append(clip)
                if clip.error is None:
                    yield clip.audio

        results = self.captioner.caption_each(
            audio(), self.prompt, system=self.system, max_new_tokens=self.max_new_tokens, sampling=self.sampling,
            batch=batch,
        )  # fmt: skip
        with closing(results):
            for result in results:
                while (error := waiting[0].error) is not None:
                    yield waiting.popleft(), error
                yield waiting.popleft(), result
        yield from ((clip, clip.error) for clip in waiting if clip.error is not None)

    def _one_by_one(self, clips: Iterator[_Clip]) -> Iterator[tuple[_Clip, Caption | DashengEdgeError]]:
        yield from ((clip, self._alone(clip)) for clip in clips)

    def _alone(self, clip: _Clip) -> Caption | DashengEdgeError:
        try:
            return self._finish(self._pieces(clip), clip)
        except NOT_OF_A_CLIP:
            raise
        except DashengEdgeError as error:
            return error

    def _show(self, clip: _Clip, result: Caption | DashengEdgeError) -> bool:
        """Print the caption of a clip, or why there is none; returns whether there is one."""
        if isinstance(result, DashengEdgeError):
            if line := self.lines.line(CaptionRow.of_error(clip.name, result)):
                typer.echo(line)
            say(f"error: {result}")
            return False
        self.print(result, clip)
        return True

    def _pieces(self, clip: _Clip) -> Generator[str, None, Caption]:
        """The answer as it comes; what fails is an error of ours, so that it differs from what printing raises."""
        if clip.error is not None:
            raise clip.error
        try:
            answer = self.captioner.stream(
                clip.audio, self.prompt, system=self.system, max_new_tokens=self.max_new_tokens,
                sampling=self.sampling, live=self.live,
            )  # fmt: skip
            yield from answer
            return answer.finish()
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            failed = clip_error(clip.name, error)
        raise failed

    def _finish(self, pieces: Generator[str, None, Caption], clip: _Clip) -> Caption:
        """Read an answer to its end, with --stream printing what comes."""
        text, started = TextFormat(self.lines.single_file), False
        times = None if (window := _window(clip)) is None else (window.start_s, window.end_s)
        try:
            while True:
                piece = text.piece(next(pieces))
                if self.stream:
                    typer.echo(piece if started else text.label(clip.name, times) + piece, nl=False)
                    sys.stdout.flush()
                    started = True
        except StopIteration as end:
            return cast("Caption", end.value)
        finally:
            if started:
                typer.echo()

    def print(self, result: Caption, clip: _Clip) -> None:
        """Print a caption, unless its pieces were printed, and its warnings."""
        if not self.stream:
            typer.echo(self.lines.line(CaptionRow.of(clip.name, _window(clip), result)))
        for warning in result.warnings:
            say(f"warning: {clip.name}: {warning}")


def _window(clip: _Clip) -> Span | None:
    """The part of a file that a clip is; None if it is the whole."""
    return None if clip.span is None or clip.span.whole else clip.span
