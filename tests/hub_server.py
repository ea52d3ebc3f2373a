"""A model hub on this machine: as much of its protocol as a download needs, with faults to order and a log."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf")  # kept outside git and reached through a redirect, as on the hub
ENCODER = ("patch_embed.proj.weight", "time_pos_embed", "freq_pos_embed")  # tensors of all encoders of the family
ERRORS = {
    "gated": (401, {"X-Error-Code": "GatedRepo"}),
    "private": (401, {"X-Error-Message": "Invalid username or password."}),
    "wrong token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
    "no repository": (404, {"X-Error-Code": "RepoNotFound"}),
    "no revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "no entry": (404, {"X-Error-Code": "EntryNotFound"}),
    "down": (503, {}),
}


def safetensors(*names: str, data: bytes = b"") -> bytes:
    """A safetensors file as far as its names go, with any data."""
    header = json.dumps({name: {} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header + data


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def file(self) -> str:
        """Name of the file that is asked for; "" where it is none."""
        return self.path.rpartition("/")[2] if "/resolve/" in self.path or "/storage/" in self.path else ""


@dataclass
class FakeHub:
    """What the server has, does wrong and was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name -> file -> content
    branches: tuple[str, ...] = ("main",)  # names of the newest commit of each
    break_after: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes until each next answer breaks off
    stall_after: dict[str, int] = field(default_factory=dict)  # file -> bytes until the answer says no more ...
    released: Event = field(default_factory=Event)  # ... before this is set
    tampered: dict[str, bytes] = field(default_factory=dict)  # file -> what is sent in place of its content
    errors: dict[str, str] = field(default_factory=dict)  # file, or "" for the API -> key of ERRORS
    ranges: bool = True  # whether it honours Range
    page: bytes = b""  # what is sent in place of what the API tells, as a hotel's network does
    info: dict[str, Any] = field(default_factory=dict)  # replaces fields of what the API tells
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""  # where large files are: the same server by another name

    def add(self, name: str, folder: Path) -> None:
        """Publish the files of a folder."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.repositories[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def commit(self, name: str) -> str:
        """The newest commit of a repository."""
        digest = hashlib.sha1(name.encode())
        for file, content in sorted(self.repositories[name].items()):
            digest.update(f"{file} {blob_id(content)}\0".encode())
        return digest.hexdigest()

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [request.file for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def described(self, name: str) -> dict[str, Any]:
        """What the API tells about a repository."""
        siblings = []
        for file, content in self.repositories[name].items():
            sibling: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": blob_id(content)}
            if file.endswith(LARGE):
                sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": name, "sha": self.commit(name), "private": False, "siblings": siblings, **self.info}


@cache
def blob_id(content: bytes) -> str:
    """What git calls a file's content: `git hash-object`."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@cache
def sha256(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
        """Nothing: the log is `FakeHub.requests`."""

    def do_HEAD(self) -> None:  # the base class looks it up by the method
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = Request(self.command, path, {key.lower(): value for key, value in self.headers.items()})
        self.hub.requests.append(request)
        if error := self.hub.errors.get(request.file):
            self._error(error)
        elif api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._api(api[1], api[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40}|main)/(.+)", path):
            self._resolve(found[1], found[3])
        elif found := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self._content(found[2], self.hub.repositories[found[1]][found[2]])
        else:
            self._error("no entry")

    def _known(self, name: str, revision: str) -> bool:
        return revision in {self.hub.commit(name), *self.hub.branches}

    def _api(self, name: str, revision: str) -> None:
        if name not in self.hub.repositories:
            self._error("no repository")
        elif not self._known(name, revision):
            self._error("no revision")
        else:
            told = self.hub.page or json.dumps(self.hub.described(name)).encode()
            self._answer(200, told, {"Content-Type": "application/json"})

    def _resolve(self, name: str, file: str) -> None:
        content = self.hub.repositories.get(name, {}).get(file)
        if content is None:
            self._error("no entry")
            return
        headers = {"X-Repo-Commit": self.hub.commit(name), "ETag": f'"{blob_id(content)}"'}
        if not file.endswith(LARGE):
            self._content(file, content, headers)
            return
        headers |= {
            "X-Linked-Etag": f'"{sha256(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.storage}/storage/{name}/{file}",
        }
        self._answer(302, b"", headers)

    def _content(self, file: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        content = self.hub.tampered.get(file, content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.hub.ranges else None
        headers = {**(headers or {}), "Accept-Ranges": "bytes"}
        if not asked:
            self._answer(200, content, headers, file)
            return
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers, file)

    def _error(self, name: str) -> None:
        status, headers = ERRORS[name]
        self._answer(status, json.dumps({"error": name}).encode(), headers)

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str], file: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = self.hub.break_after.get(file)
        if len(content) > self.hub.stall_after.get(file, len(content)):
            self.wfile.write(content[: self.hub.stall_after[file]])
            self.wfile.flush()
            self.hub.released.wait()
        else:
            self.wfile.write(content[: breaks.pop(0)] if breaks else content)


@contextmanager
def serve_hub() -> Generator[FakeHub]:
    """A server on the loopback interface for as long as the block lasts."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
