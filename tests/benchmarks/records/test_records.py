"""What the speed benchmarks make of numbers: turns, medians, ratios, targets, and the page of results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render
from benchmarks.records import machine
from benchmarks.records.benchmark import Benchmark, Target, parser, run
from benchmarks.records.plots import Bar, Panel, as_svg, bars, number, stacks
from benchmarks.records.record import SPEED_RESULTS, BenchmarkError, make_record, publish
from benchmarks.records.turns import field, summed_up, take_turns, times
from benchmarks.render import Outcome, benchmarks, outcomes, page, read_records
from benchmarks.speed import busy, encoder, latency, memory, peers, questions, throughput
from benchmarks.speed.decoder import headline as decoder_headline
from dasheng_edge.runtime.machine.gpu import Gpus
from tests.fixtures.fake_gpu import H200
from tests.fixtures.speed_records import (
    Record,
    all_records,
    busy_record,
    decoder_record,
    encoder_record,
    five,
    latency_record,
    memory_record,
    peers_record,
    questions_record,
    throughput_record,
    write_records,
)


def by_name(records: list[Record]) -> dict[tuple[str, str], Record]:
    return {(one["benchmark"], one["model"]): one for one in records}


TARGETS = [target for benchmark in benchmarks().values() for target in benchmark.targets]


def found(records: list[Record], what: str) -> Outcome:
    """The one target whose description and counterpart begin like this."""
    (outcome,) = [
        one for one in outcomes(by_name(records)) if f"{one.target.what} | {one.target.against}".startswith(what)
    ]
    return outcome


def test_variants_take_turns_and_each_comes_first_in_its_time() -> None:
    calls: list[str] = []

    def variant(name: str) -> Callable[[], int]:
        def call() -> int:
            calls.append(name)
            return len(calls)

        return call

    taken = take_turns({"a": variant("a"), "b": variant("b")}, rounds=3, warm_up=1)

    assert "".join(calls) == "abbaabba"
    assert taken == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_a_sum_keeps_every_value() -> None:
    assert summed_up([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": pytest.approx(2.8), "values": [3.0, 1.0, 2.0]}
    assert field([{"s": 1.0, "n": 7}, {"s": 3.0, "n": 7}], "s")["p50"] == 2.0


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that becomes ten times slower changes nothing, as it would between two medians."""
    slow, fast = summed_up([2.0, 2.0, 20.0, 20.0, 20.0]), summed_up([1.0, 1.0, 1.0, 10.0, 10.0])
    assert times(slow, fast) == 2.0
    with pytest.raises(ValueError, match="argument"):
        times(summed_up([1.0]), summed_up([1.0, 2.0]))


def test_fewer_than_five_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser("Measure.", "bundle")
    assert options.parse_args(["B", "--rounds", "6"]).rounds == 6
    assert options.parse_args(["B"]).rounds == 5
    for wrong in ("4", "-5", "many"):
        with pytest.raises(SystemExit):
            options.parse_args(["B", "--rounds", wrong])
    assert "got 'many' rounds, expected a whole number, at least 5" in capsys.readouterr().err


def test_a_record_is_kept_and_the_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = parser("Measure.", "bundle").parse_args(["B", "--threads", "1"])
    made = make_record("encoder", "tiny", given, {"seconds": five(1)})

    path = tmp_path / "new" / "one.json"
    publish(made, path, {"int8_s": 1.0})

    assert json.loads(path.read_text("utf-8")) == json.loads(json.dumps(made))
    assert (made["model"], made["threads"], made["rounds"]) == ("tiny", 1, 5)
    assert {"cpu", "commit", "versions"} <= made["machine"].keys()
    assert made["took_s"] >= 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "benchmark": "encoder", "model": "tiny", "int8_s": 1.0,
    }  # fmt: skip
    assert [one.name for one in path.parent.iterdir()] == ["one.json"]


def test_a_busy_machine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish({**encoder_record(), "others_share": 0.25}, tmp_path / "one.json", {})
    assert "other programs used 25% of the machine meanwhile" in capsys.readouterr().err


