"""Slots of batch requests go round among projects."""

from __future__ import annotations

import asyncio

from services.api.batches.slots import Slots


def test_a_project_with_many_requests_leaves_half_to_another() -> None:
    async def story() -> list[str]:
        slots, done = Slots(2), list[str]()

        async def work(project: str) -> None:
            async with slots.of(project):
                await asyncio.sleep(0)
                done.append(project)

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(work("many"))
            await asyncio.sleep(0)
            for _ in range(5):
                group.create_task(work("few"))
        return done

    done = asyncio.run(story())
    assert len(done) == 55
    assert done[:14].count("few") == 5, "as many in turn as of the other, once the first two slots are free"


def test_slots_of_requests_that_are_given_up_are_not_lost() -> None:
    async def story() -> None:
        slots = Slots(1)
        entered = asyncio.Event()

        async def hold() -> None:
            async with slots.of("a"):
                entered.set()
                await asyncio.sleep(3600)

        holding = asyncio.create_task(hold())
        await entered.wait()
        waiting = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        entered.clear()
        waiting[0].cancel()  # while it waits
        holding.cancel()
        waiting[1].cancel()  # perhaps with a slot just given to it
        await asyncio.gather(holding, *waiting[:2], return_exceptions=True)
        await asyncio.wait_for(entered.wait(), 5)
        waiting[2].cancel()
        await asyncio.gather(waiting[2], return_exceptions=True)
        async with asyncio.timeout(5), slots.of("b"):
            pass

    asyncio.run(story())
