"""Places: so many work, so many wait, tenants take turns, and nobody is lost. Windows: nothing of their audio stays."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.server.answers import Refusal
from dasheng_edge.runtime.server.app import Server
from dasheng_edge.runtime.server.asking import MAX_RETRY_S, Deadline, Places, Question, Windows

from .conftest import Run, wav_of


async def _ask(places: Places, tenant: str, order: list[str], turn: asyncio.Event | None = None) -> None:
    async with places.place(tenant):
        order.append(tenant)
        assert places.working <= places.max_working
        await (turn.wait() if turn else asyncio.sleep(0))


def test_who_asks_for_much_does_not_keep_others_waiting() -> None:
    async def main() -> list[str]:
        places, order = Places(waiting=100), list[str]()
        greedy = [asyncio.ensure_future(_ask(places, "a", order)) for _ in range(10)]
        await asyncio.sleep(0)
        modest = [asyncio.ensure_future(_ask(places, "b", order)) for _ in range(2)]
        await asyncio.gather(*greedy, *modest)
        return order

    assert "".join(asyncio.run(main())) == "aaabab" + 6 * "a"


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30), st.integers(1, 4), st.integers(0, 6))
def test_every_place_is_given_back(asks: list[tuple[str, bool]], working: int, waiting: int) -> None:
    """Whoever waits, works, is cancelled or is turned away."""

    async def main() -> None:
        places, order = Places(waiting, working), list[str]()
        tasks = []
        for tenant, cancels in asks:
            tasks.append((asyncio.ensure_future(_ask(places, tenant, order)), cancels))
            await asyncio.sleep(0)
            assert places.waiting <= waiting
            if cancels:
                tasks[-1][0].cancel()
        done = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert (places.working, places.waiting) == (0, 0)
        kinds = Counter(type(one) for one in done)
        assert kinds.keys() <= {type(None), Refusal, asyncio.CancelledError}
        await asyncio.wait_for(_ask(places, "z", order), 1)

    asyncio.run(main())


def test_at_the_end_those_who_wait_are_sent_away_and_those_who_work_finish() -> None:
    async def main() -> None:
        places, order, turn = Places(waiting=5), list[str](), asyncio.Event()
        works = asyncio.ensure_future(_ask(places, "a", order, turn))
        await asyncio.sleep(0)
        waits = asyncio.ensure_future(_ask(places, "b", order))
        await asyncio.sleep(0)
        places.end()
        with pytest.raises(Refusal, match="ending"):
            await waits
        with pytest.raises(Refusal, match="ending"):
            await _ask(places, "c", order)
        turn.set()
        await works
        assert (order, places.working) == (["a"], 0)

    asyncio.run(main())


@pytest.mark.parametrize("spent_s", [0.001, 7.0, 1e9])
def test_when_to_come_back_is_a_time_that_people_wait(spent_s: float) -> None:
    places = Places(waiting=5)
    places._spent_s = spent_s
    assert 1 <= places.retry_s() <= MAX_RETRY_S


def test_an_answered_window_holds_no_audio(server: Server, run: Run[Any]) -> None:
    """An hour would be 0.5 GB."""

    async def main() -> int:
        engine = server.models.default.opened
        windows = server._asking.captions(
            engine, io.BytesIO(wav_of(9.0)), Windows(0.0, 4.0, 2.0), Question(None), Deadline(20)
        )  # fmt: skip
        return sum(len(span.audio.samples) for span in [span async for span, _ in windows])

    assert run(main()) == 0
