from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest

from services.inference.adapters.turns import Busy, Turns


def play(story: Callable[[], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(10):
            await story()

    asyncio.run(run())


async def waiter(turns: Turns, int_id: int) -> asyncio.Task[None]:
    task = asyncio.create_task(turns.enter(int_id))
    await asyncio.sleep(0.001)
    return task


def test_adapters_get_in_up_to_the_places_and_requests_of_one_share_its_place() -> None:
    async def story() -> None:
        turns = Turns(2, turn_s=60, patience_s=60)
        for int_id in (1, 1, 2, 2, 1):
            await turns.enter(int_id)
        third = await waiter(turns, 3)
        assert not third.done()
        for _ in range(2):
            turns.leave(2)
        await third

    play(story)


def test_those_who_wait_are_served_in_the_order_in_which_they_came() -> None:
    async def story() -> None:
        turns = Turns(1, turn_s=0, patience_s=60)
        await turns.enter(1)
        waiting = [await waiter(turns, int_id) for int_id in (2, 3, 2)]
        turns.leave(1)
        await asyncio.gather(waiting[0], waiting[2])
        assert not waiting[1].done()
        turns.leave(2)
        assert not waiting[1].done()
        turns.leave(2)
        await waiting[1]

    play(story)


def test_a_busy_adapter_does_not_starve_others() -> None:
    async def story() -> None:
        turns = Turns(1, turn_s=0.05, patience_s=60)
        await turns.enter(1)
        other = await waiter(turns, 2)
        await turns.enter(1)  # its turn is not over yet
        await asyncio.sleep(0.06)
        late = await waiter(turns, 1)
        assert not late.done()
        turns.leave(1)
        turns.leave(1)
        await other
        assert not late.done()
        turns.leave(2)
        await late

    play(story)


def test_without_anybody_waiting_a_turn_does_not_end() -> None:
    async def story() -> None:
        turns = Turns(1, turn_s=0, patience_s=60)
        for _ in range(3):
            await turns.enter(1)

    play(story)


def test_patience_ends_and_the_place_in_the_line_with_it() -> None:
    async def story() -> None:
        turns = Turns(1, turn_s=60, patience_s=0.05)
        await turns.enter(1)
        with pytest.raises(Busy):
            await turns.enter(2)
        assert turns.waiting == 0
        turns.leave(1)
        await turns.enter(3)

    play(story)


def test_one_that_goes_away_while_it_is_let_in_gives_its_place_back() -> None:
    async def story() -> None:
        turns = Turns(1, turn_s=60, patience_s=60)
        await turns.enter(1)
        gone, next_one = await waiter(turns, 2), await waiter(turns, 3)
        turns.leave(1)  # lets 2 in, and before its task runs it is cancelled
        gone.cancel()
        await next_one
        with pytest.raises(asyncio.CancelledError):
            await gone

    play(story)


def test_nobody_is_lost_under_random_comings_and_goings() -> None:
    async def story() -> None:
        turns, inside, most = Turns(3, turn_s=0.002, patience_s=60), Counter[int](), 0

        async def visit(int_id: int) -> None:
            nonlocal most
            await turns.enter(int_id)
            inside[int_id] += 1
            most = max(most, len(+inside))
            try:
                await asyncio.sleep(random.random() / 500)
            finally:
                inside[int_id] -= 1
                turns.leave(int_id)

        visits = [asyncio.create_task(visit(random.choice([1, 1, 1, *range(2, 12)]))) for _ in range(300)]
        for task in random.sample(visits, 30):
            await asyncio.sleep(0.001)
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        assert most == 3
        assert turns.waiting == 0
        async with asyncio.timeout(1):
            for int_id in (101, 102, 103):
                await turns.enter(int_id)

    play(story)
