"""Audio in the page: what the models heard, of as many clips as a page may carry."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
import pytest

from dasheng_edge.quant.compare.record import ClipTexts
from dasheng_edge.quant.report import audio
from dasheng_edge.quant.report.audio import MAX_CLIP_S, RATE_HZ, embedded
from dasheng_edge.quant.report.report import page
from dasheng_edge.runtime.clips.clips import Clip
from tests.fixtures import fake_report

CLIPS = Path(__file__).resolve().parents[3] / "benchmarks" / "micro" / "clips"


def clips(count: int, duration_s: float = 1.0) -> list[Clip]:
    path = min(CLIPS.glob("*.flac"))
    return [Clip(f"scene_{index:03}.flac", path, duration_s=duration_s) for index in range(count)]


def shown(count: int, seconds: float = 1.0) -> list[ClipTexts]:
    return [
        ClipTexts(clip=f"scene_{index:03}.flac", seconds=seconds, prompt="", references=(), texts={})
        for index in range(count)
    ]


def test_a_clip_in_the_page_is_what_the_models_heard() -> None:
    (clip,) = clips(1)
    kind, _, data = embedded(shown(1), [clip])[clip.id].partition(",")
    assert kind == "data:audio/flac;base64"
    with av.open(io.BytesIO(base64.b64decode(data)), "r") as container:
        frames = list(container.decode(audio=0))
    assert {(frame.sample_rate, frame.layout.name) for frame in frames} == {(RATE_HZ, "mono")}
    got = np.concatenate([frame.to_ndarray()[0] for frame in frames]) / 32767
    np.testing.assert_allclose(got, clip.read(RATE_HZ), atol=0.51 / 32767)


def test_the_same_clip_is_the_same_bytes() -> None:
    assert embedded(shown(1), clips(1)) == embedded(shown(1), clips(1))


def test_long_clips_are_left_out_and_the_first_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    order = [*shown(1, MAX_CLIP_S + 0.1), *reversed(shown(5)[1:])]
    size = len(embedded(shown(1), clips(1))["scene_000.flac"])
    monkeypatch.setattr(audio, "MAX_BYTES", 2.5 * size)
    assert list(embedded(order, clips(5))) == ["scene_004.flac", "scene_003.flac"]
    assert list(embedded(order, clips(4))) == ["scene_003.flac", "scene_002.flac"]  # a clip that is not given


def test_answers_stand_beside_what_they_are_about() -> None:
    report = fake_report.report(fake_report.NAMES[:2], 3)
    html = page(report, clips(2))
    assert html.count("<audio ") == 2
    assert "media-src data:" in html
    first = html.index('<article class="clip">')
    assert first < html.index("<audio ") < html.index("Asked: ", first)
    assert "<audio" not in page(report)
