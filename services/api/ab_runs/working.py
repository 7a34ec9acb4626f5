"""The rows of an A/B run, several at a time: both answers put beside each other, judged in both orders, and kept.

What a judge has said to one order is kept before it is asked about the other, so that whoever takes the run over pays
for nothing twice but what was under way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
from msgspec import Struct

from services.api.ab_runs.asked import input_status
from services.api.ab_runs.judging import BlindJudge
from services.api.batches.side_by_side import side_by_side
from services.api.evals.failing import RunFailed
from services.api.evals.keeping import Keeping
from shared.ab_records import AbSpec, of_status, places_of
from shared.eval_records import EvalRunRecord, of_model, output_item_id
from shared.schemas.ab_runs import AbItem, AbItemStatus, AbJudgement, InputStatus, Side
from shared.schemas.evals import EvalError, OutputItem
from shared.store.eval_runs import AB_MARKS, Entry, EvalRunStore

_ORDERS: tuple[Side, Side] = ("a", "b")
_NO_ERROR = EvalError()

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
        judge: BlindJudge | None,
        record: EvalRunRecord,
        spec: AbSpec,
        sides: tuple[Answers, Answers],
        *,
        drafts: dict[int, bytes],
    ) -> None:
        self._runs = runs
        self._keeping = keeping
        self._judge = judge
        self._record = record
        self._spec = spec
        self._sides = sides
        self._drafts = drafts

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
        """Have a row judged in both orders, or in the first one alone if that gives no verdict."""
        if self._judge is None:
            return self._result(number, "unjudged", here, other)
        counts: dict[str, int] = {}
        judgements: list[AbJudgement] = []
        if number in self._drafts:
            judgements += _decode_draft(self._drafts[number]).judgements
        for first in self._orders(number)[len(judgements) :]:
            if counts:
                await self._keeping.keep(Entry(number, "", _encode(Draft(judgements=judgements)), counts))
            judgement, usage = await self._judge.judge(first, here, other)
            judgements.append(judgement)
            counts = dict(chain.from_iterable(of_model(one).items() for one in usage))
            if judgement.choice is None:
                return self._result(number, "error", here, other, judgements=judgements, counts=counts)
        winners = {one.winner for one in judgements}
        status: AbItemStatus = "a" if winners == {"a"} else "b" if winners == {"b"} else "tie"
        return self._result(
            number, status, here, other, judgements=judgements, counts={**counts, **places_of(judgements)}
        )

    def _orders(self, number: int) -> Sequence[Side]:
        """Return whose answer stands first, for each order in which the judge is asked."""
        return _ORDERS if random.Random(f"{self._spec.seed} {number}").random() < 0.5 else _ORDERS[::-1]

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
        asked: InputStatus = "unknown"
        is_same = False
        if here is not None and other is not None:
            asked = "differs" if self._spec.tools_differ else input_status(here, other)
            is_same = here.sample.input == other.sample.input
        item = AbItem(
            id=output_item_id(self._record.id, number),
            ab_run_id=self._record.id,
            eval_id=self._record.eval_id,
            created_at=int(time.time()),
            status=status,
            datasource_item_id=number,
            datasource_item=here.datasource_item if here is not None else {},
            input=here.sample.input if here is not None and is_same else [],
            input_status=asked,
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


def _has_answer(item: OutputItem) -> bool:
    return not item.sample.error.code and bool(item.sample.output)
