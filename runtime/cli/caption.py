"""`dasheng-edge caption`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dasheng_edge.runtime.errors import AudioError
from dasheng_edge.runtime.languages.language import Language
from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.output.caption_formats import CAPTION_FORMATS
from dasheng_edge.runtime.subtitles.cue import HOP_S, WINDOW_S
from dasheng_edge.runtime.subtitles.styles import STYLES

from .options import (
    BundleArgument,
    DeviceOption,
    LowMemoryOption,
    OverwriteOption,
    Sha256Option,
    StrictOption,
    Tf32Option,
    ThreadsOption,
    TokensOption,
    TrackOption,
    check_stdin,
    engine_options,
    language_option,
    name_option,
    say,
)
from .requests.questions import (
    Asked,
    AskOption,
    MinPOption,
    NgramOption,
    PromptOption,
    RepetitionOption,
    SeedOption,
    SpeechOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from .requests.targets import Target, parse_formats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dasheng_edge.runtime.captioner import Captioner
    from dasheng_edge.runtime.engine_options import EngineOptions
    from dasheng_edge.runtime.jobs.inputs import Input, Inputs
    from dasheng_edge.runtime.jobs.pieces import Reading
    from dasheng_edge.runtime.jobs.progress import View

# For fewer clips one by one, it does not pay to have the weights repacked; for several together, it never does: the
# wider a step, the less llama.cpp gains by its other layouts, and prompts are decoded faster without them.
MIN_REPACKING_CLIPS = 10
# Hearing takes nearly all of the time of long windows: on a CPU, 16 of 30 s together take as long as 8 (6.8 and 6.4 s
# for a quarter of an hour, micro), and twice as many, which wait as samples of 2 MB each, take 35 MB more.
LONG_WINDOW_S, LONG_WINDOWS = 20.0, 8
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="Audio or video files, folders of them, patterns such as 'rec/**/*.wav', manifests (.jsonl, .json); "
        "- is stdin.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        parser=parse_formats,
        metavar="FORMAT[,FORMAT]",
        autocompletion=lambda: [*CAPTION_FORMATS],
        help=f"How captions are written: {', '.join(CAPTION_FORMATS)}; default: txt. Several at once, and subtitles, "
        "go to files beside each input unless --out names another place.",
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|FILE", help="Folder for a file for each input, or one file for all; - is stdout."),
]
StyleOption = Annotated[
    str,
    name_option([*STYLES], "STYLE", "How subtitles are written", flag="--style"),
]
MuxOption = Annotated[
    Language | None,
    language_option("Copy each video (MKV, MP4, MOV) with subtitles as one track more, in a language such as en."),
]
FromFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Take inputs from a list, one on a line; - is stdin.")
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="In folders, take files that match, in place of all audio; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="In folders, leave out what matches; may be repeated.")
]
WatchOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", exists=True, file_okay=False, help="Caption what arrives in a folder, until it is stopped."
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="With --out, do not ask again what an earlier run was told.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress on stderr, errors alone.")]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object per file or window; where files are written, per event."),
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
SilenceOption = Annotated[
    bool, typer.Option("--ask-silence", help="Ask about clips in which there is nothing, too, instead of saying so.")
]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Work while the audio comes, as from a microphone through a pipe.")
]


def caption(
    bundle: BundleArgument,
    audio: InputsArgument = None,
    *,
    out: OutOption = None,
    lines: FormatOption = None,
    style: StyleOption = "sdh",
    mux: MuxOption = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = True,
    from_file: FromFileOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    watch: WatchOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    prompt: PromptOption = None,
    ask: AskOption = None,
    speech: SpeechOption = None,
    system: SystemOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is generated.")] = False,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = None,
    no_repeat_ngram_size: NgramOption = None,
    seed: SeedOption = None,
    window: WindowOption = None,
    hop: HopOption = None,
    batch: BatchOption = None,
    live: LiveOption = False,
    ask_silence: SilenceOption = False,
    track: TrackOption = None,
    strict: StrictOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    check_sha256: Sha256Option = True,
) -> None:
    """Caption audio files, or ask about them with --prompt.

    A file that cannot be read costs a line on stderr and exit code 1; the others are captioned. What is longer than the
    model answers well about (3.5 minutes) is captioned in windows of 30 s every 15 s. With --out, what is done is not
    done again by the same command.
    """
    inputs = _inputs([*(audio or []), *([str(watch)] if watch else [])], from_file, include, exclude)
    target = Target.of(out, lines, style, mux, speech, as_json=as_json, stream=stream)
    reading = _reading(_windows(window, hop, live, target), live, strict, track)
    asked = Asked(
        prompt, ask, speech, system, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        seed=seed, repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size,
    )  # fmt: skip
    run = _Run(inputs, watch, reading, _batch(batch, asked, alone=stream or live), asked, target, ask_silence)
    engine = engine_options(bundle, device, threads, allow_tf32, low_memory, mapped=run.mapped, few=run.few)
    with run.opened(bundle, engine, check_sha256) as captioner:
        ok = run.done(captioner, _view(quiet=quiet, events=as_json), stream=stream, overwrite=overwrite, resume=resume)
    raise typer.Exit(0 if ok else 1)


def _inputs(names: list[str], from_file: str | None, include: list[str] | None, exclude: list[str] | None) -> Inputs:
    from dasheng_edge.runtime.jobs.inputs import Inputs, read_list

    check_stdin([*names, *([from_file] if from_file else [])])
    if not names and from_file is None:
        raise typer.BadParameter("there is nothing to caption; name files or folders, or a list with --from-file")
    return Inputs(names, include or (), exclude or (), read_list(from_file) if from_file else ())


def _view(*, quiet: bool, events: bool) -> View:
    import sys

    from dasheng_edge.runtime.jobs.progress import BarView, EventsView, LinesView, QuietView
    from dasheng_edge.runtime.names import moves

    if events:
        return EventsView(say)
    if quiet:
        return QuietView(say)
    return BarView() if moves(sys.stderr) else LinesView(say)


@dataclass(frozen=True)
class _Run:
    """What is asked about which inputs."""

    inputs: Inputs
    watched: Path | None  # a folder in which more may come
    reading: Reading
    batch: int | None
    asked: Asked
    target: Target
    ask_silence: bool

    @cached_property
    def expected(self) -> tuple[int, int] | None:
        """How many files there are, and their bytes; None if more may come."""
        return self.inputs.measured() if self.watched is None else None

    @property
    def single_file(self) -> bool:
        """Whether there is one input only."""
        return self.expected is not None and self.expected[0] == 1

    @property
    def mapped(self) -> bool:
        """Whether weights should stay in the pages of their file."""
        return self.batch != 1 or self.few

    @property
    def few(self) -> bool:
        """Whether there is little to do."""
        return self.expected is not None and self.expected[0] < MIN_REPACKING_CLIPS and self.reading.windows is None

    def opened(self, bundle: Path, engine: EngineOptions, check_sha256: bool) -> Captioner:
        """The bundle, opened."""
        from dasheng_edge.runtime.captioner import Captioner

        self.target.check(single_file=self.single_file)
        captioner = Captioner.open(bundle, options=engine, check_sha256=check_sha256)
        captioner.ask_silence = self.ask_silence
        if captioner.parts.memory_note:
            say(f"warning: {captioner.parts.memory_note}")
        return captioner

    def done(self, captioner: Captioner, view: View, *, stream: bool, overwrite: bool, resume: bool) -> bool:
        """Do it; returns whether all went well."""
        if self.target.to_files:
            return self._written(captioner, view, overwrite=overwrite, resume=resume)
        return self._printed(captioner, view, stream=stream)

    def _printed(self, captioner: Captioner, view: View, *, stream: bool) -> bool:
        from dasheng_edge.runtime.jobs.estimate import foretell
        from dasheng_edge.runtime.jobs.pieces import run
        from dasheng_edge.runtime.jobs.printed import PrintedResults

        asked = self.asked.questions(captioner, changes=self.target.subtitles), self.reading
        tell = None if view.quiet else lambda told: say(f"note: {told}")
        passes = self._passes(view)
        ahead = self.inputs if self.watched is None else ()
        foretell(captioner, ahead, asked, batch=self._batch(captioner), tell=tell)
        results = PrintedResults(self.target.printed(single_file=self.single_file), say, stream=stream)
        for inputs in passes:
            run(captioner, inputs, asked, results, batch=self._batch(captioner), show=results.show if stream else None)
        results.complete()
        return not results.failed

    def _written(self, captioner: Captioner, view: View, *, overwrite: bool, resume: bool) -> bool:
        from dasheng_edge.runtime.jobs.estimate import read_durations
        from dasheng_edge.runtime.jobs.job import run_job
        from dasheng_edge.runtime.jobs.progress import Progress

        asked = self.asked.questions(captioner, changes=self.target.subtitles), self.reading
        files = self.target.files(single_file=self.single_file, overwrite=overwrite, resume=resume)
        durations = lambda item: read_durations([item])[0]  # noqa: E731
        with Progress(view, out=files.out, expected=self.expected, duration_of=durations) as progress:
            run_job(captioner, self._passes(view), asked, files, progress, batch=self._batch(captioner))
        return not progress.tally.errors

    def _passes(self, view: View) -> Iterable[Iterable[Input]]:
        from dasheng_edge.runtime.jobs.watch import arrivals

        if self.watched is None:
            return [self.inputs]
        known = sum(item.error is None for item in self.inputs)
        view.say(f"watching {self.watched}, {known} file{'s' * (known != 1)} known; Ctrl-C ends")
        return arrivals(self.inputs)

    def _batch(self, captioner: Captioner) -> int:
        settings = captioner.parts.decoder.settings
        window_s, _ = self.reading.windows or (0.0, 0.0)
        if window_s >= LONG_WINDOW_S and settings.text_device == "cpu":
            return self.batch or min(settings.batch, LONG_WINDOWS)
        return self.batch or settings.batch


def _batch(batch: int | None, asked: Asked, *, alone: bool) -> int | None:
    if alone and asked.named is not None:
        raise typer.BadParameter("--stream and --live are for one question, --ask and --speech for several; choose one")
    if alone and (batch or 1) > 1:
        raise typer.BadParameter("--batch works on several clips at a time, --stream and --live on one; choose one")
    return 1 if alone else batch


def _reading(windows: tuple[float, float] | None, live: bool, strict: bool, track: str | None) -> Reading:
    from dasheng_edge.runtime.jobs.pieces import Reading

    return Reading(windows, live, strict, int(track) if track is not None and track.isdecimal() else track)


def _windows(window: float | None, hop: float | None, live: bool, target: Target) -> tuple[float, float] | None:
    """Window and hop in seconds, if they were given or subtitles need some."""
    from dasheng_edge.runtime.audio.windows import check_windows

    if window is None:
        if hop is not None:
            raise typer.BadParameter("--hop says how windows follow each other; give --window too")
        return (WINDOW_S, HOP_S) if target.subtitles else None  # a caption has no times in it
    if live:
        raise typer.BadParameter("--live works on one clip while it comes, --window cuts clips; choose one")
    step = window / 2 if hop is None else hop
    try:
        check_windows(window, step)
    except AudioError as error:
        raise typer.BadParameter(str(error)) from error
    return window, step
