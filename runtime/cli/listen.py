"""`dasheng-edge listen`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from stat import S_ISFIFO
from statistics import median
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from dasheng_edge.runtime.errors import AudioError
from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.names import columns, moves, printable
from dasheng_edge.runtime.progress import typed_path

from .caption import StyleOption
from .options import (
    BundleArgument,
    DeviceOption,
    OverwriteOption,
    Sha256Option,
    Tf32Option,
    ThreadsOption,
    TokensOption,
    engine_options,
    print_table,
    say,
    show,
)
from .requests.questions import PromptOption, SystemOption

if TYPE_CHECKING:
    from dasheng_edge.runtime.live.ear import WindowPlan
    from dasheng_edge.runtime.live.listening import Heard, Listening
    from dasheng_edge.runtime.live.log import LiveLog
    from dasheng_edge.runtime.live.source import Source

METER_DB = 80.0  # below full scale that the bar shows
METER_COLUMNS, METER_MIN_COLUMNS = 24, 8  # of the bar, on a terminal that has room, and on one that has none


def _list_devices(wanted: bool) -> None:
    if not wanted:
        return
    from rich.table import Table

    from dasheng_edge.runtime.live.devices import devices

    known, missing = devices()
    table = Table("n", "name", "channels", "Hz", "")
    for number, one in enumerate(known):
        note = "what this machine plays" if one.is_monitor else "default" if one.default else ""
        table.add_row(str(number), one.name, str(one.channels), str(one.rate_hz), note)
    if known:
        print_table(table)
    if missing is not None:
        raise missing
    if not known:
        say("there is no input: plug a microphone in")
    raise typer.Exit


InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="NAME|N",
        help="What to listen to: an input's name, a part of it, or its number in --list-devices; monitor: what this "
        "machine plays. Default: the system's microphone.",
    ),
]
ListOption = Annotated[
    bool,
    typer.Option(
        "--list-devices", is_eager=True, callback=_list_devices, help="List what can be listened to, and exit."
    ),
]
FromOption = Annotated[str | None, typer.Option("--from", metavar="FILE", help="Listen to an audio file; - is stdin.")]
RealtimeOption = Annotated[bool, typer.Option("--realtime", help="With --from: at the speed of time.")]
WindowOption = Annotated[
    float | None, typer.Option(metavar="S", help="Longest window; a lasting sound is cut there. Default: 10.")
]
HopOption = Annotated[
    float | None,
    typer.Option(
        metavar="S", help="Caption a lasting sound every S seconds, in windows that overlap; default: no overlap."
    ),
]
SrtOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write subtitles as they come.")]
JsonlOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON Lines as they come.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per caption, each on one line.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No level and no summary.")]


def listen(
    bundle: BundleArgument,
    *,
    source: InputOption = None,
    _: ListOption = False,
    file: FromOption = None,
    realtime: RealtimeOption = False,
    prompt: PromptOption = None,
    system: SystemOption = None,
    max_new_tokens: TokensOption = None,
    window: WindowOption = None,
    hop: HopOption = None,
    srt: SrtOption = None,
    jsonl: JsonlOption = None,
    style: StyleOption = "sdh",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    check_sha256: Sha256Option = True,
) -> None:
    """Caption what a microphone hears, or what this machine plays, as it comes.

    What is louder than the background, or differs from it, is captioned when it ends, and a lasting sound every 10 s.
    What says the same as the caption before is left out. Where the machine is too slow, whole windows are dropped, and
    counted. Ctrl-C ends it.
    """
    _check(bundle, file, source, realtime=realtime)
    _check_outputs(file, srt, jsonl)
    plan = _plan(window, hop)
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.engine.engine import Engine
    from dasheng_edge.runtime.live.listening import Listening, captions_of
    from dasheng_edge.runtime.live.log import LiveLog

    Bundle.open(bundle, check_sha256=False)  # what is wrong with it is told before a device is looked for
    options = engine_options(bundle, device, threads, allow_tf32)
    meter = _Meter(shown=not quiet)
    heard = _source(file, source, meter, realtime=realtime)
    with (
        LiveLog(srt, jsonl, overwrite=overwrite, style=style) as log,
        Engine.open(bundle, options=options, batch=1, check_sha256=check_sha256) as engine,
    ):
        ask = captions_of(engine, heard.name, prompt, system=system, max_new_tokens=max_new_tokens)
        listening = Listening(heard, engine.parts.audio, plan, ask, waits=file is not None and not realtime)
        with _ended_by_signal(listening):
            _Screen(listening, log, meter, as_json=as_json, clock=file is None, quiet=quiet).run()


def _check(bundle: Path, file: str | None, source: str | None, *, realtime: bool) -> None:
    if file is None and bundle.is_file():
        raise typer.BadParameter(f"{bundle} is a file, no bundle; to listen to it: --from {typed_path(bundle)}")
    if file is not None and source is not None:
        raise typer.BadParameter("--from listens to a file, --input to a device; choose one of them")
    if realtime and file is None:
        raise typer.BadParameter("--realtime says how --from FILE is heard; name a file, too")
    if file == "-" and sys.stdin is None:
        raise typer.BadParameter("stdin (-) is closed; pipe audio into the command or name a file")


def _check_outputs(file: str | None, srt: Path | None, jsonl: Path | None) -> None:
    """Refuse to write over what is heard, or two things into one file."""
    for option, path in (("--srt", srt), ("--jsonl", jsonl)):
        if path is not None and file not in (None, "-") and _is_one(path, Path(str(file))):
            raise typer.BadParameter(f"{option} names the file that is heard; choose another name for what is written")
    if srt is not None and jsonl is not None and _is_one(srt, jsonl):
        raise typer.BadParameter("--srt and --jsonl name one file; give each its own")


def _is_one(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, which need not be there yet."""
    with suppress(OSError, ValueError):  # one is not there, or has no name that a file may have
        return first.samefile(second)
    return os.path.realpath(first) == os.path.realpath(second)


