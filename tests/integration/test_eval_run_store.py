"""Runs in the database: what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from shared import keys
from shared.errors import NotFound, RateLimited
from shared.eval_records import EvalRecord, EvalRunRecord
from shared.eval_states import EvalRunState
from shared.records import FileRecord
from shared.schemas.evals import CustomDataSource
from shared.store import entries, eval_runs
from shared.store.client import Client
from shared.store.eval_runs import Entry, EvalRunStore
from shared.store.evals import EvalStore
from shared.store.files import FileStore
from tests.api_server import with_store

EVAL = EvalRecord(
    id="eval_1", project="p", data_source_config=CustomDataSource(item_schema={}), testing_criteria=[], created_at=0
)


def record(number: int, **fields: Any) -> EvalRunRecord:
    return EvalRunRecord(id=f"run_{number}", eval_id="eval_1", project="p", criteria=[], created_at=number, **fields)


def ended(run: EvalRunRecord) -> EvalRunRecord:
    return replace(run, status=EvalRunState.CANCELED)


async def entries_of(client: Client, family: str) -> Sequence[entries.Entry]:
    found = (await entries.find(client))[family]
    return [one async for one in entries.read(client, family, found)]


def test_a_page_has_as_many_runs_as_their_sources_allow(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_runs, "MAX_PAGE_BYTES", 25)
    seen: list[tuple[Sequence[str], bool]] = []

    async def look(client: Client) -> None:
        await EvalStore(client).create(EVAL)
        store = EvalRunStore(client, item_days=1)
        for number, size in enumerate([10, 10, 10, 40, 10]):
            status = EvalRunState.FAILED if number == 1 else EvalRunState.QUEUED
            await store.create(record(number, status=status), source=msgspec.json.encode("x" * (size - 2)))
        after, more = None, True
        while more:
            found, more = await store.list("eval_1", status="queued", after=after, limit=3, newest_first=False)
            after = found[-1].record.id
            seen.append(([one.record.id for one in found], more))
        assert (await store.find_record("run_3", eval_id="eval_1", project="p")).created_at == 3
        for eval_id, project in (("eval_2", "p"), ("eval_1", "q")):
            with pytest.raises(NotFound):
                await store.find("run_3", eval_id=eval_id, project=project)

    with_store(redis_url, look)
    assert seen == [(["run_0", "run_2"], True), (["run_3"], True), (["run_4"], False)]


def test_results_are_read_a_few_at_a_time(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_runs, "MAX_PORTION_BYTES", 10)

    async def look(client: Client) -> None:
        await EvalStore(client).create(EVAL)
        store = EvalRunStore(client, item_days=1)
        await store.create(record(1), source=b"{}")
        texts = [b"a" * size for size in (4, 4, 4, 30, 1)]
        await store.keep("run_1", [Entry(number, "p", text, {}) for number, text in enumerate(texts)], fence="")
        found = [some async for some in store.many_items("run_1", [0, 1, 2, 3, 4, 7])]
        assert found == [texts[:2], texts[2:3], texts[3:4], texts[4:]]
        assert await store.items("run_1", []) == []

    with_store(redis_url, look)


def test_what_a_run_keeps_counts_until_it_goes(redis_url: str) -> None:
    async def look(client: Client) -> None:
        await EvalStore(client).create(EVAL)
        files, store = FileStore(client, project_bytes=1000), EvalRunStore(client, item_days=1)
        source, run = b"s" * 10, record(1)

        async def used() -> int:
            """Return what is counted, after making sure that adding it up anew gives the same."""
            counted = await files.used_bytes("p")
            await client.call("DEL", keys.project_bytes("p"))
            assert await files.used_bytes("p") == counted
            return counted

        assert await used() == 0
        for _ in range(2):
            await store.create(run, source=source, rows_bytes=100)
        assert await used() == 110
        for _ in range(2):
            await store.keep("run_1", [Entry(0, "", b"draft", {}), Entry(0, "p", b"r" * 40, {})], fence="")
        for _ in range(2):
            await store.update("run_1", ended)
        assert await used() == 50

        (kept,) = await entries_of(client, "eval_run")
        await store.remove(run)
        await store.remove(run)
        assert await used() == 0
        assert await entries.put_back(client, kept) and await files.used_bytes("p") == 0
        await client.call("DEL", keys.project_bytes("p"))
        assert await used() == 50, "as after a restore"
        await client.call("ZADD", keys.answers("p"), 1, "run_1 results 40")  # as when they have expired
        assert await used() == 10
        await store.remove(run)
        assert await used() == 0 and not await client.call("EXISTS", keys.answers("p"))

    with_store(redis_url, look)


def test_a_file_counts_until_its_runs_have_ended(redis_url: str) -> None:
    async def look(client: Client) -> None:
        await EvalStore(client).create(EVAL)
        files, store = FileStore(client, project_bytes=1000), EvalRunStore(client, item_days=1)
        file = FileRecord(
            id="file-1", project="p", filename="a", purpose="evals", size_bytes=60, sha256="", created_at=0
        )
        await files.add(file)
        await client.call("DEL", keys.project_bytes("p"))  # as before storage was counted
        for number in (1, 2, 2):
            await store.create(record(number, file_id=file.id), source=b"", file_bytes=60)
        assert await files.remove(file)
        assert await files.used_bytes("p") == 60
        with pytest.raises(NotFound):
            await store.create(record(3, file_id=file.id), source=b"", file_bytes=60)
        await store.update("run_1", ended)
        assert await files.used_bytes("p") == 60
        await store.remove(record(2, file_id=file.id))
        assert await files.used_bytes("p") == 0
        assert not await client.call("EXISTS", keys.file_batches(file.id))

    with_store(redis_url, look)


def test_a_project_has_so_many_runs_under_way_and_no_more(redis_url: str) -> None:
    async def look(client: Client) -> None:
        await EvalStore(client).create(EVAL)
        store = EvalRunStore(client, item_days=1, project_runs=2)
        for number in (1, 2, 2):
            await store.create(record(number), source=b"")
        await store.check_active("q")
        with pytest.raises(RateLimited):
            await store.check_active("p")
        with pytest.raises(RateLimited) as refused:
            await store.create(record(3), source=b"")
        assert refused.value.code == "concurrent_eval_runs_exceeded"
        await store.update("run_1", ended)
        await store.create(record(3), source=b"")
        await store.remove(record(2))
        await store.create(record(4), source=b"")

    with_store(redis_url, look)
