"""The hub's answers in our words, and files from any byte on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dasheng_edge.export.hub.client import BLOCK_BYTES, Hub
from dasheng_edge.runtime.errors import DownloadError
from tests.fixtures.hub_server import FakeHub, serve_hub

REPO = "mispeech/dasheng-base"
FILE = "model.safetensors"
CONTENT = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"the end"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with serve_hub() as fake:
        fake.repositories[REPO] = {FILE: CONTENT, "config.json": b"{}"}
        yield fake


@pytest.fixture
def hub(fake: FakeHub) -> Hub:
    return Hub(fake.endpoint, waits_s=())


def message(hub: Hub, name: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(DownloadError) as caught:
        hub.repository(name, revision)
    return str(caught.value)


@pytest.mark.parametrize("start", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, len(CONTENT) - 1, len(CONTENT)])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_comes_from_any_byte_on(start: int, ranges: bool, fake: FakeHub, hub: Hub) -> None:
    fake.ranges = ranges
    repository = hub.repository(REPO)
    assert b"".join(hub.blocks(repository, repository.files[FILE], start)) == CONTENT[start:]


@pytest.mark.parametrize("size", [1, 8, BLOCK_BYTES + 1, len(CONTENT), len(CONTENT) + 9])
@pytest.mark.parametrize("ranges", [True, False])
def test_the_head_of_a_file_is_all_that_is_asked_for(size: int, ranges: bool, fake: FakeHub, hub: Hub) -> None:
    repository = hub.repository(REPO)
    fake.ranges = ranges
    assert hub.head(repository, repository.files[FILE], size) == CONTENT[:size]
    assert fake.requests[-1].headers["range"] == f"bytes=0-{min(size, len(CONTENT)) - 1}"


def test_whoever_waits_is_told_why(fake: FakeHub) -> None:
    told: list[tuple[str, float]] = []
    hub = Hub(fake.endpoint, waits_s=(0, 0.01))
    repository = hub.repository(REPO)
    fake.tampered = {FILE: CONTENT[:1000]}
    with pytest.raises(DownloadError):
        list(hub.blocks(repository, repository.files[FILE], waits=lambda *reason: told.append(reason)))
    why = f"cannot download {FILE} of {REPO} from {hub.host}: the connection ended at byte 1,000 of 196,615"
    assert told == [(why, 0), (why, 0.01)]


def test_what_the_hub_tells_of_files(fake: FakeHub, hub: Hub) -> None:
    repository = hub.repository(REPO, "main")
    large, small = repository.files[FILE], repository.files["config.json"]
    assert (large.bytes, large.identity) == (len(CONTENT), large.sha256)
    assert (small.sha256, small.identity) == (None, "9e26dfeeb6e641a33dae4961196235bdb965b21b")  # git hash-object
    for file, content in ((large, CONTENT), (small, b"{}")):
        digest = file.digest()
        digest.update(content)
        assert file.matches(len(content), digest)
        assert not file.matches(len(content) - 1, digest)
        digest.update(b"more")
        assert not file.matches(len(content), digest)


def test_the_endpoint_is_what_the_environment_says_now(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", fake.endpoint + "/")
    assert Hub().endpoint == fake.endpoint
    monkeypatch.delenv("HF_ENDPOINT")
    assert Hub().endpoint.startswith("https://")


def test_the_token_is_for_the_hub_and_not_for_its_storage(
    fake: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository = hub.repository(REPO)
    assert b"".join(hub.blocks(repository, repository.files[FILE])) == CONTENT
    sent = {request.path.split("/")[1]: request.headers.get("authorization") for request in fake.requests}
    assert sent == {"api": "Bearer hf_secret", "mispeech": "Bearer hf_secret", "storage": None}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("gated", r"is gated: accept its terms at http://.*/mispeech/dasheng-base, then log in with `hf auth login`"),
        ("private", r"there is no model mispeech/dasheng-base on .*, or it is private; did you mean .*HF_TOKEN"),
        ("no repository", r"there is no model mispeech/dasheng-base on .*, or it is private"),
        ("wrong token", r"does not know the token that was sent for mispeech/dasheng-base; log in"),
        ("forbidden", r"refuses mispeech/dasheng-base to you \(403\); log in .* with a token that may read it"),
        ("down", r"cannot download mispeech/dasheng-base: 127.* answers 503 Service Unavailable; try again later"),
        ("no entry", r"lists mispeech/dasheng-base and does not have it"),
    ],
)
def test_a_refusal_says_what_to_do(error: str, expected: str, fake: FakeHub, hub: Hub) -> None:
    fake.errors = {"": error}
    with pytest.raises(DownloadError, match=expected):
        hub.repository(REPO)


def test_a_refused_file_is_named(fake: FakeHub, hub: Hub) -> None:
    repository = hub.repository(REPO)
    fake.errors = {FILE: "gated"}
    with pytest.raises(DownloadError, match=f"{FILE} of {REPO} is gated"):
        list(hub.blocks(repository, repository.files[FILE]))


def test_a_hub_that_is_down_is_asked_again_and_one_that_refuses_is_not(fake: FakeHub) -> None:
    hub = Hub(fake.endpoint, waits_s=(0, 0))
    repository = hub.repository(REPO)
    for error, attempts in (("down", 3), ("forbidden", 1)):
        fake.errors, fake.requests[:] = {FILE: error}, []
        with pytest.raises(DownloadError):
            list(hub.blocks(repository, repository.files[FILE]))
        assert len(fake.requests) == attempts


def test_a_file_that_ends_early_without_an_error_is_a_broken_connection(fake: FakeHub, hub: Hub) -> None:
    repository = hub.repository(REPO)
    fake.tampered = {FILE: CONTENT[:1000]}
    with pytest.raises(DownloadError, match=r"the connection ended at byte 1,000 of 196,615; check the network"):
        list(hub.blocks(repository, repository.files[FILE]))


def test_a_hub_that_says_no_more_is_given_up(fake: FakeHub, hub: Hub) -> None:
    repository = hub.repository(REPO)
    fake.stall_after = {FILE: BLOCK_BYTES}
    with pytest.raises(DownloadError, match=f"cannot download {FILE} .*: it timed out; check the network"):
        list(Hub(fake.endpoint, timeout_s=0.2, waits_s=()).blocks(repository, repository.files[FILE]))


def test_a_name_that_is_not_there_brings_names_like_it(hub: Hub) -> None:
    assert "did you mean mispeech/midashenglm-7b-1021-bf16" in message(hub, "xiaomi/midashenglm-7b-1021-bf61")
    assert "published ones are mispeech/midashenglm-7b-1021-bf16, " in message(hub, "openai/whisper")


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    assert "has no revision 'v9' on 127.0.0.1" in message(hub, revision="v9")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.invalid")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        refused = message(Hub(f"http://127.0.0.1:{port}"))
    assert refused.startswith(f"cannot download {REPO} from 127.0.0.1:{port}: Failed to establish a new connection: ")
    assert refused.endswith("; check the network, HTTPS_PROXY and HF_ENDPOINT")
    assert "from no.invalid: Failed to resolve 'no.invalid'" in message(Hub("http://no.invalid"))
    assert message(Hub("no.invalid")).startswith("no.invalid does not answer as a model hub does (MissingSchema")


def test_offline_mode_is_respected(hub: Hub, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import reset_sessions  # type: ignore[attr-defined]  # as in hub.py

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reset_sessions()
    try:
        assert message(hub) == f"cannot download {REPO}: HF_HUB_OFFLINE is set; unset it"
    finally:
        reset_sessions()
    assert not fake.requests


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"sha": None}, "names no commit of mispeech/dasheng-base (None); check HF_ENDPOINT"),
        ({"sha": "../../etc"}, "names no commit of"),
        ({"siblings": [{"rfilename": "config.json"}]}, "does not answer as a model hub does"),
        ({"siblings": [{"name": "config.json"}]}, "does not answer as a model hub does"),
        ({"siblings": 7}, "does not answer as a model hub does"),
    ],
)
def test_what_is_no_hub_is_said_to_be_none(info: dict[str, object], expected: str, fake: FakeHub, hub: Hub) -> None:
    fake.info = info
    assert expected in message(hub)


def test_a_page_instead_of_an_answer(fake: FakeHub, hub: Hub) -> None:
    fake.page = b"<html>Log in to this network</html>"
    assert "does not answer as a model hub does (JSONDecodeError" in message(hub)
