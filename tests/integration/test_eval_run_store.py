"""Runs in the database: what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from shared.errors import NotFound
from shared.eval_records import EvalRecord, EvalRunRecord
from shared.eval_states import EvalRunState
from shared.schemas.evals import CustomDataSource
from shared.store import eval_runs
from shared.store.client import Client
from shared.store.eval_runs import Entry, EvalRunStore
from shared.store.evals import EvalStore
from tests.api_server import with_store

EVAL = EvalRecord(
    id="eval_1", project="p", data_source_config=CustomDataSource(item_schema={}), testing_criteria=[], created_at=0
)


def record(number: int, **fields: Any) -> EvalRunRecord:
    return EvalRunRecord(id=f"run_{number}", eval_id="eval_1", project="p", criteria=[], created_at=number, **fields)


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
        for wrong in ({"eval_id": "eval_2", "project": "p"}, {"eval_id": "eval_1", "project": "q"}):
            with pytest.raises(NotFound):
                await store.find("run_3", **wrong)

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