def test_a_name_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setattr("benchmarks.records.benchmark.SPEED_RESULTS", tmp_path)
    given = parser("Measure.", "bundle").parse_args([str(tiny_bundle), "--model", "0.6b"])
    assert run(Benchmark("memory", lambda _: {}, memory.section), given, lambda _: {"facts": 1}) == 0
    assert [(one.name, json.loads(one.read_text("utf-8"))["facts"]) for one in tmp_path.iterdir()] == [
        ("memory-0.6b.json", 1)
    ]


@pytest.mark.parametrize(
    ("what", "value", "met"),
    [
        ("encoder 630M int8 | ONNX", 4.0, True),
        ("encoder 630M int8 | PyTorch bf16", 2.0, True),
        ("encoder 630M ONNX", 4.0, True),
        ("encoder 630M int8 | its GEMMs", 0.75, False),
        ("prefill, 0.6B", 0.98, True),
        ("decode, 0.6B", 0.9, False),
        ("prefill, 7B", 0.98, True),
        ("decode, 7B", 0.9, False),
        ("time to first token, 10 s of audio, 0.6B int8 + Q4_K_M, prompt in the cache | transformers fp32", 4.0, True),
        ("time to first token, 10 s of audio, 0.6B int8 + Q4_K_M, prompt in the cache | transformers bf16", 2.0, True),
        ("caption of 40 tokens, 10 s of audio, 0.6B | transformers fp32", 8.0, True),
        ("caption of 40 tokens, 10 s of audio, 0.6B | transformers bf16", 3.0, False),
        ("caption of 40 tokens, 10 s of audio, 7B | transformers bf16", 3.0, False),
        ("static tokens", 0.0, True),
        ("peak resident memory of captioning", 300.0, False),
        ("import", -0.1, True),
        ("captions beside other programs, 0.6b", 1.1, True),
        ("peak resident memory, 5 h of audio", 1.05, True),
        ("time of 5 h of audio", 0.01, True),
        ("four questions in one hearing, 10 s", 0.6, False),
        ("four questions in one hearing, 30 s", 0.4, True),
        ("what following costs on a quiet machine, micro", 0.0, True),
        ("process start", 1.1, True),
        ("encoder time", 10.0, True),
        ("peak resident memory, 10 min", 20.0, True),
    ],
)
def test_targets_are_computed_from_records(what: str, value: float, met: bool) -> None:
    outcome = found(all_records(), what)
    assert outcome.value == pytest.approx(value)
    assert outcome.met is met


def test_every_target_of_these_records_is_in_that_list() -> None:
    assert sum(one.value is not None for one in outcomes(by_name(all_records()))) == 31
    assert {one["benchmark"] for one in all_records()} <= set(benchmarks())


def test_one_static_token_that_is_prefilled_again_is_one_too_many() -> None:
    assert found([latency_record(prefilled_again=3)], "static tokens").value == 3.0
    assert found([latency_record(prefilled_again=3)], "static tokens").met is False


def test_no_number_meets_no_target() -> None:
    assert not any(target.met(math.nan) for target in TARGETS)
    assert all(target.met(target.bound) for target in TARGETS)


def test_a_llama_bench_for_any_cpu_is_no_measure() -> None:
    other = {**decoder_record("0.6b"), "llama_bench": "a library for any CPU"}
    assert found([other], "decode, 0.6B").met is False
    assert page(by_name([other]), ".").count("| at least 0.97× | not comparable | **no** |") == 2


def test_what_is_missing_is_said_to_be_missing() -> None:
    text = page(by_name([encoder_record()]), "results/speed")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert sum(row.endswith("| missing | missing |") for row in rows) == len(TARGETS) - 4
    assert "- The record `decoder-0.6b.json` is missing; `make bench` makes it." in text
    assert "- The record `peers-7b.json` is missing; `make bench-full` makes it." in text
    assert "encoder-dasheng-0.6b.json` is missing" not in text


def test_a_page_without_records_says_so() -> None:
    text = page({}, "results/speed")
    assert text.count("| missing | missing |") == len(TARGETS)
    assert "## Machines" not in text
    assert "Measured on" not in text


