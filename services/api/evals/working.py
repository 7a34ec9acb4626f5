"""The rows of a run, several at a time: each answered, graded by every criterion, and kept before the next.

What was paid for is kept before the next is asked: an answer before a judge is asked about it, and what a judge has
said before the next one is. So whoever takes the run over pays for nothing twice but what was under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Struct

from services.api.batches.side_by_side import side_by_side
from services.api.batches.usage import usage_of
from services.api.evals.asking import Asking
from services.api.evals.failing import MODEL_GONE, RunFailed
from services.api.evals.grading import Grading
from services.api.evals.keeping import Keeping
from services.api.evals.questions import (
    Questions,
    given_answer,
    refusal_of,
    shown_messages,
    stored_answer,
    used,
)
from services.api.evals.rows import Row, Rows
from shared.errors import InvalidRequest, SelftuneError
from shared.eval_records import ERRORED, FAILED, PASSED, EvalRunRecord, of_criterion, of_model, output_item_id
from shared.schemas.evals import EvalError, ItemResult, ItemStatus, ModelUsage, OutputItem, Sample, SampleMessage
from shared.store.eval_runs import MARKS, Entry


class Draft(Struct, kw_only=True):
    """A row that is answered, and graded by the first criteria."""

    sample: Sample
    spoken: dict[str, Any]
    results: list[ItemResult] = []


_UNREADABLE = EvalError(code="unreadable_answer", message="No chat completion.")
_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")
_log = structlog.get_logger()

_decode_draft = msgspec.json.Decoder(Draft).decode
_encode = msgspec.json.Encoder().encode


class Working:
    """Works on the rows of one run that have no result yet."""

    def __init__(
        self,
        asking: Asking,
        grading: Grading,
        keeping: Keeping,
        record: EvalRunRecord,
        rows: Rows,
        *,
        questions: Questions | None,
        drafts: dict[int, bytes],
    ) -> None:
        self._asking = asking
        self._grading = grading
        self._keeping = keeping
        self._record = record
        self._rows = rows
        self._questions = questions
        self._drafts = drafts

    async def work_all(self, todo: Sequence[int], *, concurrency: int, stop: asyncio.Event) -> None:
        """Return when these rows have their results, or soon after `stop`: what is under way then is dropped.

        Raises NoReplica when a model is away, RunFailed, TransitionRefused when the run has ended, LeaseLost.
        """
        numbers = iter(todo)
        await side_by_side(lambda: self._work(numbers), count=min(concurrency, len(todo)), stop=stop)

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            row = self._rows.row(number)
            await self._keeping.keep(await self._entry_whatever_happens(number, row))

    async def _entry_whatever_happens(self, number: int, row: Row) -> Entry:
        """Bring a row to its result; what nobody foresaw is the row's error, not the run's."""
        try:
            return await self._entry(number, row)
        except (RunFailed, SelftuneError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - ends this row, not the thousands beside it
            _log.error("eval_run.row_broken", run_id=self._record.id, row=number, exc_info=error)
            return self._result(number, row, _failed(_BROKEN), {})

    async def _entry(self, number: int, row: Row) -> Entry:
        """Bring a row to its result."""
        counts: dict[str, int] = {}
        if number in self._drafts:
            draft = _decode_draft(self._drafts[number])
        else:
            draft = await self._answered(row, counts)
        if draft.sample.error.code:
            return self._result(number, row, draft, counts)
        for place in range(len(draft.results), len(self._grading.criteria)):
            if counts and self._grading.is_paid(place):
                await self._keeping.keep(Entry(number, "", _encode(draft), counts))
                counts = {}
            result, usage = await self._grading.grade(place, item=row.item, spoken=draft.spoken)
            draft.results.append(result)
            _add(counts, usage)
        return self._result(number, row, draft, counts)

    async def _answered(self, row: Row, counts: dict[str, int]) -> Draft:
        """Have a row answered; what that costs is added to the counts."""
        if self._questions is None:
            return _brought_along(row)
        try:
            body, asked = self._questions.body_for(row)
        except InvalidRequest as error:
            return _refused(self._questions, EvalError(code=error.code or "invalid_row", message=error.message), [])
        status, answer = await self._asking.answer(self._record.model, body)
        if status != 200:
            refusal = refusal_of(answer)
            if refusal.code == MODEL_GONE:
                raise RunFailed(refusal)
            return _refused(self._questions, refusal, asked)
        try:
            found = self._questions.answered(answer, asked)
        except msgspec.MsgspecError:
            return _refused(self._questions, _UNREADABLE, asked)
        _add(counts, [used(self._questions.model, usage_of(answer))])
        return Draft(sample=found.sample, spoken=found.spoken)

    def _result(self, number: int, row: Row, draft: Draft, counts: dict[str, int]) -> Entry:
        status = _status(draft)
        item = OutputItem(
            id=output_item_id(self._record.id, number),
            run_id=self._record.id,
            eval_id=self._record.eval_id,
            created_at=int(time.time()),
            status=status,
            datasource_item_id=number,
            datasource_item=row.item,
            results=draft.results,
            sample=draft.sample,
        )
        counts = {**counts, {"pass": PASSED, "fail": FAILED, "error": ERRORED}[status]: 1}
        for place, result in enumerate(draft.results):
            if result.error is UNSET:
                counts[of_criterion(place, passed=result.passed)] = 1
        return Entry(number, MARKS[status], _encode(item), counts)


def _status(draft: Draft) -> ItemStatus:
    if draft.sample.error.code or any(result.error is not UNSET for result in draft.results):
        return "error"
    return "pass" if all(result.passed for result in draft.results) else "fail"


def _brought_along(row: Row) -> Draft:
    """Read the answer that a row has already."""
    try:
        found = stored_answer(bytes(row.answer), _asked(row)) if row.is_answered else given_answer(row)
    except (msgspec.MsgspecError, RecursionError):
        return _failed(_UNREADABLE)
    return Draft(sample=found.sample, spoken=found.spoken)


def _failed(error: EvalError) -> Draft:
    return Draft(sample=Sample(error=error, finish_reason="error"), spoken={})


def _asked(row: Row) -> list[SampleMessage]:
    messages = row.item.get("input")
    return shown_messages(messages if isinstance(messages, list) else [])


def _refused(questions: Questions, error: EvalError, asked: list[SampleMessage]) -> Draft:
    return Draft(sample=questions.refused(error, asked), spoken={})


def _add(counts: dict[str, int], usage: Sequence[ModelUsage]) -> None:
    for one in usage:
        for name, count in of_model(one).items():
            counts[name] = counts.get(name, 0) + count
