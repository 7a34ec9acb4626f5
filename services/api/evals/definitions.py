"""Evals: what is graded, and how."""

from __future__ import annotations

import time

import structlog
from msgspec import UNSET
from msgspec.structs import replace

from services.api.evals.creation import EvalRuns
from services.api.graders.running import Graders
from shared.errors import InvalidRequest, NotFound
from shared.eval_records import EvalRecord, RegradedJob
from shared.schemas.evals import CreateEval, UpdateEval
from shared.schemas.graders import Grader, MultiGrader, TextSimilarityGrader
from shared.store.evals import EvalStore

_log = structlog.get_logger()

_RUNS_AT_ONCE = 100


class Evals:
    """Creates, changes and deletes evals."""

    def __init__(self, evals: EvalStore, runs: EvalRuns, graders: Graders) -> None:
        self._evals = evals
        self._graders = graders
        self._runs = runs

    async def create(
        self, request: CreateEval, *, project: str, eval_id: str, regrades: RegradedJob | None = None
    ) -> EvalRecord:
        """Record an eval; one that has this id already is returned as it is.

        Raises InvalidRequest that names the criterion.
        """
        names: set[str] = set()
        for place, grader in enumerate(request.testing_criteria):
            _check_criterion(grader, f"testing_criteria[{place}]", names)
            await self._graders.check(grader, where=f"testing_criteria[{place}]")
        record = EvalRecord(
            id=eval_id,
            project=project,
            name=request.name or "",
            data_source_config=request.data_source_config,
            testing_criteria=request.testing_criteria,
            metadata=request.metadata,
            created_at=int(time.time()),
            regrades=regrades,
        )
        _log.info("eval.created", eval_id=eval_id)
        return await self._evals.create(record)

    async def update(self, eval_id: str, request: UpdateEval, *, project: str) -> EvalRecord:
        """Raises NotFound."""

        def change(current: EvalRecord) -> EvalRecord:
            if request.name is not UNSET:
                current = replace(current, name=request.name)
            if request.metadata is not UNSET:
                current = replace(current, metadata=request.metadata)
            return current

        return await self._evals.update(eval_id, change, project=project)

    async def delete(self, eval_id: str, *, project: str) -> None:
        """Delete an eval with all its runs, whatever they are at. Raises NotFound."""
        await self._evals.get(eval_id, project=project)
        while not await self._evals.remove(eval_id, project=project):
            for run_id in await self._runs.ids(eval_id, limit=_RUNS_AT_ONCE):
                try:
                    await self._runs.delete(run_id, eval_id=eval_id, project=project)
                except NotFound:  # somebody else was faster
                    continue
        _log.info("eval.deleted", eval_id=eval_id)


def _check_criterion(grader: Grader, where: str, names: set[str]) -> None:
    """Raises InvalidRequest. `names` are those of the criteria before."""
    if isinstance(grader, MultiGrader):
        raise InvalidRequest(
            "Graders of type 'multi' are no testing criteria; list the graders that it is made of instead.",
            code="invalid_value",
            param=f"{where}.type",
        )
    if grader.name in names:
        raise InvalidRequest(
            f"The name '{grader.name[:100]}' was used before; every testing criterion needs its own.",
            code="invalid_value",
            param=f"{where}.name",
        )
    names.add(grader.name)
    if isinstance(grader, TextSimilarityGrader) and grader.pass_threshold in (None, UNSET):
        raise InvalidRequest(
            f"Missing required parameter: '{where}.pass_threshold'.",
            code="missing_required_parameter",
            param=f"{where}.pass_threshold",
        )