def test_the_page_shows_each_record_and_what_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, out = write_records(tmp_path / "results" / "speed", all_records()), tmp_path / "RESULTS.md"

    assert render.main(["--results", str(results), "--out", str(out)]) == 0

    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == {"page": "RESULTS.md", "met": 24, "missed": 7, "missing": len(TARGETS) - 31}
    assert "missed: decode, 0.6B Q4_K_M, against llama-bench" in "\n".join(said)
    text = out.read_text("utf-8")
    assert text.count("| missing | missing |") == len(TARGETS) - 31
    assert "| encoder 630M int8 | its GEMMs alone in int8 | at least 80 % | 75.0 % | **no** |" in text
    assert "| encoder 630M int8 | PyTorch bf16 | at least 1.9× | 2.00× | yes |" in text
    assert "| ONNX Runtime int8 | 1000.0 | 1060.0 | 16.00 | 35.2 | 640 |" in text  # speed and error in one row
    assert "reach 800 GOP/s in int8 and 200 in fp32, of which ONNX Runtime's fp32 encoder gets 75%" in text
    assert "int8 would be 5.16 times as fast" in text
    assert "| 10 s: llama.cpp mtmd F16 | 637 | 9.000 | 9.540 | 30.0 | 750 |" in text
    assert "| continuous, 16 together | 16.0 | 17.0 | 120 | 2.25 | 1.2 |" in text
    assert "| 30 s, audio, text | 1.00 | 0.40 | 0.40 |" in text
    assert "| threads follow, times the best | 1.00 | 1.10 | 1.00 |" in text
    assert text.count("```text\nTestium 5") == 1  # one machine, one card
    plots = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(plots) == 14
    for plot in plots:
        assert (tmp_path / plot).read_text("utf-8").startswith("<?xml")


def test_the_page_begins_with_what_a_reader_wants_and_ends_with_the_targets() -> None:
    text = page(by_name(all_records()), ".")
    top, _, _ = text.partition("\n## ")
    head, _, *lines = [line for line in top.splitlines() if line.startswith("|")]
    assert head == "|  | 0.6b | 7b |"
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert rows["caption of 40 tokens about 10 s of audio"] == ["1.00 s", "1.00 s"]
    assert rows["the same with transformers bf16"] == ["3.00 s, 3.0 times ours", "3.00 s, 3.0 times ours"]
    assert rows["the same with transformers fp32"] == ["8.00 s, 8.0 times ours", "-"]
    assert rows["its peak memory, transformers fp32"] == ["3,000 MB", "-"]
    assert rows["tokens written in a second"] == ["45.0", "45.0"]
    assert "Measured on Testium 5, 2 usable cores, 8.0 GiB." in top
    assert list(benchmarks())[:2] == ["peers", "latency"]
    assert text.index("## Machines") < text.index("## Targets")


def test_gpus_are_on_the_card_of_a_machine_that_has_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpus", lambda: Gpus((), "none"))
    bare = machine.card()
    assert "gpus" not in bare
    monkeypatch.setattr(machine, "find_gpus", lambda: Gpus((H200,), ""))
    assert machine.hardware(machine.card()) == f"{H200}, {machine.hardware(bare)}"


def test_another_machine_has_a_card_of_its_own() -> None:
    other = memory_record()
    other["machine"] = {**other["machine"], "cpu": "Otherium"}
    text = page(by_name([encoder_record(), other]), ".")
    assert "encoder-dasheng-0.6b:\n\n```text\nTestium 5" in text
    assert "memory-0.6b:\n\n```text\nOtherium" in text


def test_the_same_record_draws_the_same_plot() -> None:
    for one in all_records():
        section = benchmarks()[one["benchmark"]].section
        assert as_svg(section(one).plot) == as_svg(section(one).plot)


def test_plots_say_which_way_is_better_and_give_each_panel_its_axis() -> None:
    rows = [Bar("one", [900.0, 1000.0], 950.0, ours=True), Bar("other", [800.0], 800.0, ours=False)]
    small = Panel([Bar("one", [9.0], 9.0, ours=True)], "seconds")
    panels = [Panel(rows, "prefill, tokens per second", "higher"), small]
    figure = bars(panels, "title")
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["prefill, tokens per second; higher is better", "seconds; lower is better"]
    assert figure.axes[0].get_xlim()[1] > 1000
    assert figure.axes[1].get_xlim()[1] < 10
    stages = stacks({"10 s": {"encoder": 1.0, "prefill": 2.0}}, "milliseconds", "title")
    assert stages.axes[0].get_xlabel() == "milliseconds; lower is better"
    (decoder,) = [one for one in all_records() if (one["benchmark"], one["model"]) == ("decoder", "7b")]
    prefill, decode = benchmarks()["decoder"].section(decoder).plot.axes
    assert prefill.get_xlabel() != decode.get_xlabel()


