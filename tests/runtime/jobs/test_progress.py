"""How far a job is."""

from __future__ import annotations

import pytest

from dasheng_edge.runtime.jobs import progress
from dasheng_edge.runtime.jobs.inputs import Input
from dasheng_edge.runtime.output.rows import CaptionRow


class _Clock:
    """Progress of a film in windows, ten seconds of work for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float | None, start_s: float) -> None:
        self.now, self.lines = 0.0, list[str]()
        monkeypatch.setattr(progress, "monotonic", lambda: self.now)
        view = progress.LinesView(self.lines.append)
        film = Input("film.wav", __file__, "film", duration_s=seconds)
        shown = progress.Progress(view, expected=(1, film.size_bytes))
        shown.tally.start = 0.0
        for start in range(int(start_s), int(start_s) + 300, 100):
            self.now += 10
            shown.row(film, CaptionRow(audio="film.wav", start_s=start, end_s=start + 100.0, text="rain"))
        shown.end(film, anew=True)


@pytest.mark.parametrize("start_s", [0, 300])
def test_progress_within_a_file(monkeypatch: pytest.MonkeyPatch, start_s: float) -> None:
    lines = _Clock(monkeypatch, 900.0, start_s).lines
    left = (900 - start_s - 100) / 10
    assert lines[0].startswith(f"0/1 files, {(start_s + 100) // 60}:40/15:00 of this one, {int(left) // 60}:")
    unknown = _Clock(monkeypatch, None, start_s).lines[0]
    assert f"0/1 files, {(start_s + 100) // 60}:40 of this one, 10.0 min" in unknown


@pytest.mark.parametrize("width", [8, 20, 40, 60, 120])
def test_what_there_is_no_room_for_is_left_out(width: int) -> None:
    tally = progress.Tally(files=2, audio_s=9.0)
    tally.fail(Input("a.wav", "a.wav", "a"), CaptionRow(audio="a.wav", error="no", error_type="AudioError"))
    parts, shown = tally.line().split(", "), tally.line(width).split(", ")
    assert shown == parts[: len(shown)]
    assert len(shown) == len(parts) or len(", ".join(parts[: len(shown) + 1])) > width
