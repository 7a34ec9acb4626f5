"""One A/B run from where it is to its end, by the process that holds its lease. It may die between any two lines."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from services.api.ab_runs.judging import BlindJudge
from services.api.ab_runs.working import AbWorking, Answers, has_result, results_gone
from services.api.evals.failing import RunFailed
from services.api.evals.judging import PatientJudge
from services.api.evals.keeping import Keeping
from services.api.evals.run import ROWS_A_REQUEST, Run
from shared.ab_records import AbSpec
from shared.errors import NoReplica, NotFound
from shared.eval_records import EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.schemas.evals import EvalError
from shared.store.eval_runs import EvalRunStore

_log = structlog.get_logger()

decode_spec = msgspec.json.Decoder(AbSpec).decode


class NotYet(NoReplica):
    """The answers that are to be compared are not all there, so the A/B run rests."""


class AbRun(Run):
    """Works on an A/B run as Run does on others, from its two runs' results instead of rows of its own."""

    async def _bring_to_end(self) -> None:
        record = await self._tried()
        tools = self._tools
        found = await tools.runs.find(self._id, eval_id=record.eval_id, project=record.project, kind="ab")
        spec = decode_spec(found.source)
        if not await _are_there(tools.runs, spec, record):
            raise NotYet("the runs that it compares are under way")
        a, b = [Answers(one, await tools.runs.marks(one)) for one in (spec.run_a, spec.run_b)]
        most = max(len(a.marks), len(b.marks))
        numbers = [number for number in range(most) if has_result(a.marks, number) or has_result(b.marks, number)]
        if not numbers:
            raise results_gone()
        record = await self._begin(len(numbers))
        await self._judge_all(record, spec, (a, b), numbers)
        if not self._stop.is_set():
            record = await self._change(EvalRunState.COMPLETED)
            _log.info("ab_run.ended", run_id=self._id, status=record.status.value, rows=record.rows)

    async def _judge_all(
        self, record: EvalRunRecord, spec: AbSpec, sides: tuple[Answers, Answers], numbers: Sequence[int]
    ) -> None:
        tools = self._tools
        marks = await tools.runs.marks(self._id)
        todo = [number for number in numbers if not has_result(marks, number)]
        _log.info("ab_run.begun", run_id=self._id, rows=len(numbers), left=len(todo))
        if not todo:
            return
        working = AbWorking(
            tools.runs,
            Keeping(tools.runs, self._id, self._token),
            self._judge(spec, record),
            record,
            spec,
            sides,
            drafts=await tools.runs.drafts(self._id),
        )
        await working.work_all(todo, concurrency=ROWS_A_REQUEST * tools.concurrency, stop=self._stop)

    def _judge(self, spec: AbSpec, record: EvalRunRecord) -> BlindJudge | None:
        if spec.judge is None:
            return None
        tools = self._tools
        patient = PatientJudge(tools.answering, tools.graders.judges, tools.slots, record.access)
        return BlindJudge(spec.judge, tools.graders.means(patient))


async def waits(runs: EvalRunStore, record: EvalRunRecord) -> bool:
    """Tell whether an A/B run has to wait for the runs that it compares."""
    try:
        found = await runs.find(record.id, eval_id=record.eval_id, project=record.project, kind="ab")
        return not await _are_there(runs, decode_spec(found.source), record)
    except (NotFound, RunFailed):
        return False


async def _are_there(runs: EvalRunStore, spec: AbSpec, record: EvalRunRecord) -> bool:
    """Tell whether both runs are completed. Raises RunFailed for one that never will be."""
    states = [await _state(runs, one, record) for one in (spec.run_a, spec.run_b)]
    return all(state is EvalRunState.COMPLETED for state in states)


async def _state(runs: EvalRunStore, run_id: str, record: EvalRunRecord) -> EvalRunState:
    try:
        found = await runs.find_record(run_id, eval_id=record.eval_id, project=record.project)
    except NotFound as error:
        raise RunFailed(EvalError(code="eval_run_not_found", message=f"Run '{run_id}' was deleted.")) from error
    if found.status in ENDED and found.status is not EvalRunState.COMPLETED:
        raise RunFailed(
            EvalError(code="invalid_run_state", message=f"Run '{run_id}' has status '{found.status.value}'.")
        )
    return found.status
