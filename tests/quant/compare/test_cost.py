"""Which clips costs are measured on, and in what order; what they come to is tested with the comparison."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.quant.compare import cost
from dasheng_edge.quant.compare.cost import MEASURED_CLIPS, Measurement, measure_costs, measured_clips
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.machine.load import WAIT_S

MICRO = Path(__file__).resolve().parents[3] / "build" / "micro"


@pytest.mark.parametrize("count", [1, 2, MEASURED_CLIPS - 1, MEASURED_CLIPS])
def test_of_few_clips_all_are_measured(count: int) -> None:
    clips = [Clip(str(index), Path("x")) for index in range(count)]
    assert measured_clips(clips) == clips


@pytest.mark.parametrize("count", [MEASURED_CLIPS + 1, 39, 100, 1001])
def test_of_many_clips_some_are_measured_that_lie_over_all(count: int) -> None:
    clips = [Clip(str(index), Path("x")) for index in range(count)]
    places = [int(clip.id) for clip in measured_clips(clips)]
    assert (len(places), places[0], places[-1]) == (MEASURED_CLIPS, 0, count - 1)
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert 1 <= min(steps) <= max(steps) <= min(steps) + 1


@pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")
def test_bundles_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(MICRO, check_sha256=False)
    bundles = [Bundle(Path(name), bundle.manifest) for name in "ab"]
    order: list[tuple[str, list[str]]] = []

    def turn(bundle: Bundle, clips: list[Clip], *_: Any) -> Measurement:
        order.append((bundle.folder.name, [clip.id for clip in clips]))
        times = [float(clip.id) for clip in clips]
        energy = None if bundle.folder.name == "b" else 5.0
        busy = 0.1 * len(order)
        return Measurement(len(order), times, times, times, [], sum(times), 10.0, 10 * len(order), energy, busy)

    monkeypatch.setattr(cost, "_turn", turn)
    clips = [Clip(str(index), Path("x")) for index in range(MEASURED_CLIPS)]
    first, second = measure_costs(bundles, clips, 1, 4)
    assert [name for name, _ in order] == ["a", "b", "b", "a"] * 2
    assert {len(ids) for _, ids in order} == {5}
    assert sorted((clip for name, ids in order for clip in ids if name == "a"), key=int) == [clip.id for clip in clips]
    assert order[1][1] == order[0][1]
    assert (first.clips, first.encoder_ms.p50, first.energy_j) == (20, 9.5, 1.0)
    assert (first.load_ms, first.peak_rss_bytes, first.others_share) == (4.5, 80, 0.8)
    assert first.real_time_factors == (0.004, 0.0045, 0.005, 0.0055)
    assert (second.energy_j, second.decode_tokens_per_s) == (None, 0.0)


@pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")
def test_other_programs_have_a_while_to_end_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, waits = [0.0], list[float]()

    def wait(_: object, patience_s: float) -> None:
        waits.append(patience_s)
        now_s[0] += min(patience_s, 20.0)

    times = [1.0]
    monkeypatch.setattr(cost, "wait_for_calm", wait)
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(cost, "_turn", lambda *_: Measurement(1.0, times, times, times, times, 1.0, 1.0, 1, None, 0.5))
    clips = [Clip(str(index), Path("x")) for index in range(MEASURED_CLIPS)]
    (measured,) = measure_costs([Bundle.open(MICRO, check_sha256=False)], clips, 1, 4)
    assert waits == [WAIT_S, WAIT_S - 20.0, 0.0, 0.0]
    assert measured.others_share == 0.5
