"""A comparison from end to end: reference, candidates and clips in, a report out.

Everything that is measured lies in `work/` in the output folder, by the content of what it was measured on. Running
the same command again goes on where it was, and adding a candidate costs that candidate.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dasheng_edge.runtime.bundle import Bundle
from dasheng_edge.runtime.devices import checked_threads, usable_cores
from dasheng_edge.runtime.doctor import examine
from dasheng_edge.runtime.errors import ClipsError, DashengEdgeError, OutputWriteError

from .aac_scores import aac_library, extra_scores
from .bootstrap import DRAWS
from .candidates import Spec, Workshop, parse_spec
from .clips import ClipSet, find_clips
from .cost import measure_cost
from .measuring import (
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
from .metrics import decoder_scores
from .progress import NoProgress, Progress
from .recommend import recommend
from .record import (
    Candidate,
    ClipTexts,
    DecoderScores,
    EncoderScores,
    NoiseFloor,
    RecipeFacts,
    Report,
    Settings,
    TaskScore,
)
from .report import write_report
from .text_scores import Patterns, check_events, read_events, score_texts

WORK = "work"
REFERENCE = "reference"  # its name in the report
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
        OutputWriteError: the folder cannot be written.
    """
    try:
        report = _Run(options, progress or NoProgress()).report()
    except DashengEdgeError:
        raise
    except OSError as error:  # of the files that measurements are kept in
        raise OutputWriteError(
            f"cannot write {options.out}: {error.strerror or error}; what was measured is kept: free some space and "
            "give the same command again"
        ) from error
    write_report(report, options.out)
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
        if options.aac_metrics:
            aac_library()  # before the work begins, since it may be missing
        self.threads = checked_threads(options.threads)
        self.other_threads = 1 if self.threads > 1 else min(2, usable_cores())
        self.reference = Bundle.open(options.reference)
        _, facts = self.reference.text_facts()
        self.limit = options.max_new_tokens or facts.max_new_tokens
        self.clips: ClipSet = find_clips(options.clips)
        self.clips_sha256 = self.clips.sha256()
        self.events: Patterns | None = read_events(options.events) if options.events else None
        if self.events is not None:
            check_events(self.clips.clips, self.events)
        self.specs = [parse_spec(text) for text in options.candidates]
        names = [REFERENCE, *(spec.name for spec in self.specs)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ClipsError(f"candidate {twice.pop()} is there twice, or has the reference's name; name each once")
        # What depends on clips and prompts lies below their name, so that other clips do not meet it.
        self.work = options.out / WORK
        self.measured = self.work / f"clips-{self.clips_sha256[:16]}-{self.limit}"
        self.workshop = Workshop(self.reference, self.work / "bundles", options.calibrate, self.threads, progress)
        for spec in self.specs:
            self.workshop.check(spec)
        rate = self.reference.manifest.front_end.sample_rate_hz
        for clip in self.clips.clips:
            next(clip.blocks(rate))  # before the work begins, since one may be no audio
        self.sounds = sounds_of(self.clips.clips, rate)
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
                folder = self.measured / f"answers-{encoder}-{entry.decoder}"
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
        _, facts = own.bundle.text_facts()
        rate = self.reference.manifest.front_end.sample_rate_hz
        found = []
        for index, clip in enumerate(self.clips.clips):
            truth = (*clip.references, *([clip.transcript] if clip.transcript is not None else []))
            said = {entry.spec.name: cells[entry.encoder, entry.decoder][index].text for entry in entries}
            found.append(
                ClipTexts(
                    clip=clip.id,
                    seconds=round(len(clip.read(rate)) / rate, 2),
                    prompt=clip.prompt or facts.prompt,
                    references=truth,
                    texts={own.spec.name: answers.texts[index], **said},
                )
            )
        return tuple(found)

    def _assemble(
        self, reference: Candidate, candidates: tuple[Candidate, ...], noise: NoiseFloor, texts: tuple[ClipTexts, ...]
    ) -> Report:
        machine = examine()
        calibrate = self.options.calibrate
        return Report(
            tool=f"dasheng-edge {version('dasheng-edge')}",
            created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            model=self.reference.manifest.name,
            machine={
                "cpu": machine.cpu, "cores": str(machine.usable_cores), "features": " ".join(machine.cpu_flags),
                "python": machine.python, **{
                    name: found for name in ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python")
                    if (found := machine.versions.get(name))
                },
            },
            settings=Settings(
                clips=len(texts), clips_sha256=self.clips_sha256, audio_s=sum(clip.seconds for clip in texts),
                calibration_clips=len(find_clips(calibrate).clips) if calibrate else None,
                max_new_tokens=self.limit, threads=self.threads, bootstrap_draws=DRAWS,
            ),
            reference=reference,
            noise_floor=noise,
            candidates=candidates,
            clips=texts,
            recommendation=recommend(reference, candidates, noise),
            limits=limits(self.reference, len(texts)),
        )  # fmt: skip


def check_same_model(reference: Bundle, candidate: Bundle) -> None:
    """Whether distributions and embeddings of two bundles can be compared at all.

    Raises:
        BundleKindError: the candidate has no decoder.
        ClipsError: it is of another shape.
    """
    shapes = []
    for bundle in (reference, candidate):
        decoder, _ = bundle.text_facts()
        encoder = bundle.manifest.encoder
        shapes.append((encoder.embed_dim, encoder.depth, decoder.arch, decoder.hidden_size, decoder.vocab_size))
    if shapes[0] != shapes[1]:
        raise ClipsError(
            f"{candidate.folder} is another model than {reference.folder}: embed_dim, depth, arch, hidden_size and "
            f"vocab_size are {shapes[1]}, expected {shapes[0]}; compare bundles of one checkpoint"
        )


def _scores(answers: Sequence[Answer]) -> DecoderScores:
    return decoder_scores([answer.decoding for answer in answers])


def recipe_facts(bundle: Bundle) -> RecipeFacts:
    """What a bundle's manifest says it is made of."""
    decoder, _ = bundle.text_facts()
    quantization = bundle.manifest.quantization
    imatrix = quantization.imatrix if quantization else None
    return RecipeFacts(
        encoder=bundle.manifest.encoder.precision,
        decoder=decoder.precision,
        kv_type=decoder.kv_type,
        imatrix=Path(imatrix.datasets[0] if imatrix.datasets else imatrix.name).stem if imatrix else None,
        imatrix_sha256=imatrix.sha256 if imatrix else None,
    )


def limits(reference: Bundle, clips: int) -> tuple[str, ...]:
    """What the figures of a comparison cannot say."""
    decoder, _ = reference.text_facts()
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
    if decoder.parameters < SMALL_MODEL:
        said.append(
            f"This decoder has {decoder.parameters / 1e6:.1f} M parameters, a vocabulary of {decoder.vocab_size} and a "
            "narrow task. Which order recipes come in may carry over to the 7B; how much each loses does not, since "
            "small models lose more by coarse types, and sure answers of one pattern hide losses that free text shows."
        )
    return tuple(said)
