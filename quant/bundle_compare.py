"""A comparison from end to end: reference, candidates and clips in, a report out.

Everything that is measured lies in `work/` in the output folder, by the content of what it was measured on. Running
the same command again goes on where it was, and adding a candidate costs that candidate.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dasheng_edge.quant.compare.aac_scores import aac_library, check_references, extra_scores
from dasheng_edge.quant.compare.bootstrap import COVERED, DRAWS, FEW_CLIPS
from dasheng_edge.quant.compare.cost import measure_cost
from dasheng_edge.quant.compare.measurements import (
    Answer,
    Answering,
    Array,
    ReferenceAnswers,
    decoder_id,
    embed_all,
    encoder_id,
    encoder_scores,
    samples_of,
    sounds_of,
)
from dasheng_edge.quant.compare.metrics import decoder_scores
from dasheng_edge.quant.compare.recommend import recommend
from dasheng_edge.quant.compare.record import (
    Candidate,
    ClipTexts,
    DecoderScores,
    EncoderScores,
    NoiseFloor,
    Report,
    Settings,
    TaskScore,
)
from dasheng_edge.quant.compare.text_scores import Patterns, check_events, read_events, score_texts
from dasheng_edge.quant.report.report import recommendation, write_report
from dasheng_edge.runtime.audio.clips import ClipSet, find_clips
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.errors import DashengEdgeError, OutputWriteError
from dasheng_edge.runtime.machine.devices import checked_threads
from dasheng_edge.runtime.machine.identity import identify, installed
from dasheng_edge.runtime.progress import NoProgress, Progress

from .candidates import Spec, Workshop, check_same_model, parse_specs, recipe_facts

WORK = "work"
REFERENCE = "reference"  # its name in the report
BUSY = 0.1  # share of the machine that others use, above which speeds are no longer told apart
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SMALL_MODEL = 100_000_000  # parameters; below, what a model says about the 7B is little


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
        DecoderError, PromptError: a model fails on a clip.
        OutputWriteError: the folder cannot be written, or a file in it cannot be used.
    """
    try:
        run = _Run(options, progress or NoProgress())
        report = run.report()
    except DashengEdgeError:
        raise
    except OSError as error:  # of the files that measurements are kept in
        full = error.errno in NO_SPACE or error.errno is None  # as numpy says it, whose writes come short
        raise OutputWriteError(
            f"cannot {'write' if full else 'use'} {_file_of(error, options.out)}: {error.strerror or error}; what was "
            f"measured is kept: {'free some space' if full else 'see to it that the file can be read and written'} and "
            "give the same command again"
        ) from error
    write_report(report, options.out, run.clips.clips)
    return report


@dataclass(frozen=True)
class _Entry:
    """A candidate and the names of its parts."""

    spec: Spec
    bundle: Bundle
    encoder: str
    decoder: str