def _plan(window: float | None, hop: float | None) -> WindowPlan:
    from dasheng_edge.runtime.live.ear import WindowPlan

    longest = WindowPlan.window_s if window is None else window
    try:
        return WindowPlan(longest, longest if hop is None else hop)
    except AudioError as error:
        raise typer.BadParameter(str(error)) from error


def _source(file: str | None, wanted: str | None, meter: _Meter, *, realtime: bool) -> Source:
    from dasheng_edge.runtime.live.microphone import Microphone
    from dasheng_edge.runtime.live.source import RATE_HZ, FileSource, SystemClock

    if file is None:
        return Microphone(wanted, RATE_HZ, SystemClock(), meter.say)
    audio = sys.stdin.buffer if file == "-" else file
    return FileSource(audio, RATE_HZ, SystemClock() if realtime else None)


@contextmanager
def _ended_by_signal(listening: Listening) -> Generator[None]:
    """The first Ctrl-C or SIGTERM ends it when what was heard is captioned, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        listening.stop()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Meter:
    """A line on stderr that is written again and again; nothing where that is no terminal.

    Nor where captions go into a pipe: what reads them, as `tee`, may write to the same terminal at any moment.
    """

    def __init__(self, *, shown: bool) -> None:
        self._moves = shown and moves(sys.stderr)
        self._shown = self._moves and not _is_pipe(sys.stdout)
        self._line = ""  # as it stands on the terminal

    def draw(self, listening: Listening) -> None:
        """Level, background, and state."""
        if not self._shown:
            return
        ear, tally = listening.ear, listening.tally
        width = max(1, _width() - len("^C"))  # which terminals write behind it at Ctrl-C: no line may break by it
        dropped = f", {tally.dropped} dropped" if tally.dropped else ""
        before = f"{_elapsed(listening.seconds)} ["
        after = f"] {max(-99.0, ear.level_db):4.0f} dB {'hears' if ear.hears else 'quiet'}"
        count = f"  {_count(tally.captions - tally.repeats, 'caption')}{dropped}"
        if len(before) + METER_MIN_COLUMNS + len(after) + len(count) <= width:  # else there is no room for it
            after += count
        bar = max(METER_MIN_COLUMNS, min(METER_COLUMNS, width - len(before) - len(after)))
        levels = (ear.level_db, ear.floor_db)
        filled, floor = (round(bar * min(1.0, max(0.0, 1 + level / METER_DB))) for level in levels)
        cells = ["#" if place < filled else "-" for place in range(bar)]
        cells[min(floor, bar - 1)] = "|"
        line = f"{before}{''.join(cells)}{after}"[:width]
        if line != self._line:
            sys.stderr.write("\r" + line.ljust(min(_width(), len(self._line))))
            sys.stderr.flush()
            self._line = line

    def clear(self) -> None:
        """Make room for another line."""
        if self._moves:
            blanks = " " * min(_width(), len(self._line) + len("^C"))
            sys.stderr.write(f"\r{blanks}\r")
            sys.stderr.flush()
            self._line = ""

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        say(line)


class _Screen:
    """What is printed: captions on stdout, and on stderr a level, what is dropped, and a summary."""

    def __init__(
        self, listening: Listening, log: LiveLog, meter: _Meter, *, as_json: bool, clock: bool, quiet: bool
    ) -> None:
        self._listening, self._log, self._meter = listening, log, meter
        self._as_json, self._clock, self._quiet = as_json, clock, quiet

    def run(self) -> None:
        """Listen until it ends."""
        if not self._quiet:
            self._meter.say(f"listening to {printable(self._listening.source.name)}; Ctrl-C ends it")
        try:
            with closing(self._listening.run(lambda: self._meter.draw(self._listening))) as all_heard:
                for heard in all_heard:
                    self._show(heard)
        finally:
            self._meter.clear()
            if not self._quiet:
                self._sum_up()

    def _show(self, heard: Heard) -> None:
        from dasheng_edge.runtime.output.rows import CaptionRow

        window, source = heard.window, self._listening.source
        if heard.repeats or (heard.caption is not None and not heard.caption.text.strip()):
            return
        if heard.caption is not None:
            row = CaptionRow.of(source.name, window, heard.caption)
        else:
            row = CaptionRow(
                audio=source.name, start_s=window.start_s, end_s=window.end_s,
                error="dropped, since the machine is too slow" if heard.dropped else str(heard.error),
                error_type="WindowDropped" if heard.dropped else type(heard.error).__name__,
            )  # fmt: skip
        at = _elapsed(window.start_s)
        if self._clock:  # counted back from now: the machine may have slept, and no two clocks go alike
            ago = timedelta(seconds=self._listening.seconds + source.behind_s() - window.start_s)
            began = datetime.now().astimezone() - ago
            row = CaptionRow.model_validate(row.fields() | {"clock": began.isoformat(timespec="milliseconds")})
            at = f"{began:%H:%M:%S}"
        self._log.write(row)
        self._meter.clear()
        if self._as_json:
            typer.echo(row.json_line())
        elif row.error is None:
            show(f"{at}  {' '.join(row.text.split())}")
        sys.stdout.flush()
        if row.error is not None:
            say(f"{at}  {row.error} ({window.end_s - window.start_s:.1f} s)")

    def _sum_up(self) -> None:
        ear, tally, seconds = self._listening.ear, self._listening.tally, self._listening.seconds
        share = ear.sounding_ticks / max(1, ear.ticks)
        parts = [
            f"listened for {_elapsed(round(seconds))}, with sound {share:.0%} of the time",
            _count(tally.captions, "caption"),
        ]
        parts += [f"{tally.repeats} of them said what the one before did"] if tally.repeats else []
        parts += [f"{_count(tally.dropped, 'window')} dropped, since the machine is too slow"] if tally.dropped else []
        parts += [f"{_count(tally.failed, 'window')} failed"] if tally.failed else []
        if tally.late_s:
            parts.append(f"captions came {median(tally.late_s):.1f} s after their sound (median)")
        say("; ".join(parts))


def _is_pipe(stream: TextIO) -> bool:
    try:
        return S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # it has no file
        return False


def _width() -> int:
    """Columns that a line may take that is written anew: behind the last one, some terminals go on in the next line."""
    return max(1, columns(sys.stderr) - 1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
