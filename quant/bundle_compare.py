"""A comparison from end to end: reference, candidates and clips in, a report out.

Everything that is measured lies in `work/` in the output folder, by the content of what it was measured on. Running
the same command again goes on where it was, and adding a candidate costs that candidate.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from dasheng_edge.quant.compare.aac_scores import aac_library, check_references, extra_scores
from dasheng_edge.quant.compare.bootstrap import DRAWS
from dasheng_edge.quant.compare.cost import measure_costs
from dasheng_edge.quant.compare.measurements import (
    Answer,
    Answering,
    Array,
    ReferenceAnswers,
    decoder_id,
    embed_all,
    encoder_id,
    encoder_scores,
    sounds_of,
)
from dasheng_edge.quant.compare.metrics import decoder_scores
from dasheng_edge.quant.compare.recommend import recommend
from dasheng_edge.quant.compare.record import (
    Candidate,
    ClipTexts,
    Cost,
    DecoderScores,
    EncoderScores,
    NoiseFloor,
    Report,
    Settings,
    TaskScore,
)
from dasheng_edge.quant.compare.text_scores import Patterns, check_events, read_events, score_texts
from dasheng_edge.quant.compare.usable_clips import ClipsFailedError, Usable, usable_clips
from dasheng_edge.quant.report.report import check_folder, limits, recommendation, write_report
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.clips.clips import Clip, find_clips
from dasheng_edge.runtime.errors import DashengEdgeError, OutputWriteError
from dasheng_edge.runtime.machine.devices import checked_threads
from dasheng_edge.runtime.machine.identity import identify, installed
from dasheng_edge.runtime.progress import NoProgress, Progress, Steps

from .candidates import (
    Origin,
    Spec,
    check_candidate,
    check_same_model,
    make_candidate,
    origin_of,
    parse_specs,
    recipe_facts,
)

WORK = "work"
REFERENCE = "reference"  # its name in the report
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class CompareOptions:
    """One comparison; `candidates` are folders, names of recipes, or ENCODER/DECODER[/KV][+imatrix[=FILE]]."""

    reference: Path
    candidates: tuple[str, ...]
    clips: Path
    out: Path
    calibrate: Path | None = None
    events: Path | None = None
    max_new_tokens: int | None = None  # None: the reference's
    threads: int | None = None
    aac_metrics: bool = False  # FENSE, CIDEr-D and SPIDEr-FL by that library, too


def compare(options: CompareOptions, progress: Progress | None = None) -> Report:
    """Measure, write report.json, report.md and report.html into the output folder, and return the report.

    Raises:
        BundleError, ClipsError, QuantizeError, AudioError: a bundle, the clips or a recipe cannot be used.
        DecoderError, PromptError: a model fails on each clip.
        OutputWriteError: the folder cannot be written, or a file in it cannot be used.
    """
    progress = progress or NoProgress()
    check_folder(options.out)
    try:
        plan, report = _plan(options, progress), None
        while report is None:
            try:
                report = _report(plan, progress)
            except ClipsFailedError as failed:  # noqa: PERF203  # what was measured of the others is stored
                plan = plan.without(failed, progress)
        write_report(report, options.out, plan.clips)
    except OutputWriteError as error:  # of a candidate or a report, which knows nothing of what else is there
        cause = error.__cause__
        if not (isinstance(cause, OSError) and cause.errno in NO_SPACE):
            raise
        raise _write_error(cause, options) from cause
    except DashengEdgeError:
        raise
    except OSError as error:  # of the files that measurements are stored in
        raise _write_error(error, options) from error
    return report


def _write_error(error: OSError, options: CompareOptions) -> OutputWriteError:
    """What to tell the user: what was measured is kept on purpose."""
    full = error.errno in NO_SPACE or error.errno is None  # as numpy says it, whose writes come short
    file = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else options.out
    work = options.out / WORK
    kept = f"what was measured is kept in {work}: " if work.is_dir() else ""
    return OutputWriteError(
        f"cannot {'write' if full else 'use'} {file}: {error.strerror or error}; {kept}"
        f"{'free some space' if full else 'see to it that the file can be read and written'} and give the same "
        "command again"
    )


@dataclass(frozen=True)
class _Plan:
    """What is compared on what; checked before any work."""

    options: CompareOptions
    specs: tuple[Spec, ...]
    origin: Origin
    usable: Usable
    clips_sha256: str
    events: Patterns | None
    limit: int  # of new tokens
    threads: tuple[int, int]  # of the comparison, and of its noise floor

    @property
    def reference(self) -> Bundle:
        return self.origin.reference

    @property
    def clips(self) -> tuple[Clip, ...]:
        return self.usable.clips.clips

    @property
    def folder(self) -> Path:
        """Of what depends on clips and prompts: below their name, so that other clips do not meet it."""
        return self.options.out / WORK / f"clips-{self.clips_sha256[:16]}-{self.limit}"

    def without(self, failed: ClipsFailedError, progress: Progress) -> _Plan:
        """For the clips that did not fail; what is stored about them stays in use.

        Raises:
            DashengEdgeError: there are none, or too few for what was asked.
        """
        usable = self.usable.without(failed.why)
        step = Steps(progress).begin("clips", len(usable.clips.clips), "clips")
        for why in failed.why.values():
            step.end(note=f"left out: {why}")
        if self.options.aac_metrics:
            check_references([clip.references for clip in usable.clips.clips if clip.references])
        return replace(self, usable=usable)


def _plan(options: CompareOptions, progress: Progress) -> _Plan:
    """Read what is compared, and refuse what can be refused before the work begins."""
    threads = checked_threads(options.threads)
    # On a machine with a single processor both are 1, and `machine_limits` says so.
    other_threads = 1 if threads > 1 else min(2, os.cpu_count() or 1)
    reference = Bundle.open(options.reference)
    limit = options.max_new_tokens or reference.prompt_facts.max_new_tokens
    clips = find_clips(options.clips)
    if options.aac_metrics:
        check_references([clip.references for clip in clips.clips if clip.references])
        aac_library()
    events = read_events(options.events) if options.events else None
    if events is not None:
        check_events(clips.clips, events)
    specs = tuple(parse_specs(options.candidates, REFERENCE))
    origin = origin_of(reference, options.out / WORK / "bundles", options.calibrate, threads)
    for spec in specs:
        check_candidate(spec, origin)
    step = Steps(progress).begin("clips", len(clips.clips), "clips")
    usable = usable_clips(reference, clips, limit, progress.advance)
    for note in (*(f"left out: {why}" for why in usable.left_out), *usable.warnings):
        step.end(note=note)
    if options.aac_metrics and usable.left_out:
        check_references([clip.references for clip in usable.clips.clips if clip.references])
    return _Plan(options, specs, origin, usable, usable.clips.sha256(), events, limit, (threads, other_threads))


@dataclass(frozen=True)
class _Entry:
    """A bundle that is compared, and the names of its parts."""

    name: str
    bundle: Bundle
    warnings: tuple[str, ...]  # while it was made
    threads: int
    encoder: str
    decoder: str


Embeddings: TypeAlias = Mapping[str, Callable[[str], Array]]  # encoder -> what reads embeddings by key
Cells: TypeAlias = Mapping[tuple[str, str], list[Answer]]  # encoder and decoder -> an answer to each clip


@dataclass(frozen=True)
class _Measured:
    """Everything that was measured, but costs."""

    reference: _Entry
    candidates: tuple[_Entry, ...]
    floor: _Entry
    embeddings: Embeddings
    answers: ReferenceAnswers
    cells: Cells

    def encoder(self, entry: _Entry, clips: Sequence[Clip]) -> EncoderScores:
        return encoder_scores(clips, self.embeddings[self.reference.encoder], self.embeddings[entry.encoder])

    def decoder(self, encoder: _Entry, decoder: _Entry) -> DecoderScores:
        """With the encoder of one entry and the decoder of another."""
        answers = zip(self.cells[encoder.encoder, decoder.decoder], self.answers.tokens, strict=True)
        return decoder_scores([answer.decoding(wanted) for answer, wanted in answers])


def _measured(plan: _Plan, progress: Progress) -> _Measured:
    """Measure everything that is not stored yet."""
    (threads, other_threads), steps = plan.threads, Steps(progress)
    own = _entry(plan, Spec(REFERENCE, plan.options.reference), threads, progress)
    entries = tuple(_entry(plan, spec, threads, progress) for spec in plan.specs)
    floor = _entry(plan, Spec("noise floor", plan.options.reference), other_threads, progress)
    embeddings = _embeddings(plan, (own, *entries, floor), steps)
    step = steps.begin("reference: answers", len(plan.clips), "clips")
    with Answering(own.bundle, threads, plan.clips, plan.limit) as answering:
        folder = plan.folder / f"reference-{own.encoder}-{own.decoder}"
        answers = answering.reference(embeddings[own.encoder], folder, progress.advance)
    step.end()
    cells: dict[tuple[str, str], list[Answer]] = {}
    for entry, encoders in _crossed(own, entries, floor):
        step = steps.begin(f"{entry.name}: decoder", len(encoders) * len(plan.clips), "clips")
        with Answering(entry.bundle, entry.threads, plan.clips, plan.limit) as answering:
            for encoder in encoders:
                # Within the reference's folder, since that is what they are compared with.
                folder = answers.folder / f"answers-{encoder}-{entry.decoder}"
                cells[encoder, entry.decoder] = answering.answers(
                    embeddings[encoder], answers, folder, progress.advance
                )
        step.end()
    return _Measured(own, entries, floor, embeddings, answers, cells)


def _entry(plan: _Plan, spec: Spec, threads: int, progress: Progress) -> _Entry:
    bundle, warnings = make_candidate(spec, plan.origin, progress)
    check_same_model(plan.reference, bundle)
    return _Entry(spec.name, bundle, warnings, threads, encoder_id(bundle, threads), decoder_id(bundle, threads))


def _embeddings(plan: _Plan, entries: Sequence[_Entry], steps: Steps) -> Embeddings:
    """Of all clips, by each encoder once."""
    sounds = sounds_of(plan.clips, plan.usable.samples, plan.reference.manifest.front_end.sample_rate_hz)
    embeddings: dict[str, Callable[[str], Array]] = {}
    for entry in entries:
        if entry.encoder not in embeddings:
            step = steps.begin(f"{entry.name}: encoder", len(sounds), "clips")
            folder, advance = plan.folder / f"embeddings-{entry.encoder}", steps.progress.advance
            embeddings[entry.encoder] = embed_all(entry.bundle, entry.threads, sounds, folder, advance)
            step.end()
    return embeddings


def _crossed(own: _Entry, entries: Sequence[_Entry], floor: _Entry) -> list[tuple[_Entry, list[str]]]:
    """Each decoder once, and the encoders that it is asked with: each entry's own pair, and each part alone."""
    wanted: dict[str, tuple[_Entry, dict[str, None]]] = {own.decoder: (own, {own.encoder: None})}
    for entry in entries:
        wanted.setdefault(entry.decoder, (entry, {}))[1].update({entry.encoder: None, own.encoder: None})
        wanted[own.decoder][1][entry.encoder] = None
    wanted.setdefault(floor.decoder, (floor, {}))[1][floor.encoder] = None
    return [(entry, list(encoders)) for entry, encoders in wanted.values()]


