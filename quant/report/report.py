"""The report of a comparison: `report.json` for machines, `report.md` and `report.html` for readers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from dasheng_edge.quant.compare.record import Report
from dasheng_edge.runtime.atomic_output import PartialOutput, not_a_file

from .html import page
from .markdown import document

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"


def write_report(report: Report, folder: Path) -> tuple[Path, Path, Path]:
    """Write the three files, replacing those of an earlier comparison; returns their paths in that order.

    They are renamed only when all three are written, so that an interruption leaves the old ones.

    Raises:
        OutputExistsError: a folder has the name of one.
        OutputWriteError: the disk is full, or the place is not writable or written to by somebody else.
    """
    contents = {
        JSON: report.model_dump_json(indent=2) + "\n",
        MARKDOWN: document(report),
        HTML: page(report),
    }
    with ExitStack() as stack:
        outputs = []
        for name, text in contents.items():
            output = PartialOutput(folder / name, overwrite=True, what="a report", why_not=not_a_file)
            output.open(folder=False)
            stack.callback(output.discard)
            with output.write_errors():
                output.path.write_bytes(text.encode("utf-8"))
            outputs.append(output)
        for output in outputs:
            with output.write_errors():
                output.move()
    return folder / JSON, folder / MARKDOWN, folder / HTML
