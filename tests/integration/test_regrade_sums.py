"""Runs over rollouts in the database: each result is read once, and sums stay when results are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from services.api.rollouts.regraded import Regraded
from shared import keys
from shared.errors import NotFound
from shared.eval_records import EvalRecord, EvalRunRecord, RegradedJob
from shared.eval_states import EvalRunState
from shared.schemas.evals import CustomDataSource
from shared.schemas.graders import StringCheckGrader
from shared.store.client import Client
from shared.store.eval_runs import Entry, EvalRunStore
from shared.store.evals import EvalStore
from tests.api_server import with_store

CHECK = StringCheckGrader(name="n", input="i", reference="r", operation="eq")
EVAL = EvalRecord(
    id="eval_1", project="p", data_source_config=CustomDataSource(item_schema={}), testing_criteria=[CHECK],
    created_at=0, regrades=RegradedJob(job_id="ftjob-1", grader=CHECK),
)  # fmt: skip
RUN = EvalRunRecord(id="run_1", eval_id="eval_1", project="p", criteria=["n"], created_at=0, rows=3)


class Noting(EvalRunStore):
    """Notes which results are read."""

    read_numbers: list[int]

    async def items(self, run_id: str, numbers: Sequence[int]) -> Sequence[bytes]:
        self.read_numbers += numbers
        return await super().items(run_id, numbers)


def entry(number: int) -> Entry:
    which = {"step": 1, "validation": False, "line": 2, "sample": number, "reward": 1.0}
    results = [{"name": "n", "type": "string_check", "score": number / 2, "passed": True}]
    text = msgspec.json.encode({"datasource_item": {"selftune_rollout": which}, "results": results})
    return Entry(number, "p", text, {})


def test_results_are_read_once_and_sums_outlive_them(redis_url: str) -> None:
    async def look(client: Client) -> None:
        evals, runs = EvalStore(client), Noting(client, item_days=1)
        runs.read_numbers = []
        await evals.create(EVAL)
        await runs.create(RUN, source=b"{}")
        await runs.update("run_1", lambda run: replace(run, status=EvalRunState.IN_PROGRESS))
        regraded = Regraded(evals, runs)

        async def graded(by: Regraded) -> tuple[str, int, list[float]]:
            found = await by.find("run_1", job_id="ftjob-1", project="p")
            return found.status, found.graded, [step.reward_mean for step in found.steps]

        assert await graded(regraded) == ("in_progress", 0, [])
        await runs.keep("run_1", [entry(0), entry(2)], fence="")
        one, other = await asyncio.gather(graded(regraded), graded(regraded))
        assert one == other == ("in_progress", 2, [0.5]) and runs.read_numbers == [0, 2]
        await runs.keep("run_1", [entry(1)], fence="")
        await runs.update("run_1", lambda run: replace(run, status=EvalRunState.COMPLETED))
        assert await graded(regraded) == ("completed", 3, [0.5]) and runs.read_numbers == [0, 2, 1]
        await client.call("DEL", keys.eval_items("run_1"), keys.eval_marks("run_1"))  # as their lifetime does
        assert await graded(Regraded(evals, runs)) == ("completed", 3, [0.5]) and runs.read_numbers == [0, 2, 1]
        await runs.remove(await runs.get("run_1"))
        with pytest.raises(NotFound):
            await graded(regraded)

    with_store(redis_url, look)
