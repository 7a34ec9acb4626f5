"""Training an alias's model again: what that takes, and the file and the job that do it."""

from __future__ import annotations

from collections.abc import Sequence

from services.api.aliases.retraining_data import RetrainingData
from services.api.aliases.training_inputs import TrainingInputs
from services.api.jobs.submission import Submission
from shared.alias_records import AliasRecord
from shared.errors import InvalidRequest, NotFound
from shared.proposal_records import ProposalRecord
from shared.records import JobRecord
from shared.schemas.jobs import CreateJob
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.monitors import Monitor
from shared.schemas.options import ShownOptions
from shared.schemas.retraining import RetrainingPlan
from shared.store.alias_samples import SampleStore
from shared.store.jobs import JobStore
from shared.store.projects import ProjectStore

_CHARS_PER_TOKEN = 4
_USUAL_EPOCHS = 3
"""What `auto` is taken for in an estimate."""


class Retraining:
    """Plans a retraining, and starts it."""

    def __init__(
        self,
        samples: SampleStore,
        data: RetrainingData,
        inputs: TrainingInputs,
        jobs: JobStore,
        projects: ProjectStore,
        submission: Submission,
    ) -> None:
        self._samples = samples
        self._data = data
        self._inputs = inputs
        self._jobs = jobs
        self._projects = projects
        self._submission = submission

    async def tokens_of(self, record: ProposalRecord) -> int:
        """Return what a job has trained on, or as long as it is not known what was estimated."""
        try:
            trained = (await self._jobs.get(record.job_id, project=record.project)).trained_tokens
        except NotFound:
            return 0 if record.status == "failed" else record.plan.estimated_tokens
        return record.plan.estimated_tokens if trained is None else trained

    async def planned(self, alias: AliasRecord, monitor: Monitor) -> tuple[RetrainingPlan, Sequence[bytes]]:
        """Form a plan with what is there now, and the rows of collected answers."""
        recipe, job = monitor.recipe, await self._inputs.job_of(alias.target, alias.project)
        if job is not None and job.method != "supervised":
            job = None
        former = None if job is None or not recipe.keep_training_file else job.training_file
        size = await self._data.size_of(former, alias.project)
        samples = [
            *await self._samples.latest(alias.uid, since=alias.target_since),
            *reversed(await self._samples.first(alias.uid, since=alias.target_since)),
        ]
        lines = await self._data.rows(samples, recipe, alias.project)
        hyperparameters = recipe.hyperparameters or (SupervisedHyperparameters() if job is None else job.requested)
        epochs = _USUAL_EPOCHS if hyperparameters.n_epochs == "auto" else hyperparameters.n_epochs
        plan = RetrainingPlan(
            model=alias.target if job is None else job.parent or job.model,
            former_job_id=None if job is None else job.id,
            training_file=None if size is None else former,
            answers=len(lines),
            hyperparameters=hyperparameters,
            estimated_tokens=((size or 0) + sum(map(len, lines))) // _CHARS_PER_TOKEN * epochs,
        )
        return plan, lines

    async def planned_again(self, alias: AliasRecord, record: ProposalRecord) -> RetrainingPlan:
        """Form the plan of a proposal anew. Raises InvalidRequest where the alias is another by now, or has no rows."""
        plan, lines = await self.planned(alias, _monitor_of(alias, record))
        _check_rows(lines)
        return plan

    async def rows_again(self, alias: AliasRecord, record: ProposalRecord) -> Sequence[bytes]:
        """Return the rows for a proposal's plan, of collected answers. Raises as planned_again does.

        There are no more than the plan has.
        """
        lines = (await self.planned(alias, _monitor_of(alias, record)))[1][: record.plan.answers]
        _check_rows(lines)
        return lines

    async def is_started(self, record: ProposalRecord) -> bool:
        """Tell whether the proposal's job is there."""
        try:
            await self._jobs.get(record.job_id, project=record.project)
        except NotFound:
            return False
        return True

    async def start(self, record: ProposalRecord, lines: Sequence[bytes]) -> None:
        """Make the proposal's file and its job; twice is the same as once. Raises what either raises."""
        await self._data.publish(record, lines)
        job = await self._inputs.job_of(record.model, record.project)
        limit = (await self._projects.get(record.project)).limits.concurrent_jobs or None
        await self._submission.submit(_job(record, job), access=record.access, job_id=record.job_id, limit=limit)


def _monitor_of(alias: AliasRecord, record: ProposalRecord) -> Monitor:
    """Return whose recipe is followed. Raises InvalidRequest where the proposal is about another model by now."""
    if alias.monitor is None:
        raise InvalidRequest("The alias has no monitor any more, whose recipe would be followed.", code="no_monitor")
    if alias.target != record.model:
        raise InvalidRequest(
            f"The alias points to '{alias.target}' by now, and this is about '{record.model}'.", code="alias_moved"
        )
    return alias.monitor


def _check_rows(lines: Sequence[bytes]) -> None:
    if not lines:
        raise InvalidRequest("No collected answer is good enough to be trained on.", code="no_answers")


def _job(record: ProposalRecord, former: JobRecord | None) -> CreateJob:
    """Form the request: as the former job was, where there is one to repeat."""
    is_repeated = former is not None and former.id == record.plan.former_job_id
    options = None
    if former is not None and is_repeated:
        options = ShownOptions(**{name: getattr(former.options, name) for name in former.options.__struct_fields__})
    return CreateJob(
        model=record.plan.model,
        training_file=record.file_id,
        validation_file=former.validation_file if former is not None and is_repeated else None,
        suffix=former.suffix if former is not None and is_repeated else None,
        hyperparameters=record.plan.hyperparameters,
        metadata={"selftune_alias": record.alias, "selftune_proposal": record.id},
        selftune=options,
    )
