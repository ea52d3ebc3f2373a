"""Comparisons from end to end on the small model: attribution, the noise floor, resumption, and what is refused."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_compare as compare_module
from dasheng_edge.quant import bundle_quant
from dasheng_edge.quant.bundle_compare import REFERENCE, CompareOptions, compare
from dasheng_edge.quant.compare import cost, measurements
from dasheng_edge.quant.compare.cost import measure_costs
from dasheng_edge.quant.compare.measurements import Answering
from dasheng_edge.quant.compare.recommend import MIN_TURNS
from dasheng_edge.quant.compare.record import Interval, Report, TaskScore
from dasheng_edge.quant.report.report import limits, write_report
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.clips.clips import read_clips
from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioTooLongError,
    ClipsError,
    DecoderError,
    OutputWriteError,
    QuantizeError,
)
from dasheng_edge.runtime.progress import NoProgress, StepReport
from dasheng_edge.runtime.text.decoder import Decoder

REPOSITORY = Path(__file__).resolve().parents[2]
MICRO, CLIPS = REPOSITORY / "build" / "micro", REPOSITORY / "benchmarks" / "micro" / "clips"
pytestmark = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")
NAMES = ("scene_9000001.flac", "scene_9000006.flac", "scene_9000018.flac")


@pytest.fixture(scope="module", autouse=True)
def one_turn() -> Iterator[None]:
    """Costs are measured in one turn, unless a test is about turns: each takes a process for every bundle.

    Of probes of each length there are two, since four of 60 s take as long as all else.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MIN_TURNS", 1)
        patch.setattr(measurements, "PROBES", 2)
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clips.jsonl"
    known = {row["file"]: row for row in map(json.loads, (CLIPS / "references.jsonl").read_text("utf-8").splitlines())}
    rows: list[dict[str, Any]] = [
        {"audio": str(CLIPS / name), "id": name, "references": known[name]["captions"], "events": known[name]["kinds"]}
        for name in NAMES
    ]
    rows.append({
        "audio": str(CLIPS / "digits_9000008.flac"), "prompt": "Transcribe the speech into text <|en|>",
        "transcript": known["digits_9000008.flac"]["digits"],
    })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def options(clips: Path, out: Path, *candidates: str, **more: Any) -> CompareOptions:
    return CompareOptions(MICRO, candidates, clips, out, max_new_tokens=24, threads=1, **more)


