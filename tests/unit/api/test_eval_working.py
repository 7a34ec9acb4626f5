"""A row that breaks down in a way that nobody foresaw."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.api.evals.failing import RunFailed
from services.api.evals.rows import Row
from services.api.evals.working import Working
from shared.errors import NoReplica
from shared.eval_records import ERRORED, EvalRunRecord
from shared.schemas.evals import EvalError
from shared.store.eval_runs import Entry


class _Rows:
    def row(self, number: int) -> Row:
        return Row(item={"n": number}, sample={"output_text": str(number)})


class _Grading:
    criteria = (None,)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def is_paid(self, place: int) -> bool:
        return False

    async def grade(self, place: int, *, item: dict[str, Any], spoken: dict[str, Any]) -> Any:
        raise self._error


def work(error: Exception) -> list[Entry]:
    """Work on two rows whose grader raises `error`."""
    kept: list[Entry] = []

    async def keep(entry: Entry) -> None:
        kept.append(entry)

    record = EvalRunRecord(id="evalrun_1", eval_id="eval_1", project="p", criteria=["c"], created_at=0)
    parts: Any = (None, _Grading(error), SimpleNamespace(keep=keep), record, cast(Any, _Rows()))
    working = Working(*parts, questions=None, drafts={})
    asyncio.run(working.work_all(range(2), concurrency=1, stop=asyncio.Event()))
    return kept


def test_what_nobody_foresaw_is_an_error_of_the_row() -> None:
    kept = work(RecursionError("deep"))
    assert [(one.number, one.mark, one.counts) for one in kept] == [(n, "e", {ERRORED: 1}) for n in range(2)]
    assert b"server_error" in kept[0].text and b"deep" not in kept[0].text


@pytest.mark.parametrize("error", [NoReplica("away"), RunFailed(EvalError(code="model_not_found", message="gone"))])
def test_what_concerns_the_run_goes_through(error: Exception) -> None:
    with pytest.raises(type(error)):
        work(error)
