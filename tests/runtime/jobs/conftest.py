"""What jobs are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.audio.read import describe_audio
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips, one below, a film of 7 s, and a file that is no audio."""
    folder = tmp_path / "clips"
    (folder / "below").mkdir(parents=True)
    for name, hertz, seconds in (("a", 300, 1), ("b", 400, 1), ("below/a", 500, 1), ("film", 600, 7)):
        write_audio(folder / f"{name}.wav", sine(hertz, seconds, 16_000), WAV)
    (folder / "broken.wav").write_text("no audio")
    return folder


@pytest.fixture(autouse=True)
def opened_once(shared_captioner: Captioner, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands share a captioner: opening one takes longer than what they ask it, and is tried elsewhere."""
    opened = Captioner.open

    def shared(path: str | Path, **options: Any) -> Captioner:
        free = Path(path) == tiny_bundle and not shared_captioner._lock.locked()
        return shared_captioner if free else opened(path, **options)

    monkeypatch.setattr(Captioner, "open", shared)
    monkeypatch.setattr(shared_captioner, "close", lambda: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model was asked about, by name."""
    names: list[str] = []
    rows = ClipAudio.rows

    def noted(self: ClipAudio) -> Any:
        names.append(Path(describe_audio(self.source)).name)
        return rows(self)

    monkeypatch.setattr(ClipAudio, "rows", noted)
    return names
