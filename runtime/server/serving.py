"""The server as a process: a socket, uvicorn, and how signals end it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dasheng_edge.runtime.errors import ConfigError

from .app import Server

HEAD_S = 20.0  # that the head of a request may take
HEAD_BYTES = 32 << 10
ENDING_S = 30  # that what runs has to be finished when the server is told to end
_SILENT = 100  # above every level of libraries' messages: there is a log of our own
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that nobody else takes the port while a model is opened.

    Raises:
        ConfigError: there is no such host here, or the port is taken or not for everybody.
    """
    why = f"cannot listen on port {port} of {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{why}: {reason}; expected an address of this machine, or localhost") from error
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it lets two programs have one port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        fix = "choose another with --port (0: any that is free)"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{why}: another program uses it; {fix}, or end that one") from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"{why}: only the system's own programs may; {fix}") from error
        raise ConfigError(f"{why}: {error.strerror}; {fix}, or another --host") from error
    return found


def address_of(listening: socket.socket) -> str:
    """Where clients find it, as the base of their addresses."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(server: Server, listening: socket.socket, began: Callable[[], None]) -> None:
    """Serve until a signal ends it: the first one when what runs is finished, the second at once.

    Raises:
        DashengEdgeError: the first model cannot be opened.
    """
    config = uvicorn.Config(
        server.app, http=PatientProtocol, ws="websockets-sansio", loop="asyncio", lifespan="off", log_config=None,
        log_level=_SILENT, access_log=False, server_header=False, proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_BYTES, timeout_graceful_shutdown=ENDING_S,
    )  # fmt: skip
    logging.getLogger("python_multipart").setLevel(_SILENT)  # it quotes what was sent
    async with server.running():
        await Uvicorn(config, server.end, began).serve(sockets=[listening])


class Uvicorn(uvicorn.Server):
    """Ends by signals, and does not raise them again afterwards."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None], began: Callable[[], None]) -> None:
        super().__init__(config)
        self._end, self._began = end, began
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._began()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # as uvicorn's
        self.force_exit = self.should_exit
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._end)


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request does not come, or comes a byte at a time.

    Uvicorn waits for ever for the head of a first request, and for the rest of every one that has begun.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._late = self._late or self.loop.call_later(HEAD_S, self._close)
        else:
            self._on_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_time()
        super().connection_lost(exc)

    def _on_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def run(server: Server, listening: socket.socket, began: Callable[[], None]) -> None:
    """As `serve`, to its end."""
    asyncio.run(serve(server, listening, began))
