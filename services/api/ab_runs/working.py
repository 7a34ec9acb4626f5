"""The rows of an A/B run, several at a time: both answers put beside each other, judged in both orders, and kept.

What a judge has said to one order is kept before it is asked about the other, so that whoever takes the run over pays
for nothing twice but what was under way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec import UNSET, Struct

from services.api.ab_runs.rubric import grader_of
from services.api.batches.side_by_side import side_by_side
from services.api.evals.failing import RunFailed
from services.api.evals.grading import error_of_grade, usage_of_grade
from services.api.evals.keeping import Keeping
from shared.ab_records import AbSpec, of_status, places_of
from shared.errors import SelftuneError
from shared.eval_records import EvalRunRecord, of_model, output_item_id
from shared.grading.means import Means
from shared.grading.run import grade
from shared.grading.samples import sample_of
from shared.schemas.ab_runs import AbItem, AbItemStatus, AbJudgement, Choice, Side
from shared.schemas.evals import EvalError, OutputItem
from shared.store.eval_runs import AB_MARKS, Entry, EvalRunStore

_log = structlog.get_logger()

_ORDERS: tuple[Side, Side] = ("a", "b")
_NO_ERROR = EvalError()
_BROKEN = EvalError(code="server_error", message="An internal error occurred; the server's log has it.")

_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(OutputItem).decode


class Answers(NamedTuple):
    """The run whose answers one side has; `marks` says for which rows."""

    id: str
    marks: bytes


class Draft(Struct, frozen=True, kw_only=True):
    """A row that was judged in one order."""

    judgements: list[AbJudgement]


_decode_draft = msgspec.json.Decoder(Draft).decode


class AbWorking:
    """Works on the rows of one A/B run that have no result yet. Without a judge they are put side by side alone."""

    def __init__(
        self,
        runs: EvalRunStore,
        keeping: Keeping,
        means: Means,
        record: EvalRunRecord,
        spec: AbSpec,
        sides: tuple[Answers, Answers],
        *,
        drafts: dict[int, bytes],
    ) -> None:
        self._runs = runs
        self._keeping = keeping
        self._means = means
        self._record = record
        self._spec = spec
        self._sides = sides
        self._drafts = drafts
        self._grader = None if spec.judge is None else grader_of(spec.judge)

    async def work_all(self, todo: Sequence[int], *, concurrency: int, stop: asyncio.Event) -> None:
        """Return when these rows have their results, or soon after `stop`: what is under way then is dropped.

        Raises NoReplica when the judge is away, RunFailed, TransitionRefused when the run has ended, LeaseLost.
        """
        numbers = iter(todo)
        await side_by_side(lambda: self._work(numbers), count=min(concurrency, len(todo)), stop=stop)

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._keeping.keep(await self._entry(number))

    async def _entry(self, number: int) -> Entry:
        """Bring a row to its result."""
        here, other = [await self._answer(side, number) for side in (0, 1)]
        if here is None or other is None:
            return self._left_out(
                number, here or other, "only_in_one_run", "Only one of the runs has a result for this row."
            )
        if here.datasource_item != other.datasource_item:
            return self._left_out(number, here, "rows_differ", "The runs have different rows at this place.")
        if not (_has_answer(here) and _has_answer(other)):
            return self._left_out(number, here, "no_answer", "One of the runs has no answer to this row.")
        return await self._judged(number, here, other)

    async def _answer(self, side: int, number: int) -> OutputItem | None:
        """Return a run's result for a row, None if it has no such row. Raises RunFailed when it had one."""
        run = self._sides[side]
        if not has_result(run.marks, number):
            return None
        texts = await self._runs.items(run.id, [number])
        if not texts:
            raise results_gone()
        return _decode_item(texts[0])

    async def _judged(self, number: int, here: OutputItem, other: OutputItem) -> Entry:
        counts: dict[str, int] = {}
        judgements: list[AbJudgement] = []
        if number in self._drafts:
            judgements += _decode_draft(self._drafts[number]).judgements
        for first in self._orders(number)[len(judgements) :] if self._grader is not None else ():
            if judgements and judgements[-1].choice is None:
                break  # the row has no verdict any more
            if counts:
                await self._keeping.keep(Entry(number, "", _encode(Draft(judgements=judgements)), counts))
                counts = {}
            judgements.append(await self._judgement(number, first, here, other, counts))
        winners = {one.winner for one in judgements}
        status = _status(winners) if self._grader is not None else "unjudged"
        if None not in winners:
            counts |= places_of(judgements)
        return self._result(number, status, here, other, judgements=judgements, counts=counts)

    def _orders(self, number: int) -> Sequence[Side]:
        """Return whose answer stands first, for each order in which the judge is asked."""
        return _ORDERS if random.Random(f"{self._spec.seed} {number}").random() < 0.5 else _ORDERS[::-1]

    async def _judgement(
        self, number: int, first: Side, here: OutputItem, other: OutputItem, counts: dict[str, int]
    ) -> AbJudgement:
        """Ask the judge about one order; what that costs is added to the counts. Raises NoReplica, RunFailed.

        What nobody foresaw is the row's error, not the run's.
        """
        assert self._grader is not None
        shown = (here, other) if first == "a" else (other, here)
        sample = {place: _spoken(one) for place, one in zip(("first", "second"), shown, strict=True)}
        try:
            found = await grade(self._grader, item=here.datasource_item, sample=sample, means=self._means)
        except (RunFailed, SelftuneError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - ends this row, not the thousands beside it
            _log.error("ab_run.row_broken", run_id=self._record.id, row=number, exc_info=error)
            return AbJudgement(first=first, choice=None, error=_BROKEN)
        for usage in usage_of_grade(found):
            for name, count in of_model(usage).items():
                counts[name] = counts.get(name, 0) + count
        if fault := error_of_grade(found):
            return AbJudgement(first=first, choice=None, error=fault)
        choice: Choice = msgspec.convert(found.label, Choice)
        return AbJudgement(first=first, choice=choice)

    def _left_out(self, number: int, there: OutputItem | None, code: str, message: str) -> Entry:
        return self._result(number, "left_out", there, None, error=EvalError(code=code, message=message))

    def _result(
        self,
        number: int,
        status: AbItemStatus,
        here: OutputItem | None,
        other: OutputItem | None,
        *,
        judgements: Sequence[AbJudgement] = (),
        counts: dict[str, int] | None = None,
        error: EvalError = _NO_ERROR,
    ) -> Entry:
        asked = [one.sample.input for one in (here, other) if one is not None]
        item = AbItem(
            id=output_item_id(self._record.id, number),
            ab_run_id=self._record.id,
            eval_id=self._record.eval_id,
            created_at=int(time.time()),
            status=status,
            datasource_item_id=number,
            datasource_item=here.datasource_item if here is not None else {},
            input=asked[0] if len(asked) == 2 and asked[0] == asked[1] else [],
            a=here.sample.output if here is not None and other is not None else [],
            b=other.sample.output if other is not None else [],
            judgements=list(judgements),
            error=error,
        )
        return Entry(number, AB_MARKS[status], _encode(item), {**(counts or {}), of_status(status): 1})


def has_result(marks: bytes, number: int) -> bool:
    """Tell whether a run has a result for a row."""
    return number < len(marks) and marks[number] != 0


def results_gone() -> RunFailed:
    return RunFailed(
        EvalError(code="results_gone", message="The runs' results were deleted, or are not kept any more.")
    )


def _status(winners: set[Any]) -> AbItemStatus:
    """Say what a row came to: one wins only where the judge chose it in both orders."""
    if None in winners:
        return "error"
    only: AbItemStatus = winners.pop() if len(winners) == 1 else "tie"
    return only


def _has_answer(item: OutputItem) -> bool:
    return not item.sample.error.code and bool(item.sample.output)


def _spoken(item: OutputItem) -> dict[str, Any]:
    message = item.sample.output[-1]
    return sample_of(message.content, None if message.tool_calls is UNSET else message.tool_calls)