def test_a_target_says_what_it_wants_and_what_there_is() -> None:
    def target(bound: float, unit: Any, *, at_most: bool = False) -> Target:
        return Target("a", "b", bound, unit, "m", lambda _: 0.0, at_most)

    assert [target(3.0, "times").wanted, target(3.0, "times").shown(2.999)] == ["at least 3×", "3.00×"]
    assert [target(0.97, "times").wanted, target(0.97, "times").shown(0.9696)] == ["at least 0.97×", "0.970×"]
    assert [target(0.8, "share").wanted, target(0.8, "share").shown(0.7996)] == ["at least 80 %", "80.0 %"]
    assert [target(0.25, "seconds", at_most=True).wanted, target(0.25, "seconds").shown(-0.0543)] == [
        "at most 0.25 s", "-0.054 s",
    ]  # fmt: skip
    assert [target(0, "tokens", at_most=True).wanted, target(0, "tokens").shown(4.0)] == ["at most 0", "4"]
    assert target(250, "MB").shown(227.26) == "227.3 MB"


def test_numbers_on_plots_can_be_read() -> None:
    assert [number(value) for value in (0.01234, 9.876, 123.4, 12345.6)] == ["0.0123", "9.88", "123", "12,346"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no json", "x.json is no record of a speed benchmark"),
        ("[]", "x.json is no record of a speed benchmark"),
        ('{"schema_version": 1}', "x.json is no record of a speed benchmark"),
        ('{"schema_version": 2, "benchmark": "encoder", "model": "m"}', "x.json is of version 2 of 'encoder'"),
        ('{"schema_version": 1, "benchmark": "zeal", "model": "m"}', "x.json is of version 1 of 'zeal', expected 1 of"),
    ],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, why: str
) -> None:
    (tmp_path / "x.json").write_text(content, "utf-8")
    with pytest.raises(BenchmarkError, match=re.escape(why)):
        read_records(tmp_path)
    assert render.main(["--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 1
    assert why in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_a_record_of_an_older_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {name: value for name, value in decoder_record("0.6b").items() if name != "prompt_tokens"}
    results = write_records(tmp_path / "results", [old])
    assert render.main(["--results", str(results), "--out", str(tmp_path / "page.md")]) == 1
    assert "decoder-0.6b.json lacks 'prompt_tokens'" in capsys.readouterr().err


def test_headlines_are_the_same_numbers() -> None:
    assert encoder.headline(encoder_record())["int8_share_of_gemm_peak"] == pytest.approx(0.75)
    assert encoder.headline(encoder_record())["gemm_peak_gops"] == pytest.approx(800)
    assert encoder.headline(encoder_record())["fp32_share_of_gemm_peak"] == pytest.approx(0.75)
    assert busy.headline(busy_record("micro"))["times the best, 1 loop"] == pytest.approx(1.1)
    assert list(throughput.headline(throughput_record()).values()) == pytest.approx([2, 1.2])
    assert list(questions.headline(questions_record()).values()) == pytest.approx([0.6, 0.4, 0.6, 0.4, 16])
    assert decoder_headline(decoder_record("7b"))["decode_ratio"] == pytest.approx(0.9)
    assert latency.headline(latency_record())["start_times_bare"] == pytest.approx(1.1)
    assert memory.headline(memory_record())["over_bundle_mb"] == pytest.approx(350)
    assert peers.headline(peers_record())["transformers_fp32_total_times_as_long"] == pytest.approx(8)


@pytest.mark.skipif(not render.PAGE.exists(), reason="nothing is measured yet")
def test_the_page_is_that_of_the_records() -> None:
    assert render.PAGE.read_text("utf-8") == page(read_records(SPEED_RESULTS), "results/speed"), "run benchmarks.render"
