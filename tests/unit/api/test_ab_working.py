"""Rows of A/B runs that were judged in one order already, and what a judge does to a row."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from services.api.ab_runs.judging import BlindJudge
from services.api.ab_runs.working import AbWorking, Answers, Draft
from services.api.evals.failing import RunFailed
from shared.ab_records import CHOSE_FIRST, LEANING_FIRST, AbSpec, of_status
from shared.errors import NoReplica
from shared.eval_records import EvalRunRecord
from shared.grading.means import Answer, Means
from shared.schemas.ab_runs import AbItem, AbJudge
from shared.schemas.evals import OutputItem, Sample, SampleMessage
from shared.store.eval_runs import Entry

JUDGE = AbJudge(model="judge")
SPEC = AbSpec(run_a="a", run_b="b", judge=JUDGE, seed=1, salt="00")


class _Runs:
    """Has the results of both runs; row 9 is gone."""

    async def items(self, run_id: str, numbers: list[int]) -> list[bytes]:
        item = OutputItem(
            id="x", run_id=run_id, eval_id="e", created_at=0, status="pass", datasource_item_id=numbers[0],
            datasource_item={}, results=[], sample=Sample(output=[SampleMessage(role="assistant", content=run_id)]),
        )  # fmt: skip
        return [] if numbers == [9] else [msgspec.json.encode(item)]


class _Judge:
    """Says what it is told to, one after the other; an error is raised."""

    def __init__(self, says: list[str | Exception]) -> None:
        self.says = says
        self.asked: list[str] = []

    async def ask(self, model: str, messages: list[dict[str, Any]], *_: Any) -> Answer:
        self.asked.append(messages[-1]["content"])
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return Answer(text=json.dumps({"result": said}), prompt_tokens=3, completion_tokens=2)


def work(judge: _Judge, *, number: int = 0, draft: Draft | None = None) -> list[Entry]:
    """Work on one row and return what was kept, in order."""
    kept: list[Entry] = []

    async def keep(entry: Entry) -> None:
        kept.append(entry)

    record = EvalRunRecord(id="abrun_1", eval_id="e", project="p", kind="ab", criteria=[], created_at=0)
    drafts = {} if draft is None else {number: msgspec.json.encode(draft)}
    sides = (Answers("a", b"p" * 10), Answers("b", b"f" * 10))
    keeping: Any = SimpleNamespace(keep=keep)
    working = AbWorking(
        cast(Any, _Runs()), keeping, BlindJudge(JUDGE, Means(judge=judge)), record, SPEC, sides, drafts=drafts
    )
    asyncio.run(working.work_all([number], concurrency=1, stop=asyncio.Event()))
    return kept


def result(entry: Entry) -> AbItem:
    return msgspec.json.decode(entry.text, type=AbItem)


def test_each_order_is_kept_before_the_next_is_paid_for() -> None:
    judge = _Judge(["first", "second"])
    draft, done = work(judge)
    assert (draft.mark, done.mark) == ("", result(done).status)
    assert draft.counts == {
        "invocation_count judge": 1, "prompt_tokens judge": 3, "completion_tokens judge": 2, "total_tokens judge": 5,
    }  # fmt: skip
    first_order, second_order = judge.asked
    assert first_order.index("answer:\na") != second_order.index("answer:\na"), "both orders are shown"
    half = msgspec.json.decode(draft.text, type=Draft)
    resumed = _Judge(["second"])
    (again,) = work(resumed, draft=half)
    assert resumed.asked == [second_order] and result(again).judgements == result(done).judgements
    assert again.counts == done.counts and done.counts[CHOSE_FIRST] == 1 and LEANING_FIRST not in done.counts


def test_a_judge_of_one_mind_about_places_makes_ties() -> None:
    (_, done) = work(_Judge(["first", "first"]))
    assert (done.mark, done.counts[of_status("tie")], done.counts[LEANING_FIRST]) == ("t", 1, 1)
    (_, done) = work(_Judge(["first", "tie"]))
    assert (done.mark, done.counts[LEANING_FIRST]) == ("t", 1)


def test_a_judge_that_breaks_down_is_not_asked_about_the_other_order() -> None:
    judge = _Judge(["nonsense"])
    (done,) = work(judge)
    assert (done.mark, len(judge.asked), CHOSE_FIRST in done.counts) == ("e", 1, False)
    assert done.counts["invocation_count judge"] == 1
    (broken,) = work(_Judge([RecursionError("deep")]))
    assert (broken.mark, result(broken).judgements[0].error.code) == ("e", "server_error")


def test_what_concerns_the_run_goes_through() -> None:
    with pytest.raises(NoReplica):
        work(_Judge([NoReplica("away")]))
    with pytest.raises(RunFailed, match="not kept any more"):
        work(_Judge([]), number=9)
