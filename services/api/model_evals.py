"""Models put through an eval one after the other, each by a run of its own, for whatever chooses among them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.api.evals.creation import EvalRuns
from services.api.evals.questions import check_messages
from shared.errors import InvalidRequest, NotFound, TransitionRefused
from shared.eval_records import ERRORED, FAILED, PASSED
from shared.eval_states import ENDED, EvalRunState
from shared.flow_records import FlowError
from shared.model_records import Access
from shared.schemas.evals import CreateEvalRun, EvalStoredCompletions
from shared.schemas.sweeps import ModelEval, RowCounts
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore

MAX_SOURCE_BYTES = 65_536
"""Of a data source, which is written again with every step of what asks for the runs."""
_NOTHING_GRADED = FlowError(code="nothing_graded", message="No row of the run of the eval was graded; see the run.")


class Scored(Struct, frozen=True):
    """What came of a run: its rows, and which share of those that were graded passed; or why there is none."""

    pass_rate: float | None = None
    rows: RowCounts | None = None
    error: FlowError | None = None


class ModelEvals:
    """Starts, watches and stops the runs."""

    def __init__(self, evals: EvalStore, runs: EvalRunStore, eval_runs: EvalRuns) -> None:
        self._evals = evals
        self._runs = runs
        self._eval_runs = eval_runs

    async def check(self, wanted: ModelEval, *, project: str, where: str) -> None:
        """Refuse what no run could be made of. Raises NotFound, and InvalidRequest that names the field."""
        if wanted.data_source.model is not None:
            raise _invalid(f"{where}.data_source.model", "it is each of the models in turn; leave it out")
        if len(msgspec.json.encode(wanted.data_source)) > MAX_SOURCE_BYTES:
            raise _invalid(
                f"{where}.data_source",
                f"it has more than {MAX_SOURCE_BYTES:,} bytes; upload its rows as a file with purpose 'evals'",
            )
        try:
            await self._evals.get(wanted.eval_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=f"{where}.eval_id") from error
        asked = replace(wanted.data_source, model="-")
        try:
            check_messages(asked, are_stored=isinstance(asked.source, EvalStoredCompletions))
        except InvalidRequest as error:
            raise InvalidRequest(error.message, code=error.code, param=f"{where}.{error.param}") from error

    async def start(self, wanted: ModelEval, model: str, *, run_id: str, name: str, access: Access) -> None:
        """Begin a model's run; twice is the same as once. Raises InvalidRequest, NotFound, RateLimited, Unavailable."""
        source = replace(wanted.data_source, model=model)
        request = CreateEvalRun(data_source=source, name=name[:256])
        await self._eval_runs.create(
            request, msgspec.json.encode(source), eval_id=wanted.eval_id, access=access, run_id=run_id
        )

    async def score(self, wanted: ModelEval, run_id: str, *, project: str) -> Scored | None:
        """Return what came of a run, None while it is under way. Raises NotFound."""
        found = await self._runs.find(run_id, eval_id=wanted.eval_id, project=project)
        record = found.record
        if record.status not in ENDED:
            return None
        if record.status is not EvalRunState.COMPLETED:
            code, message = record.error.code, record.error.message
            said = message or f"The run of the eval is {record.status.value}."
            return Scored(error=FlowError(code=code or "eval_run_ended", message=said))
        return scored(found.tally)

    async def cancel(self, wanted: ModelEval, run_id: str, *, project: str) -> None:
        """Stop a run, if there is one that has not ended."""
        try:
            await self._eval_runs.cancel(run_id, eval_id=wanted.eval_id, project=project)
        except (NotFound, TransitionRefused):
            return


def scored(tally: Mapping[str, int]) -> Scored:
    """Return what a completed run is worth by its counts of rows, as the store has them."""
    passed = tally.get(PASSED, 0)
    rows = RowCounts(passed=passed, graded=passed + tally.get(FAILED, 0), errored=tally.get(ERRORED, 0))
    return Scored(rows.pass_rate, rows, None if rows.graded else _NOTHING_GRADED)


def _invalid(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{where}': {what}.", code="invalid_value", param=where)