def _report(plan: _Plan, progress: Progress) -> Report:
    measured = _measured(plan, progress)
    entries = (measured.reference, *measured.candidates)
    bundles = [entry.bundle for entry in entries]
    costs = measure_costs(bundles, plan.clips, plan.threads[0], plan.limit, progress)
    reference, *candidates = (
        _candidate(plan, measured, entry, cost) for entry, cost in zip(entries, costs, strict=True)
    )
    noise = NoiseFloor(
        threads=plan.threads,
        encoder=measured.encoder(measured.floor, plan.clips),
        decoder=measured.decoder(measured.floor, measured.floor),
    )
    texts, calibration = _texts(plan, measured), plan.origin.calibration
    return Report(
        tool=f"dasheng-edge {version('dasheng-edge')}",
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        model=plan.reference.manifest.name,
        machine=_machine(),
        settings=Settings(
            clips=len(texts),
            clips_sha256=plan.clips_sha256,
            audio_s=sum(clip.seconds for clip in texts),
            calibration_clips=len(calibration.clips) if calibration else None,
            max_new_tokens=plan.limit,
            threads=plan.threads[0],
            bootstrap_draws=DRAWS,
        ),
        reference=reference,
        noise_floor=noise,
        candidates=tuple(candidates),
        clips=texts,
        recommendation=recommendation(recommend(reference, candidates, noise)),
        limits=_limits(plan, entries, costs),
    )


