"""A model hub as `pull` needs it: what a repository holds at a commit, and the bytes of its files from any byte on.

huggingface_hub finds the token, speaks to the API and tells errors apart. Its own downloader (0.36.2) was tried and is
left out: it gives up when a connection breaks within a block of 10 MB, which is lost; it accepts a file of the right
size with a wrong byte, since it compares no hash; and Xet, its own choice of transfer, begins a broken file anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from dasheng_edge.runtime.errors import DownloadError

from .model_id import did_you_mean

BLOCK_BYTES = 1 << 16  # a block that breaks off is lost, and on a bad line large ones would never arrive
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
PASSING = (408, 429, 500, 502, 503, 504)  # answers that another attempt may change
Waits = Callable[[str, float], None]  # why there is a wait, and of how many seconds
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Digest(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub describes it."""

    name: str
    bytes: int
    sha256: str | None  # of the content; the hub tells it for what lies outside git (LFS, Xet)
    blob: str | None  # what git calls the content; the hub tells it for all files

    @property
    def identity(self) -> str:
        """The same for the same content only."""
        return self.sha256 or self.blob or f"{self.bytes}-bytes"

    def digest(self) -> Digest:
        """What `identity` is compared with, once it has taken in the content."""
        if self.sha256:
            return hashlib.sha256()
        # Git hashes a header before the content.
        return hashlib.sha1(f"blob {self.bytes}\0".encode(), usedforsecurity=False)

    def matches(self, size: int, digest: Digest) -> bool:
        """Whether content of this size and digest is the file's; a file without a hash is told by its size."""
        return size == self.bytes and digest.hexdigest() == (self.sha256 or self.blob or digest.hexdigest())


@dataclass(frozen=True)
class Repository:
    """A model repository at a commit."""

    name: str  # "owner/name", as the hub spells it
    revision: str  # the commit
    files: Mapping[str, HubFile]


