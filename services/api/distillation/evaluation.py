"""The runs of a distillation: candidates answered and graded, then student, base and teacher on the held-out rows."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from msgspec.structs import replace

from services.api.distillation.collecting import ITEM_INPUT
from services.api.evals.comparison import Comparisons
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.flows import FlowFailed
from shared.distillation_records import DISTILLATION_ID, DistillationRecord
from shared.errors import InvalidRequest, NotFound, TransitionRefused
from shared.eval_states import ENDED, EvalRunState
from shared.schemas.distillations import DistillationComparisons, DistillationRun, RunRole
from shared.schemas.evals import (
    CompletionsRun,
    CreateEval,
    CreateEvalRun,
    CustomDataSource,
    EvalFileId,
    EvalRunComparison,
    EvalSampling,
    JsonlRun,
    RunSource,
)
from shared.schemas.graders import Grader, StringCheckGrader
from shared.store.eval_runs import EvalRunStore

_ANSWERED = StringCheckGrader(name="answered", operation="ne", input="{{ sample.output_text }}", reference="")
_BIASED = (
    "The teacher is not compared: of its answers only those were kept, and held out, that {} scored well, so it would "
    "do better than it does. Leave minimum_scores out to have it compared."
)
_ITEM = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "input": {"type": "array"}, "output": {"type": "string"}},
    "required": ["id", "input"],
}


class Evaluation:
    """Begins runs under the ids that the record has for them, and reads what came of them."""

    def __init__(self, evals: Evals, runs: EvalRuns, run_store: EvalRunStore, comparisons: Comparisons) -> None:
        self._evals = evals
        self._runs = runs
        self._run_store = run_store
        self._comparisons = comparisons

    async def begin_candidates(self, record: DistillationRecord) -> None:
        """Have the candidates graded, and answered by the teacher before, where they are prompts.

        Raises as EvalRuns.create does.
        """
        criteria = [grader for grader in record.graders if grader.name in record.filter.minimum_scores]
        await self._make_eval(record, record.ids.candidates_eval, criteria or [_ANSWERED], "candidates")
        file = EvalFileId(id=record.ids.candidates)
        source: RunSource = JsonlRun(source=file)
        if record.source.teacher is not None:
            sampling = record.source.sampling_params
            source = _asking(file, record.source.teacher, sampling)
        await self._begin(record, "candidates", source)

    async def begin_held_out(self, record: DistillationRecord) -> None:
        """Have student and base answer the held-out rows, and the teacher's answers graded.

        Raises as EvalRuns.create does.
        """
        assert record.fine_tuned_model is not None
        await self._make_eval(record, record.ids.eval, record.graders, "held out")
        file = EvalFileId(id=record.ids.held_out)
        sampling = record.evaluation.sampling_params
        if sampling.temperature is None:
            sampling = replace(sampling, temperature=0.0)
        await self._begin(record, "teacher", JsonlRun(source=file))
        await self._begin(record, "base", _asking(file, record.start_model, sampling))
        await self._begin(record, "student", _asking(file, record.fine_tuned_model, sampling))

    async def ended(self, record: DistillationRecord, role: RunRole) -> DistillationRun | None:
        """Return a run that is completed, None while it is not. Raises NotFound, FlowFailed for one that has failed."""
        run_id, eval_id = record.ids.runs[role], _eval_of(record, role)
        found = await self._run_store.find(run_id, eval_id=eval_id, project=record.project)
        if found.record.status not in ENDED:
            return None
        if found.record.status is not EvalRunState.COMPLETED:
            error = found.record.error
            why = error.message or "It was cancelled."
            raise FlowFailed(error.code or "run_canceled", f"The {role}'s run {run_id} did not complete: {why}")
        shown = found.record.public(found.tally, found.source, report_url="")
        return DistillationRun(
            role=role,
            id=run_id,
            status=shown.status,
            result_counts=shown.result_counts,
            per_testing_criteria_results=shown.per_testing_criteria_results,
            per_model_usage=shown.per_model_usage,
        )

    async def compared(self, record: DistillationRecord) -> DistillationComparisons:
        """Compare the student with the others. Raises NotFound when a run is gone."""
        base = await self._compared(record, "base")
        if filtering := sorted(record.filter.minimum_scores):
            return DistillationComparisons(base=base, remark=_BIASED.format(", ".join(filtering)))
        return DistillationComparisons(base=base, teacher=await self._compared(record, "teacher"))

    async def stop(self, record: DistillationRecord) -> None:
        """End the runs that are not at their end. Raises StoreUnavailable."""
        for run in await self._run_store.read([*record.ids.runs.values()]):
            if run.status not in ENDED:
                with suppress(NotFound, TransitionRefused):  # it has ended, or was deleted, meanwhile
                    await self._runs.cancel(run.id, eval_id=run.eval_id, project=run.project)

    async def _compared(self, record: DistillationRecord, role: RunRole) -> EvalRunComparison | None:
        runs = record.ids.runs
        try:
            return await self._comparisons.compare(
                runs["student"], runs[role], eval_id=record.ids.eval, project=record.project
            )
        except InvalidRequest as error:
            if error.code != "nothing_to_compare":
                raise
            return None

    async def _make_eval(self, record: DistillationRecord, eval_id: str, criteria: list[Grader], what: str) -> None:
        request = CreateEval(
            name=f"{record.name or record.id}: {what}"[:256],
            data_source_config=CustomDataSource(item_schema=_ITEM, include_sample_schema=True),
            testing_criteria=criteria,
            metadata={DISTILLATION_ID: record.id},
        )
        await self._evals.create(request, project=record.project, eval_id=eval_id)

    async def _begin(self, record: DistillationRecord, role: RunRole, source: RunSource) -> None:
        request = CreateEvalRun(data_source=source, name=role, metadata={DISTILLATION_ID: record.id})
        await self._runs.create(
            request,
            msgspec.json.encode(source),
            eval_id=_eval_of(record, role),
            access=record.access,
            run_id=record.ids.runs[role],
        )


def _asking(file: EvalFileId, model: str, sampling: EvalSampling | None) -> CompletionsRun:
    return CompletionsRun(source=file, model=model, input_messages=ITEM_INPUT, sampling_params=sampling)


def _eval_of(record: DistillationRecord, role: RunRole) -> str:
    return record.ids.candidates_eval if role == "candidates" else record.ids.eval