def _candidate(plan: _Plan, measured: _Measured, entry: _Entry, cost: Cost) -> Candidate:
    own = measured.reference
    same = entry is own
    crossed = entry.encoder != own.encoder and entry.decoder != own.decoder
    texts = [answer.text for answer in measured.cells[entry.encoder, entry.decoder]]
    return Candidate(
        name=entry.name,
        recipe=recipe_facts(entry.bundle),
        encoder=None if same else measured.encoder(entry, plan.clips),
        both=None if same else measured.decoder(entry, entry),
        encoder_only=measured.decoder(entry, own) if crossed else None,
        decoder_only=measured.decoder(own, entry) if crossed else None,
        task=_task_scores(plan, texts, None if same else measured.answers.texts),
        cost=cost,
    )


def _task_scores(plan: _Plan, texts: Sequence[str], reference: Sequence[str] | None) -> dict[str, TaskScore]:
    """Ours, and those of aac-metrics if they were asked for, of the clips that have references."""
    ids = [clip.id for clip in plan.clips]
    base = None if reference is None else dict(zip(ids, reference, strict=True))
    scores = score_texts(plan.clips, dict(zip(ids, texts, strict=True)), base, plan.events)
    if not plan.options.aac_metrics:
        return scores
    worded = [index for index, clip in enumerate(plan.clips) if clip.references]
    truths = [plan.clips[index].references for index in worded]
    own = None if reference is None else [reference[index] for index in worded]
    return scores | extra_scores([texts[index] for index in worded], truths, reference_answers=own)