class Hub:
    """The hub at `endpoint`; by default the one that HF_ENDPOINT names, or huggingface.co.

    `timeout_s` is how long it may say nothing. A file whose connection breaks is gone on with after each of
    `waits_s` in turn; every byte that arrives gives all attempts back.
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout_s: float = 30.0, waits_s: tuple[float, ...] = (1, 2, 4, 8, 16)
    ) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.timeout_s, self.waits_s = timeout_s, waits_s
        # In place of huggingface_hub's own, which lists the versions of Python, torch and others.
        self._headers = {"user-agent": f"dasheng-edge/{version('dasheng-edge')}"}

    @property
    def host(self) -> str:
        """What messages call it."""
        return urlsplit(self.endpoint).netloc or self.endpoint

    def repository(self, name: str, revision: str | None = None) -> Repository:
        """What a repository holds at a branch, tag or commit; by default at its main branch.

        Raises:
            DownloadError: there is no such repository or revision, or the hub cannot be reached or refuses.
        """
        api = HfApi(endpoint=self.endpoint, headers=self._headers)
        try:
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=self.timeout_s)
            files = [_described(file) for file in info.siblings or ()]
        except (KeyError, TypeError, ValueError) as error:  # no JSON, or not that of the API
            raise DownloadError(
                f"{self.endpoint} does not answer as a model hub does ({error!r}); check HF_ENDPOINT and HTTPS_PROXY"
            ) from error
        except OSError as error:  # what requests raises, too
            raise self._explained(error, name, revision) from error
        if not _COMMIT.fullmatch(info.sha or ""):
            raise DownloadError(f"{self.endpoint} names no commit of {name} ({info.sha!r}); check HF_ENDPOINT")
        return Repository(info.id, info.sha or "", {file.name: file for file in files})

    def head(self, repository: Repository, file: HubFile, size: int, waits: Waits | None = None) -> bytes:
        """The first `size` bytes of a file, of which no more are asked for.

        Raises:
            DownloadError: as `blocks`.
        """
        content = b""
        start = dataclasses.replace(file, bytes=min(size, file.bytes))
        for block in self.blocks(repository, start, whole=False, waits=waits):
            content += block
        return content[:size]

    def blocks(
        self, repository: Repository, file: HubFile, start: int = 0, *, whole: bool = True, waits: Waits | None = None
    ) -> Iterator[bytes]:
        """Content of a file from byte `start` on; not `whole`, the file has more bytes than `file` says.

        `waits` is told before each wait for another attempt.

        Raises:
            DownloadError: the hub refuses, or the connection broke and no attempt brought a further byte.
        """
        position, failures = start, 0
        while position < file.bytes:
            try:
                for block in self._received(repository, file, position, None if whole else file.bytes):
                    position, failures = position + len(block), 0
                    yield block
                    if position > file.bytes:  # more than there is: whoever checks the size will say so
                        return
                if position < file.bytes:
                    raise ConnectionError(f"the connection ended at byte {position:,} of {file.bytes:,}")
            except OSError as error:  # noqa: PERF203  # it is what the loop is about
                if failures == len(self.waits_s) or not _passing(error):
                    raise self._explained(error, repository.name, repository.revision, file.name) from error
                if waits:
                    reason = str(self._explained(error, repository.name, repository.revision, file.name))
                    waits(reason.partition(";")[0], self.waits_s[failures])
                time.sleep(self.waits_s[failures])
                failures += 1

    def _received(self, repository: Repository, file: HubFile, start: int, stop: int | None) -> Iterator[bytes]:
        """What one request for bytes [start, stop) of a file brings, until the connection ends."""
        url = hf_hub_url(repository.name, file.name, revision=repository.revision, endpoint=self.endpoint)
        headers = build_hf_headers(headers={**self._headers, "Accept-Encoding": "identity"})
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        # Redirected to storage elsewhere, requests takes the token out.
        with get_session().get(url, headers=headers, stream=True, timeout=self.timeout_s) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start  # a server may ignore the range
            content: Iterator[bytes] = response.iter_content(BLOCK_BYTES)
            for block in content:
                if len(block) > skip:
                    yield block[skip:]
                skip = max(0, skip - len(block))

    def _explained(self, error: OSError, name: str, revision: str | None, file: str | None = None) -> DownloadError:
        """The error in our words: what was asked for, what came, what to do."""
        what = f"{file} of {name}" if file else name
        host = self.host
        if isinstance(error, OfflineModeIsEnabled):
            return DownloadError(f"cannot download {what}: HF_HUB_OFFLINE is set; unset it")
        if not isinstance(error, HfHubHTTPError):
            return DownloadError(
                f"cannot download {what} from {host}: {_reason(error)}; check the network, HTTPS_PROXY and HF_ENDPOINT"
            )
        if isinstance(error, GatedRepoError):
            return DownloadError(f"{what} is gated: accept its terms at {self.endpoint}/{name}, then {LOG_IN}")
        if isinstance(error, RevisionNotFoundError):
            return DownloadError(
                f"{name} has no revision {revision!r} on {host}; leave --revision out for the newest, or give a "
                "branch, tag or commit of that repository"
            )
        if isinstance(error, EntryNotFoundError):
            return DownloadError(f"{host} lists {what} and does not have it; try again later")
        return DownloadError(_refusal(error, name, what, host))


def _refusal(error: HfHubHTTPError, name: str, what: str, host: str) -> str:
    response = error.response
    assert response is not None  # it is what this kind of error is about
    status = response.status_code
    if status == 401 and "Invalid credentials" in response.headers.get("X-Error-Message", ""):
        return f"{host} does not know the token that was sent for {what}; {LOG_IN}"
    if status in {401, 404}:  # the hub does not tell which
        return f"there is no model {name} on {host}, or it is private; {did_you_mean(name)} Otherwise {LOG_IN}"
    if status == 403:
        return f"{host} refuses {what} to you (403); {LOG_IN} with a token that may read it"
    return f"cannot download {what}: {host} answers {status} {response.reason}; try again later"


def _described(file: RepoSibling) -> HubFile:
    if file.size is None:
        raise TypeError(f"no size of {file.rfilename}")
    sha256 = file.lfs.sha256 if file.lfs else None
    # For what lies outside git, blob_id is that of a pointer to it.
    return HubFile(file.rfilename, file.size, sha256, None if sha256 else file.blob_id)


def _passing(error: OSError) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in PASSING
    return not isinstance(error, OfflineModeIsEnabled)


def _reason(error: BaseException) -> str:
    """The innermost cause, without the objects and URLs that requests and urllib3 wrap around it."""
    text = str(error)
    if "timed out" in text.lower():
        return "it timed out"
    if isinstance(error, ConnectionError):
        return text
    inner = error.args[0] if error.args else None
    inner = getattr(inner, "reason", None) or inner
    if isinstance(inner, BaseException) and inner is not error:
        return _reason(inner)
    return re.sub(r"<[^>]*>:? ?|\w+\(host=[^)]*\): |\(Request ID: [^)]*\)", "", text).strip()
