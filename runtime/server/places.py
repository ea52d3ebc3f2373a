"""Places at the engine: so many requests are worked on, so many wait, and whoever asks takes turns with the others."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from .answers import come_back

MAX_RETRY_S = 60


class Places:
    """Of one event loop. Tenants take turns: one that asks for much waits for itself, not in front of others."""

    def __init__(self, waiting: int, working: int = 1) -> None:
        self._max_waiting = waiting
        self.max_working = working
        self.working = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of turns
        self._spent_s = 1.0  # by a request at its place, about
        self.ending = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncGenerator[None]:
        """A place, when it is this tenant's turn.

        Raises:
            Refusal: too many wait, or the server is ending.
        """
        await self._take(tenant)
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += 0.2 * (time.monotonic() - start - self._spent_s)
            self.working -= 1
            self._next()

    def end(self) -> None:
        """Let nobody in any more, and send those away who wait."""
        self.ending = True
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(_ending())
        self._waiting.clear()

    def retry_s(self) -> int:
        """After how many seconds there may be room."""
        turns = (self.waiting + 1) / self.max_working
        return max(1, min(MAX_RETRY_S, math.ceil(turns * self._spent_s)))

    async def _take(self, tenant: str) -> None:
        if self.ending:
            raise _ending()
        if self.working < self.max_working:  # so nobody waits
            self.working += 1
            return
        if self.waiting >= self._max_waiting:
            raise come_back(
                f"{self.waiting} requests are waiting, which is as many as this server keeps (--queue); try again",
                seconds=self.retry_s(), status=429, code="rate_limit_exceeded",
            )  # fmt: skip
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(future)
        try:
            await future
        except BaseException:
            self._leave(tenant, future)
            raise

    def _leave(self, tenant: str, future: asyncio.Future[None]) -> None:
        """Who waited does so no more; a place that was given meanwhile is the next one's."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self.working -= 1
            self._next()
        elif (futures := self._waiting.get(tenant)) is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[tenant]

    def _next(self) -> None:
        while self._waiting and self.working < self.max_working:
            tenant, futures = next(iter(self._waiting.items()))
            future = futures.popleft()
            del self._waiting[tenant]
            if futures:
                self._waiting[tenant] = futures  # behind the others
            if not future.done():
                self.working += 1
                future.set_result(None)


def _ending() -> Exception:
    return come_back("the server is ending; try again", code="shutting_down")
