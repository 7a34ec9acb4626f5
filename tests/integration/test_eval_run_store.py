"""Runs in the database: what is read of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from shared.errors import NotFound
from shared.eval_records import EvalRecord, EvalRunRecord
from shared.eval_states import EvalRunState
from shared.schemas.evals import CustomDataSource
from shared.store import eval_runs
from shared.store.client import Client
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore
from tests.api_server import with_store


def record(number: int, **fields: EvalRunState) -> EvalRunRecord:
    return EvalRunRecord(id=f"run_{number}", eval_id="eval_1", project="p", criteria=[], created_at=number, **fields)


def test_a_page_has_as_many_runs_as_their_sources_allow(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_runs, "MAX_PAGE_BYTES", 25)
    seen: list[tuple[Sequence[str], bool]] = []

    async def look(client: Client) -> None:
        config = CustomDataSource(item_schema={})
        await EvalStore(client).create(
            EvalRecord(id="eval_1", project="p", data_source_config=config, testing_criteria=[], created_at=0)
        )
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
