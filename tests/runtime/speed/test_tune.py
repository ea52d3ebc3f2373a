"""What is chosen of what was measured: times are given here, so that no machine's noise decides."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST, KvType
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, Host
from dasheng_edge.runtime.errors import BundleError, DecoderError, MachineBusyError, OutputWriteError
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.speed import timing
from dasheng_edge.runtime.speed import tune as tune_module
from dasheng_edge.runtime.speed.timing import typical_ms
from dasheng_edge.runtime.speed.tune import TuneOptions, TuneReport, named, thread_counts, tune
from dasheng_edge.runtime.tuned import settings_for, stored_fields, tuned_for
from tests.fixtures.bundle_kinds import write_encoder_bundle
from tests.fixtures.fake_machine import CORES, FakeMachine, Others, machine

__all__ = ["machine"]


@pytest.fixture
def quantized(bundle_copy: Path) -> Path:
    """Its manifest says that its decoder is Q4_K_M; nothing is computed with it here."""
    path = bundle_copy / "manifest.json"
    raw = json.loads(path.read_text("utf-8"))
    raw["decoder"]["precision"] = "Q4_K_M"
    path.write_text(json.dumps(raw), "utf-8")
    return bundle_copy


def measured(bundle: Path, **options: object) -> TuneReport:
    return tune(TuneOptions((bundle,), **options))  # type: ignore[arg-type]


def chosen(report: TuneReport) -> Mapping[str, object]:
    return stored_fields(report.tuned[0].choice)


@pytest.mark.parametrize(
    ("cores", "hardware", "counts"),
    [
        (1, 1, [1]),
        (2, 2, [2, 1]),
        (2, 4, [2, 1, 4]),
        (4, 4, [4, 3, 2, 1]),
        (16, 32, [16, 15, 14, 12, 8, 4, 32]),
        (3, 2, [3, 2, 1]),  # a quota may count differently
    ],
)
def test_the_default_comes_first_and_then_what_is_near(cores: int, hardware: int, counts: list[int]) -> None:
    assert thread_counts(cores, hardware) == counts


def test_each_part_gets_what_is_fastest_for_it(tiny_bundle: Path, machine: FakeMachine) -> None:
    machine.answer = lambda prefill, decode, _: (100 / prefill, 10 + abs(decode - 2))
    report = measured(tiny_bundle)
    assert chosen(report) == {
        "encoder_threads": 8,
        "prefill_threads": 8,
        "decode_threads": 2,
        "kv_type": "f16",
        "repack": False,
        "huge_pages": False,
        "batch": 16,
    }
    (tuned,) = report.tuned
    assert tuned.caption_ms == pytest.approx(100 / 8 + 100 / 8 + tune_module.ANSWER_TOKENS * 10)
    stored = tuned_for(Bundle.open(tiny_bundle))
    assert stored is not None
    assert stored.decode_threads == 2
    assert tuned.file is not None
    assert Path(tuned.file).is_file()
    assert report.fastest == str(tiny_bundle)


def test_the_default_is_measured_first_and_then_in_turns_with_what_seems_faster(
    tiny_bundle: Path, machine: FakeMachine
) -> None:
    measured(tiny_bundle)
    encoder = [look for look in machine.looks if isinstance(look, int)]
    assert encoder == [4, 3, 2, 1, 8, 4, 8, 8, 4]


@pytest.mark.parametrize(("faster", "threads"), [(0.98, 4), (0.96, 8)])
def test_a_gain_within_the_noise_changes_nothing(
    tiny_bundle: Path, machine: FakeMachine, faster: float, threads: int
) -> None:
    machine.encode = lambda _, count: {4: 100.0, 8: 100 * faster}.get(count, 200.0)
    report = measured(tiny_bundle)
    assert chosen(report)["encoder_threads"] == threads
    (row,) = [row for row in report.rows if row.part == "encoder" and row.setting == "8 threads"]
    assert row.gain == pytest.approx(1 - faster)
    assert row.chosen == (threads == 8)


def test_what_is_faster_once_and_not_again_is_not_taken(tiny_bundle: Path, machine: FakeMachine) -> None:
    times = iter([100.0, 200.0, 200.0, 50.0, 200.0, 100.0, 99.0, 50.0, 100.0])  # in the order of the test above
    machine.encode = lambda *_: next(times)
    report = measured(tiny_bundle)
    assert chosen(report)["encoder_threads"] == 4
    assert "encoder: 4 threads, the default: 1 thread was 50% faster once, and then not again" in report.reasons[0]


def test_without_time_the_default_is_measured_and_stays(tiny_bundle: Path, machine: FakeMachine) -> None:
    report = measured(tiny_bundle, budget_s=0.0)
    assert chosen(report) == {
        "encoder_threads": 4,
        "prefill_threads": 4,
        "decode_threads": 4,
        "kv_type": "f16",
        "repack": False,
        "huge_pages": False,
        "batch": 16,
    }
    default = EngineSettings(encoder_threads=4, prefill_threads=4, decode_threads=4)
    assert machine.looks == [4, default, default]


def test_what_cannot_be_confirmed_in_time_is_not_taken(tiny_bundle: Path, machine: FakeMachine) -> None:
    report = measured(tiny_bundle, budget_s=12.0)  # six seconds for the encoder: five settings
    assert chosen(report)["encoder_threads"] == 4
    assert "there was no time to confirm that 8 threads is 50% faster" in report.reasons[0]


def test_it_ends_in_time(tiny_bundle: Path, machine: FakeMachine) -> None:
    for budget_s in (10.0, 20.0, 40.0):
        machine.clock.now_s = 0.0
        assert measured(tiny_bundle, budget_s=budget_s).seconds <= budget_s + 1


@pytest.mark.parametrize("allowed", [False, True])
def test_keys_and_values_are_chosen_only_where_that_is_allowed(
    tiny_bundle: Path, machine: FakeMachine, *, allowed: bool
) -> None:
    machine.answer = lambda *args: (50.0, {"f16": 10.0, "q8_0": 5.0, "q4_0": 9.0}[args[2]])
    report = measured(tiny_bundle, allow_kv=allowed)
    assert chosen(report)["kv_type"] == ("q8_0" if allowed else "f16")
    measured_kinds = {row.setting for row in report.rows if row.part == "keys and values"}
    assert measured_kinds == ({"f16", "q8_0", "q4_0"} if allowed else {"f16"})
    assert ("see `dasheng-edge compare`" in report.reasons[-2]) == allowed
    assert report.tuned[0].caption_ms == pytest.approx(12.5 + 50 + 24 * (5 if allowed else 10))


def test_as_many_answers_are_made_together_as_pay(tiny_bundle: Path, machine: FakeMachine) -> None:
    machine.batch = {8: 9.0, 16: 8.0, 32: 6.0, 64: 7.0}.__getitem__
    report = measured(tiny_bundle)
    assert chosen(report)["batch"] == 32
    stored = tuned_for(Bundle.open(tiny_bundle))
    assert stored is not None
    assert settings_for(Bundle.open(tiny_bundle), EngineOptions()).batch == stored.batch == 32
    assert settings_for(Bundle.open(tiny_bundle), EngineOptions(batch=5)).batch == 5
    assert settings_for(Bundle.open(tiny_bundle), EngineOptions("cuda")).batch == 64
    old = report.tuned[0].file
    assert old is not None
    fields = json.loads(Path(old).read_text("utf-8"))
    del fields["batch"]  # as earlier versions left it
    Path(old).write_text(json.dumps(fields), "utf-8")
    assert settings_for(Bundle.open(tiny_bundle), EngineOptions()).batch == 16


def test_a_batch_is_really_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "perf_counter", time.perf_counter)
    bundle = Bundle.open(tiny_bundle, check_sha256=False)
    assert timing.batch_token_ms(bundle, EngineSettings(batch=3)) > 0


def test_a_setting_that_llama_cpp_refuses_is_left_out(tiny_bundle: Path, machine: FakeMachine) -> None:
    def answer(prefill: int, decode: int, kv_type: KvType) -> tuple[float, float]:
        if kv_type == "q4_0" or decode == 3:
            raise DecoderError("llama.cpp cannot make a context")
        return 10 / prefill, 10 / decode

    machine.answer = answer
    report = measured(tiny_bundle, allow_kv=True)
    assert {row.setting for row in report.rows if row.part == "keys and values"} == {"f16", "q8_0"}
    assert "3 threads" not in {row.setting for row in report.rows if row.part == "decode"}


def test_a_default_that_fails_is_an_error(tiny_bundle: Path, machine: FakeMachine) -> None:
    def refuse(*_: object) -> tuple[float, float]:
        raise DecoderError("llama.cpp cannot load it")

    machine.answer = refuse
    with pytest.raises(DecoderError, match="cannot load it"):
        measured(tiny_bundle)
    assert tuned_for(Bundle.open(tiny_bundle)) is None


def test_an_encoder_alone(tiny_bundle: Path, tmp_path: Path, machine: FakeMachine) -> None:
    bundle = write_encoder_bundle(tiny_bundle, tmp_path / "encoder")
    report = measured(bundle)
    assert chosen(report) == {
        "encoder_threads": 8,
        "prefill_threads": 4,
        "decode_threads": 4,
        "kv_type": "f16",
        "repack": False,
        "huge_pages": False,
        "batch": 16,
    }
    assert {row.part for row in report.rows} == {"encoder"}


def test_of_several_bundles_each_is_tuned_and_the_fastest_named(
    tiny_bundle: Path, bundle_copy: Path, machine: FakeMachine
) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest | {"name": "tiny-int8"}))
    machine.encode = lambda folder, threads: (400 if folder == tiny_bundle else 100) / threads
    report = tune(TuneOptions((tiny_bundle, bundle_copy)))
    assert report.fastest == str(bundle_copy)
    assert [row.setting for row in report.rows if row.part == "bundle" and row.chosen] == [str(bundle_copy)]
    assert "`dasheng-edge compare` says what each loses" in report.reasons[-1]
    for folder in (tiny_bundle, bundle_copy):
        assert tuned_for(Bundle.open(folder)) is not None


def test_bundles_of_two_models_are_refused(tiny_bundle: Path, bundle_copy: Path, machine: FakeMachine) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["provenance"] |= {"checkpoint": "other", "checkpoint_sha256": "0" * 64, "adapters": ["birds 12"]}
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"is made of other with birds 12, .*; expected bundles of one model: tune"):
        tune(TuneOptions((tiny_bundle, bundle_copy)))
    assert not machine.looks


def test_where_nothing_can_be_stored_nothing_is_measured(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", "off")
    with pytest.raises(OutputWriteError, match="no place for what was tuned"):
        measured(tiny_bundle)
    assert not machine.looks


def test_beside_others_nothing_is_measured(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = Others(monkeypatch, before=0.45)
    with pytest.raises(MachineBusyError, match=r"use 45% of the machine, .*; end them, and tune again"):
        measured(tiny_bundle)
    assert not machine.looks
    assert len(others.waits) == 1
    assert tuned_for(Bundle.open(tiny_bundle)) is None


@pytest.mark.parametrize("share", [0.11, 0.9])
def test_what_was_measured_beside_others_is_not_stored(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    Others(monkeypatch, *[0.0] * 7, share)  # they come, and stay
    report = measured(tiny_bundle)
    (tuned,) = report.tuned
    assert (tuned.file, tuned.others_share) == (None, share)
    assert tuned_for(Bundle.open(tiny_bundle)) is None


def test_a_measurement_beside_others_that_go_is_made_again(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = Others(monkeypatch, 0.02, 0.5, 0.3, 0.0, 0.04, 0.0)
    times = iter([100.0, 1.0, 1.0])  # one thread fewer seems fast twice, beside others
    machine.encode = lambda *_: next(times, 100.0)
    report = measured(tiny_bundle)
    assert len(others.waits) == 3
    assert [look for look in machine.looks if isinstance(look, int)] == [4, 3, 3, 3, 2, 1, 8]
    assert chosen(report)["encoder_threads"] == 4
    (tuned,) = report.tuned
    assert tuned.others_share == 0.04
    assert tuned_for(Bundle.open(tiny_bundle)) is not None


def test_an_earlier_choice_stays_where_a_later_one_is_not_stored(
    tiny_bundle: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tiny_bundle)
    before = tuned_for(Bundle.open(tiny_bundle))
    Others(monkeypatch, 0.5)
    machine.encode = lambda _, threads: 1.0 * threads
    measured(tiny_bundle)
    assert tuned_for(Bundle.open(tiny_bundle)) == before


def test_threads_are_as_many_as_are_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    opened = list[EngineSettings]()

    def refuse(_: object, settings: EngineSettings) -> None:
        opened.append(settings)
        raise DecoderError("it is not needed")

    monkeypatch.setattr(TextParts, "open", refuse)
    with pytest.raises(DecoderError):
        timing.answer_ms(Bundle.open(tiny_bundle, check_sha256=False), EngineSettings())
    assert not opened[0].adaptive_threads


def test_a_quick_call_is_made_often_and_a_slow_one_once(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> None:
    for seconds, calls in ((0.01, 1 + 50), (0.2, 1 + 5), (0.6, 1 + 4), (30.0, 1 + 1)):
        made: list[float] = []

        def run(seconds: float = seconds, made: list[float] = made) -> None:
            machine.clock.now_s += seconds
            made.append(seconds)

        assert typical_ms(run) == pytest.approx(1000 * seconds)
        assert len(made) == pytest.approx(calls, abs=1)


def test_settings_are_named() -> None:
    assert (named(1), named(2)) == ("1 thread", "2 threads")


@pytest.mark.parametrize(("times", "repack", "why"), [(0.5, True, "which takes at least"), (1.5, False, "the default")])
def test_weights_are_repacked_where_that_is_faster(
    quantized: Path, machine: FakeMachine, times: float, repack: bool, why: str
) -> None:
    machine.repacked = times
    report = measured(quantized)
    assert chosen(report)["repack"] is repack
    assert {row.setting for row in report.rows if row.part == "weights"} == {
        "as stored", "as stored, huge pages", "repacked", "repacked, huge pages"
    }  # fmt: skip
    assert any("weights" in reason and why in reason for reason in report.reasons)


@pytest.mark.parametrize(("times", "huge_pages"), [(0.8, True), (1.2, False)])
def test_huge_pages_are_asked_for_where_that_is_faster(
    quantized: Path, machine: FakeMachine, times: float, huge_pages: bool
) -> None:
    machine.huge_pages = times
    assert chosen(measured(quantized))["huge_pages"] is huge_pages


def test_huge_pages_are_not_tried_where_nobody_gives_them(
    quantized: Path, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "here", lambda: Host(CORES, x86=True, huge_pages=False))
    assert {row.setting for row in measured(quantized).rows if row.part == "weights"} == {"as stored", "repacked"}


def test_floats_have_no_other_layout(tiny_bundle: Path) -> None:
    assert "weights" not in {row.part for row in measured(tiny_bundle).rows}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_real_engines_are_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    if threads > usable_cores():
        pytest.skip("there is one core")
    monkeypatch.undo()
    monkeypatch.setattr(timing, "MIN_RUNS", 1)
    monkeypatch.setattr(timing, "MIN_S", 0.0)
    bundle = Bundle.open(tiny_bundle, check_sha256=False)
    assert timing.encode_ms(bundle, threads) > 0
    prefill_ms, token_ms = timing.answer_ms(bundle, EngineSettings(prefill_threads=threads))
    assert prefill_ms > 0
    assert token_ms > 0