class _Run:
    """The steps of one comparison."""

    def __init__(self, options: CompareOptions, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.threads = checked_threads(options.threads)
        # On a machine with a single processor that is 1, too, and `limits` says so.
        self.other_threads = 1 if self.threads > 1 else min(2, os.cpu_count() or 1)
        self.reference = Bundle.open(options.reference)
        facts = self.reference.prompt_facts
        self.limit = options.max_new_tokens or facts.max_new_tokens
        self.clips: ClipSet = find_clips(options.clips)
        self.clips_sha256 = self.clips.sha256()
        # What can be refused is refused before the work begins.
        if options.aac_metrics:
            check_references([clip.references for clip in self.clips.clips if clip.references])
            aac_library()
        self.events: Patterns | None = read_events(options.events) if options.events else None
        if self.events is not None:
            check_events(self.clips.clips, self.events)
        self.specs = parse_specs(options.candidates, REFERENCE)
        # What depends on clips and prompts lies below their name, so that other clips do not meet it.
        self.work = options.out / WORK
        self.measured = self.work / f"clips-{self.clips_sha256[:16]}-{self.limit}"
        self.workshop = Workshop(self.reference, self.work / "bundles", options.calibrate, self.threads, progress)
        for spec in self.specs:
            self.workshop.check(spec)
        self.samples = samples_of(self.reference, self.clips.clips, self.limit)
        self.sounds = sounds_of(self.clips.clips, self.reference.manifest.front_end.sample_rate_hz)
        self.embeddings: dict[str, Callable[[str], Array]] = {}

    def report(self) -> Report:
        """Run everything that is not measured yet."""
        own = self._entry(Spec(REFERENCE, self.options.reference), self.threads)
        entries = [self._entry(spec, self.threads) for spec in self.specs]
        for entry in (own, *entries):
            self._embed(entry, self.threads)
        floor = self._entry(Spec("noise floor", self.options.reference), self.other_threads)
        self._embed(floor, self.other_threads)
        answers = self._reference_answers(own)
        cells = self._cells(own, entries, answers)
        floor_cell = self._answer(floor, [floor.encoder], answers, self.other_threads)[floor.encoder, floor.decoder]
        noise = NoiseFloor(
            threads=(self.threads, self.other_threads),
            encoder=self._encoder(own, floor),
            decoder=_scores(floor_cell),
        )
        reference = self._candidate(own, own, cells, answers)
        candidates = tuple(self._candidate(entry, own, cells, answers) for entry in entries)
        return self._assemble(reference, candidates, noise, self._texts(own, entries, cells, answers))

    def _entry(self, spec: Spec, threads: int) -> _Entry:
        bundle = self.workshop.bundle(spec)
        check_same_model(self.reference, bundle)
        return _Entry(spec, bundle, encoder_id(bundle, threads), decoder_id(bundle, threads))

    def _embed(self, entry: _Entry, threads: int) -> None:
        if entry.encoder not in self.embeddings:
            self.progress.begin(f"{entry.spec.name}: encoder", len(self.sounds), "clips")
            folder = self.measured / f"embeddings-{entry.encoder}"
            self.embeddings[entry.encoder] = embed_all(
                entry.bundle, threads, self.sounds, folder, self.progress.advance
            )

    def _reference_answers(self, own: _Entry) -> ReferenceAnswers:
        self.progress.begin("reference: answers", len(self.clips.clips), "clips")
        folder = self.measured / f"reference-{own.encoder}-{own.decoder}"
        with Answering(own.bundle, self.threads, self.clips.clips, self.limit) as answering:
            return answering.reference(self.embeddings[own.encoder], folder, self.progress.advance)

    def _cells(
        self, own: _Entry, entries: Sequence[_Entry], answers: ReferenceAnswers
    ) -> dict[tuple[str, str], list[Answer]]:
        """Answers of each pair of encoder and decoder that somebody asks for; a decoder is opened once."""
        wanted: dict[str, tuple[_Entry, dict[str, None]]] = {own.decoder: (own, {own.encoder: None})}
        for entry in entries:
            wanted.setdefault(entry.decoder, (entry, {}))[1].update({entry.encoder: None, own.encoder: None})
            wanted[own.decoder][1][entry.encoder] = None
        cells: dict[tuple[str, str], list[Answer]] = {}
        for entry, encoders in wanted.values():
            cells |= self._answer(entry, list(encoders), answers, self.threads)
        return cells

    def _answer(
        self, entry: _Entry, encoders: Sequence[str], answers: ReferenceAnswers, threads: int
    ) -> dict[tuple[str, str], list[Answer]]:
        cells = {}
        self.progress.begin(f"{entry.spec.name}: decoder", len(encoders) * len(self.clips.clips), "clips")
        with Answering(entry.bundle, threads, self.clips.clips, self.limit) as answering:
            for encoder in encoders:
                # Within the reference's folder, since that is what they are compared with.
                folder = answers.folder / f"answers-{encoder}-{entry.decoder}"
                cells[encoder, entry.decoder] = answering.answers(
                    self.embeddings[encoder], answers, folder, self.progress.advance
                )
        return cells

    def _encoder(self, own: _Entry, other: _Entry) -> EncoderScores:
        reference, got = self.embeddings[own.encoder], self.embeddings[other.encoder]
        return encoder_scores(len(self.clips.clips), reference, got)

    def _candidate(
        self, entry: _Entry, own: _Entry, cells: dict[tuple[str, str], list[Answer]], answers: ReferenceAnswers
    ) -> Candidate:
        same = entry is own
        others = entry.encoder != own.encoder and entry.decoder != own.decoder
        ids = [clip.id for clip in self.clips.clips]
        texts = [one.text for one in cells[entry.encoder, entry.decoder]]
        reference = None if same else dict(zip(ids, answers.texts, strict=True))
        self.progress.begin(f"{entry.spec.name}: cost", 1, "runs")
        cost = measure_cost(entry.bundle, self.clips.clips, self.threads, self.limit)
        self.progress.advance(1)
        return Candidate(
            name=entry.spec.name,
            recipe=recipe_facts(entry.bundle),
            encoder=None if same else self._encoder(own, entry),
            both=None if same else _scores(cells[entry.encoder, entry.decoder]),
            encoder_only=_scores(cells[entry.encoder, own.decoder]) if others else None,
            decoder_only=_scores(cells[own.encoder, entry.decoder]) if others else None,
            task={
                **score_texts(self.clips.clips, dict(zip(ids, texts, strict=True)), reference, self.events),
                **(self._published(texts, None if same else answers.texts) if self.options.aac_metrics else {}),
            },
            cost=cost,
        )

    def _published(self, texts: Sequence[str], reference: Sequence[str] | None) -> dict[str, TaskScore]:
        """Scores of aac-metrics, of the clips that have references."""
        worded = [index for index, clip in enumerate(self.clips.clips) if clip.references]
        truths = [self.clips.clips[index].references for index in worded]
        own = None if reference is None else [reference[index] for index in worded]
        return extra_scores([texts[index] for index in worded], truths, reference_answers=own)

    def _texts(
        self,
        own: _Entry,
        entries: Sequence[_Entry],
        cells: dict[tuple[str, str], list[Answer]],
        answers: ReferenceAnswers,
    ) -> tuple[ClipTexts, ...]:
        facts = own.bundle.prompt_facts
        rate = self.reference.manifest.front_end.sample_rate_hz
        found = []
        for index, clip in enumerate(self.clips.clips):
            truth = (*clip.references, *([clip.transcript] if clip.transcript is not None else []))
            said = {entry.spec.name: cells[entry.encoder, entry.decoder][index].text for entry in entries}
            found.append(
                ClipTexts(
                    clip=clip.id,
                    seconds=round(self.samples[index] / rate, 2),
                    prompt=facts.prompt if clip.prompt is None else clip.prompt,
                    references=truth,
                    texts={own.spec.name: answers.texts[index], **said},
                )
            )
        return tuple(found)

    def _assemble(
        self, reference: Candidate, candidates: tuple[Candidate, ...], noise: NoiseFloor, texts: tuple[ClipTexts, ...]
    ) -> Report:
        machine, calibration = identify(), self.workshop.clips
        return Report(
            tool=f"dasheng-edge {version('dasheng-edge')}",
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            model=self.reference.manifest.name,
            machine={
                "cpu": machine.cpu, "cores": str(machine.usable_cores), "features": " ".join(machine.cpu_flags),
                "python": machine.python, **installed(),
            },
            settings=Settings(
                clips=len(texts), clips_sha256=self.clips_sha256, audio_s=sum(clip.seconds for clip in texts),
                calibration_clips=len(calibration.clips) if calibration else None,
                max_new_tokens=self.limit, threads=self.threads, bootstrap_draws=DRAWS,
            ),
            reference=reference,
            noise_floor=noise,
            candidates=candidates,
            clips=texts,
            recommendation=recommendation(recommend(reference, candidates, noise)),
            limits=(*limits(self.reference, len(texts)), *self._own_limits([reference, *candidates])),
        )  # fmt: skip

    def _own_limits(self, measured: Sequence[Candidate]) -> tuple[str, ...]:
        """What the figures of this very run cannot say."""
        said = []
        calibration, clips = self.workshop.clips, len(self.clips.clips)
        if calibration is not None and (shared := self.clips.shared_with(calibration)):
            said.append(
                f"{shared} of the {clips} clips that were compared hold audio that was calibrated on, too: candidates "
                "that were made by it look better here than they are on other audio."
            )
        said += [f"{warning[:1].upper()}{warning[1:]}." for warning in self.workshop.warnings]
        busiest = max((one.cost.others_share or 0.0 for one in measured), default=0.0)
        if busiest > BUSY:
            said.append(
                f"Other programs used up to {busiest:.0%} of the machine while speeds were measured: they cannot be "
                "compared. The same command on an idle machine measures them anew, and only them."
            )
        if self.threads == self.other_threads:
            said.append(
                f"The noise floor says nothing: this machine has one processor, and {self.threads} thread computes the "
                "same twice."
            )
        return tuple(said)


def _file_of(error: OSError, out: Path) -> str:
    """The file that an error is about, or the folder where it does not say."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(out)


def _scores(answers: Sequence[Answer]) -> DecoderScores:
    return decoder_scores([answer.decoding for answer in answers])


def limits(reference: Bundle, clips: int) -> tuple[str, ...]:
    """What the figures of a comparison cannot say."""
    decoder = reference.decoder_facts
    intervals = (
        f"Intervals cover the chance of drawing these {clips} clips from clips like them. They say nothing about other "
        "sounds, languages or prompts."
    )
    oracle = (
        "Answers are compared with those of the reference bundle, which has errors of its own; a candidate may be "
        "right where the reference is wrong, and counts as different."
    )
    top1 = (
        "Same top-1 is no promise: text models of 8 B parameters keep 97.7 % in Q8_0, 96.0 % in Q6_K and 91.9 % in "
        "Q4_K_M (llama.cpp's figures for Llama 3), and nothing here suggests that audio models keep more in general."
    )
    said = [
        intervals,
        oracle,
        top1,
        "ROUGE-L and CIDEr-D here use a simple tokeniser and are not comparable with published scores.",
        "Costs are those of this machine while this report was made.",
    ]
    if clips < FEW_CLIPS:
        held = ", ".join(f"{share} % with {many}" for many, share in COVERED.items() if share)
        said.append(
            f"{clips} clip{'s are' if clips > 1 else ' is'} few: intervals that are called 95 % ones are too narrow "
            f"then. In simulations with skewed values they held the truth never with 1 clip, {held}."
        )
    if decoder.parameters < SMALL_MODEL:
        said.append(
            f"This decoder has {decoder.parameters / 1e6:.1f} M parameters, a vocabulary of {decoder.vocab_size} and a "
            "narrow task. Which order recipes come in may carry over to the 7B; how much each loses does not, since "
            "small models lose more by coarse types, and sure answers of one pattern hide losses that free text shows."
        )
    return tuple(said)
