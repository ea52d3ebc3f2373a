"""The report of a comparison: `report.json` for machines, `report.md` and `report.html` for readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dasheng_edge.quant.compare.recommend import Verdict
from dasheng_edge.quant.compare.record import Cost, Recommendation, Rejected, Report
from dasheng_edge.runtime.atomic_output import PartialOutput, not_a_file
from dasheng_edge.runtime.bundle.manifest import DecoderFacts
from dasheng_edge.runtime.clips.clips import Clip

from .answers import side_by_side
from .audio import embedded
from .templates import environment, html, markdown

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"


def recommendation(verdict: Verdict) -> Recommendation:
    """A verdict in words."""
    words: Any = environment().get_template("reasons.jinja").module
    taken = verdict.choice.taken if verdict.choice else None
    rejected = tuple(
        Rejected(name=judged.candidate.name, why=words.why_not(judged, verdict))
        for judged in verdict.judged
        if judged.candidate is not taken
    )
    return Recommendation(choice=taken.name if taken else None, reason=words.reason(verdict), rejected=rejected)


def limits(
    decoder: DecoderFacts,
    clips: int,
    threads: tuple[int, int],
    *,
    shared: int = 0,
    notes: Iterable[str] = (),
    costs: Sequence[Cost] = (),
) -> tuple[str, ...]:
    """What a comparison of so many clips with a decoder cannot say, in sentences.

    `threads` are those of the comparison and of its noise floor, `shared` is how many of the clips were calibrated on,
    too, and `notes` say what was left out or warned of.
    """
    text = (
        environment()
        .get_template("limits.jinja")
        .render(decoder=decoder, clips=clips, threads=threads, shared=shared, notes=notes, costs=costs)
    )
    return tuple(filter(None, text.splitlines()))


def document(report: Report) -> str:
    """`report.md`: the report as GitHub renders it."""
    return environment(markdown).get_template("report.md.jinja").render(report=report)


def page(report: Report, clips: Sequence[Clip] = ()) -> str:
    """`report.html`: the report in one file that asks for nothing else and runs no script."""
    sounds = embedded((answers.clip for answers in side_by_side(report)), clips)
    return environment(html).get_template("report.html.jinja").render(report=report, sounds=sounds)


def write_report(report: Report, folder: Path, clips: Sequence[Clip] = ()) -> tuple[Path, Path, Path]:
    """Write the three files, replacing those of an earlier comparison; returns their paths in that order.

    They are renamed only when all three are written, so that an interruption leaves the old ones. Of `clips`, those
    that are short can be heard in the page.

    Raises:
        OutputExistsError: a folder has the name of one.
        OutputWriteError: the disk is full, or the place is not writable or written to by somebody else.
    """
    contents = {
        JSON: report.model_dump_json(indent=2) + "\n",
        MARKDOWN: document(report),
        HTML: page(report, clips),
    }
    with ExitStack() as stack:
        outputs = []
        for name, text in contents.items():
            output = _output(folder, name)
            output.open(folder=False)
            stack.callback(output.discard)
            with output.write_errors():
                output.path.write_bytes(text.encode("utf-8"))
            outputs.append(output)
        for output in outputs:
            with output.write_errors():
                output.move()
    return folder / JSON, folder / MARKDOWN, folder / HTML


def check_folder(folder: Path) -> None:
    """Refuse a folder that no report can be written to; it is made and removed again if it is not there.

    Raises:
        OutputExistsError, OutputWriteError: as `write_report` would.
    """
    output = _output(folder, JSON)
    output.open(folder=False)
    output.discard()


def _output(folder: Path, name: str) -> PartialOutput:
    return PartialOutput(folder / name, overwrite=True, what="a report", why_not=not_a_file)