@pytest.fixture(scope="module")
def done(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare(options(clips, out, "fp32/F16", "int4-block/Q2_K", "int8/F16", "fp32/Q8_0")), out


def stored(done: tuple[Report, Path], out: Path, what: str = ".") -> Path:
    """A folder in which that run's work is stored, as if the same had been asked there before; all of it or a part."""
    shutil.copytree(done[1] / "work" / what, out / "work" / what, copy_function=os.link)
    return out


def test_the_same_model_is_the_same(done: tuple[Report, Path]) -> None:
    same = done[0].candidates[0]
    assert same.encoder is not None
    assert same.both is not None
    assert (same.encoder.snr_db, same.both.kl_mean.value, same.both.same_top1.value) == (None, 0.0, 1.0)
    assert same.both.identical.value == 1.0
    assert same.encoder_only is None
    assert all(score.change is not None and score.change.value == 0 for score in same.task.values())


def test_the_loss_is_attributed(done: tuple[Report, Path]) -> None:
    report, _ = done
    both, encoder, decoder = report.candidates[1:]
    assert both.both is not None
    assert both.encoder_only is not None
    assert both.decoder_only is not None
    assert min(both.both.kl_mean.value, both.decoder_only.kl_mean.value) > 1e-4
    assert both.encoder_only.kl_mean.value > 1e-6
    # One part alone: nothing to tell apart, and the floor of rounding lies below.
    for alone in (encoder, decoder):
        assert alone.encoder_only is None
        assert alone.decoder_only is None
        assert alone.both is not None
        assert alone.both.kl_mean.value > report.noise_floor.decoder.kl_mean.value
    assert decoder.encoder is not None
    assert decoder.encoder.snr_db is None
    assert report.noise_floor.decoder.kl_mean.value < 1e-6
    assert encoder.encoder is not None
    assert [part.seconds for part in encoder.encoder.by_length] == [1, 5, 10, 30, 60]
    assert all(part.snr_db is not None and part.snr_db > 25 for part in encoder.encoder.by_length)


def test_scores_costs_and_texts(done: tuple[Report, Path]) -> None:
    report, out = done
    assert set(report.reference.task) == {"word_error_rate", "exact_match", "event_f1", "rouge_l", "cider_d"}
    assert report.reference.both is None
    assert report.reference.task["event_f1"].value.value > 0.5
    for one in (report.reference, *report.candidates):
        assert one.cost.peak_rss_bytes is None or one.cost.peak_rss_bytes > 50e6
        assert one.cost.first_token_ms.p50 > 0
        assert one.cost.clips == 4
        assert one.cost.decode_tokens_per_s > 0
    sizes = {one.name: one.cost.decoder_bits_per_weight for one in report.candidates}
    assert 2 < sizes["int4-block/Q2_K"] < 4
    assert 8 < sizes["fp32/Q8_0"] < 9
    assert 16 < sizes["int8/F16"] < 17
    assert [clip.clip for clip in report.clips][:3] == list(NAMES)
    assert set(report.clips[0].texts) == {REFERENCE, *sizes}
    assert report.clips[1].texts[REFERENCE].startswith("a guitar plays")
    assert Report.model_validate_json((out / "report.json").read_text("utf-8")) == report
    for name in ("report.md", "report.html"):
        page = (out / name).read_text("utf-8").replace("\\", "")  # Markdown is escaped
        assert "int4-block/Q2_K" in page
        assert str(REPOSITORY) not in page


def test_a_second_run_measures_nothing_again(
    done: tuple[Report, Path], clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(_: Answering) -> None:
        raise AssertionError("a decoder was opened")

    monkeypatch.setattr(Answering, "_opened", opened)
    monkeypatch.setattr(AudioInputParts, "open", opened)
    before, out = done
    costs = [one.cost for one in (before.reference, *before.candidates)]  # which are of the run, and measured anew
    monkeypatch.setattr(compare_module, "measure_costs", lambda bundles, *_: costs[: len(bundles)])
    again = compare(options(clips, out, "fp32/F16", "int4-block/Q2_K", "int8/F16", "fp32/Q8_0"))
    assert [one.both for one in again.candidates] == [one.both for one in before.candidates]


@pytest.mark.slow
def test_a_killed_run_goes_on(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = options(clips, tmp_path / "out", "fp32/Q8_0")
    answer = Answering._answer
    measured: list[bool] = []
    stored: list[bool] = []

    def dies(self: Answering, *arguments: Any) -> Any:
        if measured.count(True) == 5 and not stored:
            raise KeyboardInterrupt
        row, is_new = answer(self, *arguments)
        measured.append(is_new)
        return row, is_new

    monkeypatch.setattr(Answering, "_answer", dies)
    with pytest.raises(KeyboardInterrupt):
        compare(asked)
    assert not (tmp_path / "out" / "report.json").exists()
    stored, measured = measured, []
    assert len(compare(asked).candidates) == 1
    assert stored == [True] * 5
    assert len(measured) == 4 + 4 + 4  # the reference, the candidate and the noise floor
    assert measured.count(False) == 5


@pytest.mark.slow
def test_published_scores_are_asked_for(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, bool]] = []

    def scores(answers: Any, references: Any, reference_answers: Any) -> dict[str, TaskScore]:
        asked.append((len(answers), len(references), reference_answers is None))
        value = Interval(value=0.5, low=0.4, high=0.6)
        return {"fense": TaskScore(value=value, change=None, clips=3, better="higher")}

    monkeypatch.setattr(compare_module, "extra_scores", scores)
    monkeypatch.setattr(compare_module, "aac_library", lambda: None)
    report = compare(options(clips, tmp_path / "out", "fp32/Q8_0", aac_metrics=True))
    assert asked == [(3, 3, True), (3, 3, False)]  # the clips with references
    assert report.candidates[0].task["fense"].value.value == 0.5


def test_what_is_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ClipsError, match=r"is there twice"):
        compare(options(clips, out, "fp32/F16", "fp32/F16"))
    for name in ("mixed/F16", "fp32/IQ2_XXS", "fp32/Q4_K_M+imatrix", "tiny"):
        with pytest.raises(ClipsError, match=r"is measured on clips; pass --calibrate CLIPS"):
            compare(options(clips, out, name))
    with pytest.raises(ClipsError, match=r"there is no importance matrix .*nowhere"):
        compare(options(clips, out, "fp32/Q8_0", "fp32/Q4_K_M+imatrix=/nowhere/x.gguf"))
    with pytest.raises(AudioTooLongError, match=r"clip scene_9000001\.flac has .* audio tokens; with 4090 new tokens"):
        compare(CompareOptions(MICRO, ("fp32/Q8_0",), clips, out, max_new_tokens=4090, threads=1))
    assert not out.exists()


def test_published_scores_of_one_clip_are_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    rows = clips.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text(rows[0] + rows[3], "utf-8")  # one with captions, one with a transcript
    with pytest.raises(ClipsError, match=r"at least two clips, each with a reference; got 1, 0 without"):
        compare(options(tmp_path / "few.jsonl", tmp_path / "out", "fp32/Q8_0", aac_metrics=True))
    assert not (tmp_path / "out").exists()


def test_a_cost_that_cannot_be_measured_says_why(clips: Path, tmp_path: Path) -> None:
    broken = Bundle(tmp_path, Bundle.open(MICRO).manifest)
    with pytest.raises(QuantizeError, match=r"no manifest\.json in it.*try `dasheng-edge caption`"):
        measure_costs([broken], read_clips(clips).clips, 1, 4)


def test_the_command(done: tuple[Report, Path], clips: Path, tmp_path: Path) -> None:
    out = stored(done, tmp_path / "out")
    result = CliRunner().invoke(build_app(), [
        "compare", str(MICRO), "fp32/Q8_0", "--clips", str(clips), "--out", str(out), "--threads", "1",
        "--max-new-tokens", "24",
    ])  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "fp32/Q8_0" in result.stdout
    assert "same top-1" in result.stdout
    assert "report.html" in result.stdout


def test_another_model_is_refused(clips: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ClipsError, match=r"is another model than .*expected \(256, 6, 'qwen2', 256, 768\)"):
        compare(options(clips, tmp_path / "out", "fp32/Q8_0", str(tiny_bundle)))
    assert not (tmp_path / "out").exists()


def test_a_clip_that_is_no_audio_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_text("no audio")
    with pytest.raises(AudioDecodeError):
        compare(options(tmp_path / "x.wav", tmp_path / "out", "fp32/Q8_0"))
    assert not (tmp_path / "out").exists()


def test_clips_that_cannot_be_used_are_left_out_by_name(
    done: tuple[Report, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "MIN_TURNS", MIN_TURNS)
    (tmp_path / "x.wav").write_text("no audio")
    rows = clips.read_text("utf-8") + json.dumps({"audio": str(tmp_path / "x.wav"), "id": "noise"}) + "\n"
    (tmp_path / "with.jsonl").write_text(rows, "utf-8")
    told: list[StepReport] = []
    progress = NoProgress()
    progress.end = told.append  # type: ignore[assignment,method-assign]
    report = compare(options(tmp_path / "with.jsonl", stored(done, tmp_path / "out"), "fp32/F16"), progress)
    assert [clip.clip for clip in report.clips] == [*NAMES, "digits_9000008.flac"]
    assert report.settings.clips == 4
    steps = [step.name for step in told]
    assert {"reference: encoder", "reference: answers", "reference: decoder", "costs: turn 4 of 4"} <= set(steps)
    for said in (told[0].note, " ".join(report.limits)):
        assert "left out" in said.lower()
        assert "x.wav" in said


@pytest.mark.parametrize(
    "stage", ["encoder", *(pytest.param(s, marks=pytest.mark.slow) for s in ("reference", "decoder", "costs", "page"))]
)
def test_a_clip_that_fails_on_the_way_is_left_out_and_the_others_go_on(
    done: tuple[Report, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    rows = [json.loads(line) for line in clips.read_text("utf-8").splitlines()]
    for row in rows:
        row["audio"] = shutil.copy(row["audio"], tmp_path)
    clips = tmp_path / "clips.jsonl"
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    gone, out = tmp_path / NAMES[1], stored(done, tmp_path / "out")
    work = next((out / "work").glob("clips-*"))
    monkeypatch.setattr(measurements, "PROBE_LENGTHS_S", (1,))

    def remove(function: Any) -> Any:
        def removed(*arguments: Any) -> Any:
            gone.unlink(missing_ok=True)
            return function(*arguments)

        return removed

    if stage == "encoder":
        shutil.rmtree(next(work.glob("embeddings-*")))
        monkeypatch.setattr(compare_module, "sounds_of", remove(measurements.sounds_of))
    elif stage in ("reference", "decoder"):
        for folder in list(work.glob("reference-*" if stage == "reference" else "reference-*/answers-*")):
            shutil.rmtree(folder)
        score, asked = Decoder.score, itertools.count()

        def failing(decoder: Any, segments: Any, answer: Any) -> Any:
            if next(asked) == 1:
                raise DecoderError("it does not fit")
            return score(decoder, segments, answer)

        monkeypatch.setattr(Decoder, "score", failing)
    else:
        name, function = ("measure_costs", measure_costs) if stage == "costs" else ("write_report", write_report)
        monkeypatch.setattr(compare_module, name, remove(function))
    report = compare(options(clips, out, "fp32/Q8_0"))
    left = [name for name in (*NAMES, "digits_9000008.flac") if stage == "page" or name != NAMES[1]]
    assert [clip.clip for clip in report.clips] == left
    assert report.settings.clips == report.candidates[0].cost.clips == len(left)
    said = [line for line in report.limits if "eft out" in line]
    assert len(said) == (stage != "page")
    assert NAMES[1] in "".join(said) or stage == "page"
    assert (out / "report.html").is_file()


def test_a_full_disk_is_an_output_error(
    done: tuple[Report, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    said = rf"No space left .*; what was measured is kept in {tmp_path / 'out' / 'work'}: free some space"
    with pytest.raises(OutputWriteError, match=said):
        compare(options(clips, stored(done, tmp_path / "out", "bundles"), "fp32/Q8_0"))


@pytest.mark.parametrize("writer", ["quantize_encoder", "write_report"])
def test_a_full_disk_leaves_what_was_measured_whoever_writes(
    done: tuple[Report, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_quant if writer == "quantize_encoder" else compare_module, writer, full)
    monkeypatch.setattr(compare_module, "_report", compare_module._measured)
    out = stored(done, tmp_path / "out")
    if writer == "quantize_encoder":
        shutil.rmtree(out / "work" / "bundles")
    with pytest.raises(OutputWriteError, match=r"No space left") as caught:
        compare(options(clips, out, "int8/F16"))
    assert "nothing was left behind" not in str(caught.value)
    assert f"what was measured is kept in {tmp_path / 'out' / 'work'}" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OutputWriteError, match=r"cannot write .*file/out/report\.json: .*choose another --out$"
    ) as caught:
        compare(options(clips, tmp_path / "file" / "out", "fp32/Q8_0"))
    assert "measured" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_an_importance_matrix_may_come_first(clips: Path, tmp_path: Path) -> None:
    asked = options(clips, tmp_path / "out", "fp32/Q4_K_M+imatrix", "fp32/Q5_K_M+imatrix", calibrate=clips)
    report = compare(asked)
    assert report.candidates[0].recipe.imatrix == "audio"
    text = " ".join(about_clips := [limit for limit in report.limits if "Other programs" not in limit])
    assert text.count("4 clips of 16 s in all are few to calibrate on") == 1
    assert "4 of the 4 clips that were compared hold audio that was calibrated on, too: " in text
    assert "4 clips are few: intervals that are called 95 % ones are too narrow then." in text
    again = [limit for limit in compare(asked).limits if "Other programs" not in limit]
    assert again == about_clips  # nothing was made, and it is known still


@pytest.mark.parametrize(("processors", "other"), [(2, 2), (1, 1)])
def test_the_noise_floor_is_of_another_number_of_threads(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int, other: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(compare_module, "usable_cores", lambda: 1, raising=False)
    plan = compare_module._plan(options(clips, tmp_path / "out", "fp32/Q8_0"), NoProgress())
    assert plan.threads == (1, other)
    told = " ".join(limits(plan.reference.decoder_facts, 30, plan.threads))
    assert ("The noise floor says nothing: " in told) == (other == 1)


def test_a_file_that_may_not_be_used_is_named(
    done: tuple[Report, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/there/x.npy")

    monkeypatch.setattr(np, "save", forbidden)
    said = r"cannot use /there/x\.npy: Permission denied; what was measured is kept in .*work: see to it that "
    with pytest.raises(OutputWriteError, match=said):
        compare(options(clips, stored(done, tmp_path / "out", "bundles"), "fp32/Q8_0"))
