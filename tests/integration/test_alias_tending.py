"""What is done for aliases now and then, in a real Redis: one thing keeps no other one waiting."""

from __future__ import annotations

import asyncio

from services.api.aliases.changes import first_entry
from services.api.aliases.tending import Tending
from shared import keys
from shared.alias_records import AliasRecord
from shared.records import KeyRecord
from shared.store.aliases import AliasStore
from shared.store.client import Client
from tests.api_server import with_store

ALIASES = 9


def test_what_fails_or_takes_long_for_aliases_leaves_the_rest_to_be_done(redis_url: str) -> None:
    async def story(client: Client) -> None:
        aliases, done = AliasStore(client), set[str]()
        caller = KeyRecord(id="key_1", name="ada", project="proj_a", created_at=1)
        for number in range(ALIASES):
            record = AliasRecord(
                uid=f"u{number}", name=f"bot{number}", project="proj_a", target="m", created_at=1, updated_at=1
            )
            await aliases.create(record, first_entry(record, "", caller))
            await client.call("SADD", keys.TENDED_ALIASES, f"proj_a {record.name}")

        async def fail(alias: AliasRecord, now: float) -> None:
            raise ValueError("broken")

        async def take_long(alias: AliasRecord, now: float) -> None:
            await asyncio.Event().wait()

        async def do(alias: AliasRecord, now: float) -> None:
            done.add(alias.name)

        tending = Tending(client, aliases, [fail, take_long, do], asyncio.Event())
        tending.start()
        async with asyncio.timeout(20):
            while len(done) < ALIASES:
                await asyncio.sleep(0.01)
        await tending.close()

    with_store(redis_url, story)
