"""A job: inputs, what they are asked, and files for the answers -> a ledger, outputs, and a tally."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dasheng_edge.runtime.atomic_output import PartialOutput, not_a_file
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.output.caption_formats import CaptionFormat

from .copies import Mux
from .estimate import foretell
from .inputs import Input
from .ledger import JobLine, Ledger
from .one_file import OneFileResults, is_complete, wrote
from .pieces import Questions, Reading, run
from .places import Places
from .progress import Progress, Tally
from .written import WrittenResults

LEDGER = ".dasheng-edge.jsonl"  # in the folder of outputs


@dataclass(frozen=True)
class Files:
    """Which files are written, and where."""

    formats: Mapping[str, CaptionFormat]  # by their names
    folder: Path | None = None  # where the folders of inputs are mirrored; None: beside each input
    file: Path | None = None  # one for all inputs, of the only format, instead
    overwrite: bool = False
    resume: bool = True
    mux: Mux | None = None  # copies of videos with subtitles, too

    @property
    def out(self) -> Path | None:
        """Where the outputs are, if they are in one place, in which a later run can go on."""
        return self.file or self.folder


def run_job(
    captioner: Captioner,
    passes: Iterable[Iterable[Input]],
    asked: tuple[Questions, Reading],
    files: Files,
    progress: Progress,
    *,
    batch: int,
) -> Tally:
    """Caption inputs into files, and go on where an earlier run of the same was ended; each of `passes` is completed.

    Of a sequence of passes, which is all there will be, it is told what they take if that is long and nothing is done.

    Raises:
        OutputExistsError: there is something else, or what was made with other settings.
        OutputWriteError: another process writes there, the disk is full, or the place is not writable.
        DashengEdgeError: what is asked, or with what, is wrong for all.
    """
    with ExitStack() as stack:
        ahead = passes if isinstance(passes, Sequence) else ()
        results = _open(stack, captioner, asked, files, progress, chain.from_iterable(ahead))
        results.arriving = not isinstance(passes, Sequence)
        stack.callback(results.close)
        if results.ledger.is_empty:
            foretell(
                captioner,
                chain.from_iterable(ahead),
                asked,
                batch=batch,
                tell=None if progress.view.quiet else progress.foretell,
            )
        for inputs in passes:
            run(captioner, inputs, asked, results, batch=batch)
        results.complete()
    return progress.tally


def _open(
    stack: ExitStack, captioner: Captioner, asked: tuple[Questions, Reading], files: Files, progress: Progress,
    ahead: Iterable[Input],
) -> WrittenResults:  # fmt: skip
    anew = not files.resume
    if files.file is not None:
        path = files.file.with_name(f".{files.file.name}.ledger.jsonl")
        anew |= (files.overwrite or not files.file.exists()) and is_complete(path)
    elif files.folder is not None:
        path = files.folder / LEDGER
    else:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / LEDGER
    ledger = stack.enter_context(Ledger(path, _job_line(captioner, asked), anew=anew))
    stack.callback(ledger.leave)
    if ledger.damaged:
        progress.note(f"{ledger.damaged} lines of {path} cannot be read; what they said is done again")
    if files.file is not None:
        (document,) = files.formats.values()
        overwrite = files.overwrite or wrote(ledger, files.file)
        partial = PartialOutput(files.file, overwrite=overwrite, what="a file of captions", why_not=not_a_file)
        partial.open(folder=False)
        stack.callback(partial.discard)
        places = Places(None, ledger.owner)
        return OneFileResults(ledger, places, document, partial, progress, overwrite=files.overwrite)
    theirs = () if files.overwrite else [kind.suffix for kind in files.formats.values()]
    places = Places(files.folder, ledger.owner, inputs=ahead, theirs=theirs)
    return WrittenResults(ledger, places, files.formats, progress, overwrite=files.overwrite, mux=files.mux)


def _job_line(captioner: Captioner, asked: tuple[Questions, Reading]) -> JobLine:
    questions, reading = asked
    bundle, facts = captioner.bundle, captioner.bundle.prompt_facts
    settings: dict[str, Any] = {
        "prompt": dict(questions.named) if questions.named else questions.prompt, "system": questions.system,
        "max_new_tokens": questions.max_new_tokens or facts.max_new_tokens,
        "sampling": questions.sampling.model_dump(),
        "windows": reading.windows, "strict": reading.strict, "track": reading.track,
        **({"changes": True} if questions.changes else {}), **({"ask_silence": True} if captioner.ask_silence else {}),
    }  # fmt: skip
    return JobLine(
        bundle=bundle.manifest.name,
        bundle_sha256=sha256_of(bundle.path(MANIFEST)),
        settings=json.loads(json.dumps(settings)),  # as a ledger gives them back
    )
