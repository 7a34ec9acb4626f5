"""Counts of usage: told once, whatever cuts the telling off."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

import pytest

from services.inference.http.usage import UsageCounts
from shared.errors import StoreUnavailable
from shared.store.usage import Counts, UsageStore, Used


class Slow:
    """Answers when it is told to."""

    def __init__(self, *, fails: bool) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.fails = fails
        self.told: Counter[Used] = Counter()

    async def add(self, counted: Counts) -> None:
        self.begun.set()
        await self.go_on.wait()
        if self.fails:
            raise StoreUnavailable("away")
        for counts in counted.values():
            self.told.update(counts)


@pytest.mark.parametrize("fails", [False, True])
def test_telling_that_is_cancelled_in_the_middle_loses_nothing_and_tells_nothing_twice(fails: bool) -> None:
    async def story() -> None:
        store = Slow(fails=fails)
        counts = UsageCounts(cast(UsageStore, store))
        counts.note("p", "m", prompt=5, cached=0, completion=2)
        telling = asyncio.create_task(counts.tell())
        await store.begun.wait()
        telling.cancel()
        await asyncio.sleep(0)
        assert not telling.done()
        store.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await telling
        store.fails = False
        await counts.tell()
        assert store.told[Used("requests", "m")] == 1
        assert store.told[Used("input_tokens", "m")] == 5

    asyncio.run(story())
