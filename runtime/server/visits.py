"""What is known of requests: a line of the log for each, and numbers for Prometheus. Never what was said."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CLOSED = 499  # in log and numbers: the client left (nginx's number)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PATHS = (
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions", "/v1/embeddings", "/v1/models",
    "/v1/realtime", "/health", "/ready", "/metrics", "/openapi.json", "/",
)  # fmt: skip


@dataclass
class Visit:
    """A request on its way: who asks, and what the log says of it."""

    id: str
    method: str
    path: str
    tenant: str = ""
    status: int = CLOSED
    start_s: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)  # counts and times, never what was said

    def line(self) -> str:
        """For the log, one JSON object."""
        known = {"id": self.id, "from": self.tenant, "method": self.method, "path": self.path, "status": self.status}
        ms = round(1000 * (time.monotonic() - self.start_s))
        return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **known, "ms": ms, **self.facts})


def stderr_log(line: str) -> None:
    """The log, where nobody says otherwise."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Metrics:
    """Of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dasheng_edge_requests", "Requests by path and status", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "dasheng_edge_request_seconds", "Time from a request to the end of its answer", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.waited = Histogram(
            "dasheng_edge_waiting_seconds", "Time from a request to its place at the model", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.working = Gauge("dasheng_edge_working", "Requests that have a place", registry=registry)
        self.waiting = Gauge("dasheng_edge_waiting", "Requests that wait for a place", registry=registry)
        self.audio = Counter("dasheng_edge_audio_seconds", "Audio that was heard", ("model",), registry=registry)
        self.tokens = Counter(
            "dasheng_edge_tokens", "Tokens that were read and written", ("model", "kind"), registry=registry
        )
        self.opened = Gauge("dasheng_edge_model_open", "Whether a model is open", ("model",), registry=registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One was answered; paths that there are not count as one, so that nobody can make up many."""
        path = path if path in PATHS or path.startswith("/v1/models/") else "other"
        path = "/v1/models" if path.startswith("/v1/models/") else path
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self._registry)