def _texts(plan: _Plan, measured: _Measured) -> tuple[ClipTexts, ...]:
    """What each model said about each clip."""
    facts = plan.reference.prompt_facts
    rate = plan.reference.manifest.front_end.sample_rate_hz
    said = {REFERENCE: measured.answers.texts} | {
        entry.name: [answer.text for answer in measured.cells[entry.encoder, entry.decoder]]
        for entry in measured.candidates
    }
    return tuple(
        ClipTexts(
            clip=clip.id,
            seconds=round(plan.usable.samples[index] / rate, 2),
            prompt=facts.prompt if clip.prompt is None else clip.prompt,
            references=(*clip.references, *([clip.transcript] if clip.transcript is not None else [])),
            texts={name: texts[index] for name, texts in said.items()},
        )
        for index, clip in enumerate(plan.clips)
    )


def _machine() -> dict[str, str]:
    machine = identify()
    return {
        "cpu": machine.cpu,
        "cores": str(machine.usable_cores),
        "features": " ".join(machine.cpu_flags),
        "python": machine.python,
        **installed(),
    }


def _limits(plan: _Plan, entries: Sequence[_Entry], costs: Sequence[Cost]) -> tuple[str, ...]:
    """What these figures cannot say."""
    clips, calibration = plan.usable.clips, plan.origin.calibration
    warnings = [warning for entry in entries for warning in entry.warnings]
    return limits(
        plan.reference.decoder_facts,
        len(plan.clips),
        plan.threads,
        shared=clips.shared_with(calibration) if calibration else 0,
        notes=[*(f"left out: {why}" for why in plan.usable.left_out), *plan.usable.warnings, *dict.fromkeys(warnings)],
        costs=costs,
    )
