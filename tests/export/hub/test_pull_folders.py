"""The folder that `pull` makes, and the partial one beside it: what may be in them before, and what never is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dasheng_edge.export.files.pull_record import PULL_RECORD
from dasheng_edge.export.hub.client import Hub
from dasheng_edge.export.hub.pull import LOCK, PullOptions, left_behind, pull
from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError
from tests.fixtures.hub_server import ENCODER, FakeHub, safetensors, serve_hub

REPO = "mispeech/midashenglm-tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serve_hub() as fake:
        content = safetensors(*ENCODER, data=bytes(range(256)))
        fake.repositories[REPO] = {"config.json": b'{"a": 1}', "README.md": b"# Tiny", WEIGHTS: content}
        yield fake


@pytest.fixture
def hub(fake: FakeHub) -> Hub:
    return Hub(fake.endpoint, waits_s=())


@pytest.fixture
def options(tmp_path: Path) -> PullOptions:
    return PullOptions(REPO, out=tmp_path / "model")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {PULL_RECORD}


def test_a_folder_that_lost_a_file_is_not_called_complete(hub: Hub, options: PullOptions) -> None:
    (pull(options, hub=hub).folder / WEIGHTS).unlink()
    with pytest.raises(OutputExistsError, match=rf"{WEIGHTS} in it is missing or was changed; remove the folder"):
        pull(options, hub=hub)


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_a_folder_with_altered_content_is_not_called_complete(file: str, hub: Hub, options: PullOptions) -> None:
    path = pull(options, hub=hub).folder / file
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(OutputExistsError, match=rf"{file} in it is missing or was changed; remove the folder"):
        pull(options, hub=hub)


@pytest.mark.parametrize("record", [None, "", "{", '{"repo": "somebody/else"}'])
def test_nothing_else_is_overwritten(record: str | None, hub: Hub, options: PullOptions) -> None:
    options.folder.mkdir()
    (options.folder / "notes.txt" if record is None else options.folder / PULL_RECORD).write_text(record or "")
    with pytest.raises(OutputExistsError, match="holds something that was not pulled, not mispeech/midashenglm-tiny"):
        pull(options, hub=hub)


def test_another_revision_is_not_overwritten(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    pull(options, hub=hub)
    fake.repositories[REPO]["README.md"] = b"changed"
    with pytest.raises(OutputExistsError, match=f"holds {REPO} at [0-9a-f]{{40}}, not {REPO} at"):
        pull(options, hub=hub)


def test_an_empty_folder_is_filled(hub: Hub, options: PullOptions) -> None:
    options.folder.mkdir()
    report = pull(options, hub=hub)
    assert names_in(options.folder) == set(report.files)


def test_the_current_folder_or_a_mount_point_is_not_replaced(
    fake: FakeHub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError, match=r"\. is the current folder, which cannot be replaced; give --out a"):
        pull(PullOptions(REPO, out=Path()), hub=hub)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "models")
    with pytest.raises(OutputExistsError, match="models is a mount point, which cannot be replaced"):
        pull(PullOptions(REPO, out=tmp_path / "models"), hub=hub)
    assert not fake.fetched()


def test_the_root_is_refused(hub: Hub) -> None:
    with pytest.raises(OutputExistsError, match="/ exists and holds something that was not pulled"):
        pull(PullOptions(REPO, out=Path("/")), hub=hub)


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_no_folder_can_have_is_refused(length: int, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / (length * "x")
    with pytest.raises(OutputWriteError, match=r"File name too long; choose another --out"):
        pull(PullOptions(REPO, out=out), hub=hub)
    assert left_behind(PullOptions(REPO, out=out).partial) == ""


@pytest.mark.parametrize("record", [None, "", '{"repo": "mispe'])
@pytest.mark.parametrize("name", [PULL_RECORD, f"{PULL_RECORD}.incomplete"])
def test_a_pull_that_was_killed_as_it_began_is_gone_on_with(
    record: str | None, name: str, hub: Hub, options: PullOptions
) -> None:
    options.partial.mkdir()
    if record is not None:
        (options.partial / LOCK).touch()
        (options.partial / name).write_text(record)
    report = pull(options, hub=hub)
    assert names_in(report.folder) == set(report.files)


def test_the_record_is_never_half_written(hub: Hub, options: PullOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        if target.name == PULL_RECORD:
            assert not target.exists()
            assert json.loads(path.read_text())["repo"] == REPO
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    pull(options, hub=hub)


@pytest.mark.parametrize("record", [None, {"repo": "other/model", "revision": "0" * 40}])
def test_a_part_of_something_else_is_not_taken_for_ours(
    record: dict[str, str] | None, hub: Hub, options: PullOptions
) -> None:
    options.partial.mkdir()
    (options.partial / "config.json").write_text("{}")
    if record:
        (options.partial / PULL_RECORD).write_text(json.dumps(record))
    with pytest.raises(OutputExistsError, match=r"holds a part of (other/model|something that was not pulled), not of"):
        pull(options, hub=hub)
    assert options.partial.exists()


def test_a_place_that_cannot_be_written_to_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputWriteError, match=r"cannot read or write .*/file.*Not a directory; choose [^.]*$"):
        pull(PullOptions(REPO, out=tmp_path / "file" / "model"), hub=hub)


def test_a_folder_in_place_of_a_file_is_named(hub: Hub, options: PullOptions) -> None:
    (options.partial / "config.json").mkdir(parents=True)
    record = {"repo": REPO, "revision": "0" * 40}
    (options.partial / PULL_RECORD).write_text(json.dumps(record))
    with pytest.raises(OutputWriteError, match=r"config\.json: .*; choose another --out") as caught:
        pull(options, hub=hub)
    assert "goes on from there" not in str(caught.value)
