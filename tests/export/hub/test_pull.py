"""`pull` against a hub on this machine: what it asks for, what it leaves behind, and how it goes on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.files.pull_record import PULL_RECORD, Origin
from dasheng_edge.export.hub.client import BLOCK_BYTES, Hub
from dasheng_edge.export.hub.progress import PullProgress
from dasheng_edge.export.hub.pull import LOCK, PullOptions, pull
from dasheng_edge.runtime.errors import CheckpointNotFoundError, DownloadError, OutputWriteError
from tests.fixtures.hub_server import FakeHub, serve_hub
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

REPO = "mispeech/midashenglm-tiny"
SHARDS = [f"model-{shard:05}-of-00003.safetensors" for shard in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files as they are published: with code, pickles and more."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", shards=3)
    for name in ("modeling_midashenglm.py", "pytorch_model.bin", ".gitattributes", "model.fp8.safetensors"):
        (folder / name).write_bytes(b"not wanted")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "README.md").write_text("# Tiny\n")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


@pytest.fixture
def fake(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serve_hub() as fake:
        fake.add(REPO, published)
        yield fake


@pytest.fixture
def hub(fake: FakeHub) -> Hub:
    return Hub(fake.endpoint, waits_s=())


@pytest.fixture
def options(tmp_path: Path) -> PullOptions:
    return PullOptions(REPO, out=tmp_path / "model")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != PULL_RECORD}


class Watched(PullProgress):
    """Progress that is looked at."""

    def __init__(self) -> None:
        self.files = self.total = self.bytes = self.done = self.waits = 0

    def begin(self, files: int, total_bytes: int) -> None:
        self.files, self.total = files, total_bytes

    def advance(self, amount_bytes: int) -> None:
        self.bytes += amount_bytes

    def file_done(self) -> None:
        self.done += 1

    def wait(self, reason: str, seconds: float) -> None:
        assert "Connection broken" in reason or "ended at byte" in reason
        assert seconds == 0
        self.waits += 1


def test_a_whole_checkpoint_comes_and_opens(fake: FakeHub, hub: Hub, options: PullOptions, published: Path) -> None:
    watched = Watched()
    report = pull(options, watched, hub)

    checkpoint = open_checkpoint(report.folder)
    assert checkpoint.origin == Origin(repo=REPO, revision=fake.commit(REPO))
    assert json.loads((report.folder / PULL_RECORD).read_text()) == {"repo": REPO, "revision": fake.commit(REPO)}
    assert set(checkpoint.sources) == set(open_checkpoint(published).sources)
    here = files_in(report.folder)
    assert here == {name: (published / name).read_bytes() for name in here}
    assert (report.folder, report.repo, report.revision) == (options.folder, REPO, fake.commit(REPO))
    assert report.bytes == report.fetched_bytes == sum(map(len, here.values()))
    assert set(report.files) == set(here)
    assert not report.adapter
    assert (watched.files, watched.done) == (len(here), len(here))
    assert watched.total == watched.bytes == report.bytes
    assert not options.partial.exists()


def test_only_what_is_needed_is_asked_for(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    report = pull(options, hub=hub)

    assert sorted(fake.fetched()) == sorted(files_in(report.folder)) == sorted(
        ["LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", INDEX, *SHARDS,
         "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    )  # fmt: skip
    assert {request.headers["user-agent"].partition("/")[0] for request in fake.requests} == {"dasheng-edge"}


def test_the_hubs_own_client_brings_the_same(fake: FakeHub, hub: Hub, options: PullOptions, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    report = pull(options, hub=hub)
    theirs = snapshot_download(
        REPO, endpoint=fake.endpoint, local_dir=tmp_path / "theirs", cache_dir=tmp_path / "cache",
        allow_patterns=list(report.files), token=False,
    )  # fmt: skip
    shutil.rmtree(Path(theirs) / ".cache")
    assert files_in(report.folder) == files_in(Path(theirs))


@pytest.mark.parametrize("ranges", [True, False], ids=["range honoured", "range ignored"])
def test_a_break_is_gone_on_with_at_once(fake: FakeHub, options: PullOptions, ranges: bool) -> None:
    fake.ranges = ranges
    fake.break_after = {SHARDS[1]: [2 * BLOCK_BYTES, BLOCK_BYTES if ranges else 3 * BLOCK_BYTES]}
    watched = Watched()
    report = pull(options, watched, Hub(fake.endpoint, waits_s=(0,)))

    open_checkpoint(report.folder)
    assert watched.waits == 2
    asked = [request.headers.get("range") for request in fake.requests if request.file == SHARDS[1]]
    first, second = f"bytes={2 * BLOCK_BYTES}-", f"bytes={3 * BLOCK_BYTES}-"
    assert asked == [None, None, first, first, second, second]  # of the hub, which sends us on to its storage


def test_a_second_pull_goes_on_where_the_first_broke(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    fake.break_after = {SHARDS[1]: [BLOCK_BYTES + 9]}
    with pytest.raises(DownloadError, match=r"What came stays in .*\.model\.partial: the same command goes on"):
        pull(options, hub=hub)
    assert not options.folder.exists()
    first = fake.fetched()
    assert first[-1] == SHARDS[1]

    fake.requests.clear()
    watched = Watched()
    report = pull(options, watched, hub)
    assert fake.fetched() == SHARDS[1:]  # and nothing that was finished
    assert fake.requests[1].headers["range"] == f"bytes={BLOCK_BYTES}-"
    open_checkpoint(report.folder)
    assert not (report.folder / LOCK).exists()
    assert report.fetched_bytes < report.bytes == watched.bytes


def test_another_revision_keeps_only_what_did_not_change(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    fake.break_after = {SHARDS[1]: [BLOCK_BYTES + 9]}
    with pytest.raises(DownloadError):
        pull(options, hub=hub)
    files = fake.repositories[REPO]
    files["README.md"] = files["README.md"][:-2] + b"!\n"
    files["config.json"] = files["config.json"] + b"\n"
    fake.requests.clear()
    watched = Watched()
    report = pull(options, watched, hub)

    assert sorted(fake.fetched()) == sorted(["README.md", "config.json", *SHARDS[1:]])
    assert files_in(report.folder) == {name: files[name] for name in report.files}
    assert report.revision == fake.commit(REPO)
    assert watched.bytes == watched.total


def test_leftovers_of_another_revision_go(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    fake.break_after = {SHARDS[1]: [BLOCK_BYTES + 9]}
    with pytest.raises(DownloadError):
        pull(options, hub=hub)
    fake.repositories[REPO][SHARDS[1]] += b" "  # no longer safetensors, but that is not looked at here
    report = pull(options, hub=hub)
    assert set(files_in(report.folder)) == set(report.files)


def test_what_is_there_is_not_pulled_again(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    before = pull(options, hub=hub)
    stamps = {path: path.stat().st_mtime_ns for path in before.folder.iterdir()}
    fake.requests.clear()
    watched = Watched()
    again = pull(options, watched, hub)

    assert (watched.bytes, watched.done) == (watched.total, watched.files) == (before.bytes, len(before.files))
    assert (again.fetched_bytes, again.bytes, again.revision) == (0, before.bytes, before.revision)
    assert not set(fake.fetched()) & set(SHARDS)
    assert stamps == {path: path.stat().st_mtime_ns for path in before.folder.iterdir()}


def test_two_pulls_at_once_do_not_mix(hub: Hub, options: PullOptions, fake: FakeHub) -> None:
    fake.stall_after = {SHARDS[0]: BLOCK_BYTES}
    failures: list[DownloadError] = []

    def first() -> None:
        try:
            pull(options, hub=hub)
        except DownloadError as error:
            failures.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    while not any(options.partial.glob("*.incomplete")):
        assert thread.is_alive()
        time.sleep(0.01)
    with pytest.raises(DownloadError, match="another pull is filling"):
        pull(options, hub=hub)
    fake.released.set()
    thread.join()
    assert "Connection broken" in str(failures[0])


def test_a_branch_is_recorded_as_its_commit(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    fake.branches = ("main", "refs/pr/1")
    report = pull(PullOptions(f"{fake.endpoint}/{REPO}/tree/refs%2Fpr%2F1", out=options.out), hub=hub)
    assert report.revision == fake.commit(REPO)
    assert fake.requests[0].path == f"/api/models/{REPO}/revision/refs/pr/1"
    assert pull(PullOptions(REPO, fake.commit(REPO), options.out), hub=hub).fetched_bytes == 0


def test_two_revisions_are_one_too_many(hub: Hub) -> None:
    with pytest.raises(CheckpointNotFoundError, match="is at revision v1, and --revision says v2"):
        pull(PullOptions(f"https://huggingface.co/{REPO}/tree/v1", "v2"), hub=hub)


@pytest.mark.parametrize("file", ["README.md", SHARDS[0]])
@pytest.mark.parametrize("change", [b"", b"something longer than it was, or not"], ids=["shorter", "longer or other"])
def test_content_that_is_not_what_the_hub_says_is_removed_and_named(
    file: str, change: bytes, fake: FakeHub, hub: Hub, options: PullOptions
) -> None:
    content = fake.repositories[REPO][file]
    fake.tampered = {file: change + content[len(change) :] + (b"more" if change else b"")}
    if not change:
        fake.tampered = {file: bytes([content[0] ^ 1]) + content[1:]}
    with pytest.raises(DownloadError, match=f"{file} of {REPO} is not what the hub says it is: .* it was removed"):
        pull(options, hub=hub)
    assert not list(options.partial.glob(f"{file}*"))
    fake.tampered = {}
    open_checkpoint(pull(options, hub=hub).folder)


def test_a_tampered_config_is_not_believed(fake: FakeHub, hub: Hub, options: PullOptions) -> None:
    fake.tampered = {"config.json": b" " * len(fake.repositories[REPO]["config.json"])}
    with pytest.raises(DownloadError, match=r"config.json of .* is not what the hub says it is; try again"):
        pull(options, hub=hub)
    assert not options.partial.exists()


def test_space_is_looked_at_before_the_weights_come(
    fake: FakeHub, hub: Hub, options: PullOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputWriteError, match=r"model still needs \d\.\d MB, and 1\.0 kB are free on the disk of"):
        pull(options, hub=hub)
    assert fake.fetched() == ["config.json", INDEX]
    assert not options.partial.exists()


def test_what_must_be_fetched_again_is_no_space_that_is_saved(
    fake: FakeHub, hub: Hub, options: PullOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.break_after = {SHARDS[2]: [BLOCK_BYTES]}
    with pytest.raises(DownloadError):
        pull(options, hub=hub)
    left = options.partial / f"{SHARDS[2]}.of another revision.incomplete"
    left.touch()
    content = fake.repositories[REPO][SHARDS[0]]
    fake.repositories[REPO][SHARDS[0]] = content[:-1] + bytes([content[-1] ^ 1])
    fake.requests.clear()
    free = len(fake.repositories[REPO][SHARDS[2]]) + 1000  # for the third, and not for the changed one beside it
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OutputWriteError, match="are free on the disk of"):
        pull(options, hub=hub)
    assert not set(fake.fetched()) & set(SHARDS)
    assert not left.exists()
    assert not (options.partial / SHARDS[0]).exists()
    assert (options.partial / SHARDS[1]).exists()


@pytest.mark.parametrize("address", ["https://github.com/", "http://modelscope.cn/models/"])
def test_an_address_elsewhere_is_not_taken_for_one_here(
    address: str, fake: FakeHub, hub: Hub, options: PullOptions
) -> None:
    host = address.split("/")[2]
    expected = rf"models come from {hub.host}, not from {host}; .* set HF_ENDPOINT=https://{host}$"
    with pytest.raises(CheckpointNotFoundError, match=expected):
        pull(PullOptions(address + REPO, out=options.out), hub=hub)
    assert not fake.requests
    for here in ("hf.co", "https://huggingface.co", hub.host, fake.endpoint):
        assert pull(PullOptions(f"{here}/{REPO}", out=options.out), hub=hub).repo == REPO


def test_a_full_disk_keeps_what_came(hub: Hub, options: PullOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputWriteError, match=r"No space left on device.*What came stays in"):
        pull(options, hub=hub)
    monkeypatch.undo()
    open_checkpoint(pull(options, hub=hub).folder)


def test_of_an_adapter_the_adapter_comes(fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    needed = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    others = {"adapter_model.bin", "optimizer.pt", "training_args.bin", "tokenizer.json", "config.json"}
    fake.repositories["somebody/lora"] = dict.fromkeys(needed | others, b"{}")
    report = pull(PullOptions("somebody/lora", out=tmp_path / "lora"), hub=hub)

    assert report.adapter
    assert set(report.files) == needed == set(fake.fetched()) - {"config.json"}  # which is looked at
