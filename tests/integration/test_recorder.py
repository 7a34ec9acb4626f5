"""Of several recorders on one data folder one writes, and what another has written meanwhile is never overlooked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.api import recorder
from services.api.recorder import Recorder
from shared import keys
from shared.blobs.local import LocalBlobs
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.paths import Paths
from shared.record_files import RecordFiles
from shared.store.client import Client
from shared.store.entries import Entry
from shared.store.schema import create_schema

Story = Callable[[Client, Recorder, Recorder], Awaitable[None]]


def play(url: str, home: Path, story: Story, *, interval_s: float = 5.0) -> None:
    """Run a story of two recorders."""

    async def run() -> None:
        client, paths = Client(url), Paths(home)
        paths.prepare()
        await create_schema(client)
        try:
            async with asyncio.timeout(60):
                await story(client, *(Recorder(client, LocalBlobs(paths), interval_s=interval_s) for _ in range(2)))
        finally:
            await client.close()

    asyncio.run(run())


async def put(client: Client, *names: str) -> None:
    for name in names:
        await client.call("SET", keys.account(name), json.dumps({"id": name, "project": "p"}))


async def written(home: Path) -> set[str]:
    found = RecordFiles(LocalBlobs(Paths(home))).read()
    return {entry.key.rpartition(":")[2] async for _, entry in found if entry}


def test_what_another_wrote_is_removed_by_who_takes_over(redis_url: str, tmp_path: Path) -> None:
    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        await put(client, "first")
        await one.round()
        await put(client, "second")
        await two.round()
        assert await written(tmp_path) == {"first"}
        await client.call("DEL", keys.RECORDER_LOCK)
        await two.round()
        assert await written(tmp_path) == {"first", "second"}
        await client.call("DEL", keys.RECORDER_LOCK, keys.account("second"))
        await one.round()
        assert await written(tmp_path) == {"first"}

    play(redis_url, tmp_path, story)


def test_round_ends_where_the_lock_is_lost(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_RENEW_S", 0.0)
    monkeypatch.setattr(recorder, "_AT_ONCE", 1)

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        await put(client, "old")
        await one.round()
        await client.call("DEL", keys.account("old"))
        await put(client, "new-1", "new-2")
        write = one._write

        async def lose(known: dict[str, bytes], changed: Sequence[Entry]) -> None:
            await write(known, changed)
            await client.call("SET", keys.RECORDER_LOCK, "another")

        monkeypatch.setattr(one, "_write", lose)
        await one.round()
        assert await written(tmp_path) == {"old", "new-1"}

    play(redis_url, tmp_path, story)


def test_a_write_keeps_the_lock_and_ends_when_it_is_lost(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_RENEW_S", 0.01)

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        await put(client, "slow")
        ended = list[str]()

        async def stuck(_encoded: dict[str, bytes]) -> None:
            await client.call("PEXPIRE", keys.RECORDER_LOCK, 5000)
            while await client.call("PTTL", keys.RECORDER_LOCK) <= 5000:  # until it is renewed
                await asyncio.sleep(0.01)
            await client.call("SET", keys.RECORDER_LOCK, "another")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("in the middle")
                raise

        monkeypatch.setattr(one._files, "write", stuck)
        with pytest.raises(StoreUnavailable):
            await one.round()
        assert ended == ["in the middle"]
        assert await written(tmp_path) == set()

    play(redis_url, tmp_path, story)


def test_lock_is_kept_while_its_holder_rests(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_RENEW_S", 0.1)
    monkeypatch.setattr(recorder, "_LOCK_TTL_S", 1.0)

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        one.start()
        for _ in range(20):
            await asyncio.sleep(0.1)
            await two.round()
            assert await client.call("GET", keys.RECORDER_LOCK) == one._lock.token.encode()
        await put(client, "last")
        await one.close()
        assert await written(tmp_path) == {"last"}
        assert await client.call("GET", keys.RECORDER_LOCK) is None

    play(redis_url, tmp_path, story, interval_s=50.0)


def test_story_of_an_unfinished_job_is_read_only_when_the_rest_changed(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        async def streams_read() -> int:
            commands.clear()
            await one.round()
            return sum(command[0] == "XRANGE" for command in commands)

        await client.call("HSET", keys.job("ftjob-1"), "record", '{"project":"p","status":"running"}')
        await client.call("XADD", keys.job_events("ftjob-1"), "5-1", "event", "a")
        together = client.together

        async def watched(wanted: Sequence[Any]) -> list[Any]:
            commands.extend(wanted)
            return await together(wanted)

        monkeypatch.setattr(client, "together", watched)
        assert await streams_read() == 1
        await client.call("XADD", keys.job_events("ftjob-1"), "5-2", "event", "b")
        assert await streams_read() == 0
        await client.call("HSET", keys.job("ftjob-1"), "record", '{"project":"p","status":"succeeded"}')
        assert await streams_read() == 1
        await client.call("XADD", keys.job_events("ftjob-1"), "5-3", "event", "c")
        assert await streams_read() == 1
        [(_, entry)] = [pair async for pair in RecordFiles(LocalBlobs(Paths(tmp_path))).read()]
        assert entry is not None
        assert [len(value.rows) for value in entry.values if value.type == "stream"] == [3]

    play(redis_url, tmp_path, story)


def test_rounds_come_at_least_every_minute_and_what_is_late_is_told(redis_url: str, tmp_path: Path) -> None:
    assert recorder._pause_s(5.0, 0.1) == 5.0
    assert recorder._pause_s(5.0, 1.0) == 20.0
    assert recorder._pause_s(5.0, 220.0) == 60.0
    assert recorder._pause_s(300.0, 220.0) == 300.0

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        await one.round()
        await two.round()
        assert (one.objection, two.objection) == ("", "")
        one._current_at = time.monotonic() - 66
        assert one.objection == "the records on disk are 66 seconds behind"
        await one.round()
        assert one.objection == ""

    play(redis_url, tmp_path, story)


def test_an_object_store_that_is_away_is_told_and_caught_up_with(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_MOST_WORK", 100.0)

    async def story(client: Client, one: Recorder, two: Recorder) -> None:
        async def fail(*_: Any) -> None:
            raise StorageUnavailable("away")

        await put(client, "first")
        with monkeypatch.context() as away:
            away.setattr(LocalBlobs, "write_files", fail)
            one.start()
            while not one.objection:
                await asyncio.sleep(0.02)
            assert one.objection == "records cannot be written: the object storage does not answer"
        while one.objection:
            await asyncio.sleep(0.02)
        assert await written(tmp_path) == {"first"}
        await one.close()

    play(redis_url, tmp_path, story, interval_s=0.1)
