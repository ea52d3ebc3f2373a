from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError, SubtitleError
from dasheng_edge.runtime.live.log import LiveLog
from dasheng_edge.runtime.output.rows import CaptionRow
from dasheng_edge.runtime.subtitles.cue import Cue
from dasheng_edge.runtime.subtitles.lint import lint
from tests.fixtures.full_disk import largest_file

BLOCK = re.compile(r"(\d+)\n(\S+) --> (\S+)\n(.+(?:\n.+)?)\n", re.MULTILINE)


def row(start_s: float, end_s: float, text: str = "a dog barks") -> CaptionRow:
    return CaptionRow(audio="room", start_s=start_s, end_s=end_s, text=text)


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def cues_of(text: str) -> list[Cue]:
    """The cues of a SubRip file, all of which is cues, numbered from 1 on."""
    blocks = text.split("\n\n")
    assert "\n\n".join(blocks) == text
    matches = [BLOCK.fullmatch(block.rstrip("\n") + "\n") for block in blocks] if text else []
    assert all(matches)
    found = [match for match in matches if match]
    assert [int(match[1]) for match in found] == list(range(1, len(found) + 1))
    return [Cue(seconds(match[2]), seconds(match[3]), tuple(match[4].split("\n"))) for match in found]


@given(st.lists(st.tuples(st.floats(0.4, 20), st.floats(0.4, 10), st.text(max_size=200)), max_size=8))
@settings(max_examples=12, deadline=None)
def test_files_are_valid_after_every_row(
    tmp_path_factory: pytest.TempPathFactory, windows: list[tuple[float, float, str]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    srt, jsonl = folder / "a.srt", folder / "a.jsonl"
    with LiveLog(srt, jsonl) as log:
        at = 0.0
        for count, (step_s, length_s, text) in enumerate(windows, 1):
            at += step_s
            log.write(row(at, at + length_s, text))
            lines = jsonl.read_bytes().decode().splitlines(keepends=True)
            assert len(lines) == count
            assert json.loads(lines[-1])["text"] == text
            assert not lint(cues_of(srt.read_bytes().decode()))


def test_errors_are_rows_and_no_subtitles(tmp_path: Path) -> None:
    with LiveLog(tmp_path / "a.srt", tmp_path / "a.jsonl") as log:
        log.write(CaptionRow(audio="room", start_s=0, end_s=1, error="dropped", error_type="WindowDropped"))
        log.write(row(2, 3))
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    (cue,) = cues_of((tmp_path / "a.srt").read_text())
    assert cue == Cue(2.0, cue.end_s, ("[dog barks]",))


def test_what_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite or choose another --srt"):
        LiveLog(tmp_path / "a.srt", tmp_path / "a.jsonl")
    assert (tmp_path / "a.srt").read_text() == "precious"
    with LiveLog(tmp_path / "a.srt", None, overwrite=True) as log:
        log.write(row(0, 1))
    assert cues_of((tmp_path / "a.srt").read_text())


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old.srt", tmp_path / "new.jsonl"
    old.write_text("precious")
    with pytest.raises(OSError, match="unplugged"), LiveLog(old, new, overwrite=True):
        raise OSError("unplugged")
    with pytest.raises(OutputExistsError), LiveLog(new, old):
        pass
    assert (old.read_text(), new.exists()) == ("precious", False)
    with LiveLog(old, None, overwrite=True):
        pass
    assert old.read_text() == ""  # nothing was heard


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with LiveLog(tmp_path / "a.srt", None) as log:
        log.write(row(0, 1))
        before = (tmp_path / "a.srt").read_text()
        with pytest.raises(OutputExistsError, match="another process writes"):
            LiveLog(tmp_path / "a.srt", None, overwrite=True)
        assert (tmp_path / "a.srt").read_text() == before


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputWriteError, match="No such file"):
        LiveLog(None, tmp_path / "missing" / "a.jsonl")
    with pytest.raises(OutputWriteError, match="directory"):
        LiveLog(None, tmp_path, overwrite=True)
    with pytest.raises(SubtitleError, match="style"):
        LiveLog(None, None, style="loud")
    if Path("/dev/full").exists():
        with LiveLog(None, Path("/dev/full"), overwrite=True) as log, pytest.raises(OutputWriteError, match="No space"):
            log.write(row(0, 1))


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with LiveLog(None, path) as log, largest_file(1000):
        with pytest.raises(OutputWriteError, match=str(path)):
            deque(map(log.write, [row(0, 1)] * 100), maxlen=0)
        size = path.stat().st_size
    assert path.read_text().endswith("}\n")
    assert 500 < size <= 1000


KILLED = """
import sys
from collections import deque
from pathlib import Path
from dasheng_edge.runtime.live.log import LiveLog
from dasheng_edge.runtime.output.rows import CaptionRow
log = LiveLog(Path(sys.argv[1]), Path(sys.argv[2]))
for n in range(1_000_000):
    log.write(CaptionRow(audio="room", start_s=8.0 * n, end_s=8.0 * n + 7, text=f"a dog barks {n} times"))
    print(n, flush=True)
"""


def test_a_killed_process_leaves_whole_files(tmp_path: Path) -> None:
    srt, jsonl = tmp_path / "a.srt", tmp_path / "a.jsonl"
    with subprocess.Popen([sys.executable, "-c", KILLED, srt, jsonl], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(line) for line, _ in zip(process.stdout, range(20), strict=False)]
        process.send_signal(signal.SIGKILL)
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert len(rows) > seen[-1]
    assert jsonl.read_text().endswith("}\n")
    assert len(cues_of(srt.read_text())) >= len(rows) - 1
