"""From a model to the request that makes it again on another base: its job's files, hyperparameters and options."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET
from msgspec.structs import replace

from shared.distillation_records import DISTILLATION_ID
from shared.errors import InvalidRequest, NotFound
from shared.records import AdapterRecord, BaseRecord, JobRecord
from shared.replay_records import ReplayRecord
from shared.schemas.integrations import WandbIntegration, WandbRun, WandbSettings
from shared.schemas.jobs import CreateJob
from shared.settings import Settings
from shared.store.jobs import JobStore
from shared.store.registry import Registry
from shared.sweep_records import SWEEP_ID

_OF_FLOWS = frozenset({SWEEP_ID, DISTILLATION_ID})
"""Metadata of the old job alone: which sweep or distillation made it."""


@dataclass(frozen=True)
class Manifest:
    """What a row is made of; `remarks` say what could not stay as it was."""

    job_id: str
    request: CreateJob
    remarks: tuple[str, ...] = ()


class Manifests:
    """Looks up how models were made."""

    def __init__(self, settings: Settings, registry: Registry, jobs: JobStore) -> None:
        self._settings = settings
        self._registry = registry
        self._jobs = jobs

    async def of(self, model: str, replay: ReplayRecord) -> Manifest:
        """Raises NotFound for a model, base or job that is gone, and InvalidRequest for a model that no job can make
        again."""
        champion = await self._registry.owned(model, replay.access)
        base = await self._registry.base(replay.base)
        if base is None:
            raise NotFound(f"The base '{replay.base}' is gone.", code="base_gone", param="base")
        job = await self._job(champion, replay.project)
        if champion.base == base.id:
            raise _refused("same_base", f"'{model}' is on the base '{base.id}' already.")
        if champion.kind == "reward":
            raise _refused(
                "reward_model", f"'{model}' is a reward model, which writes nothing that an eval could judge."
            )
        if job.parent is not None:
            raise _refused(
                "has_parent",
                f"'{model}' goes on from '{job.parent}', whose adapter fits its own base alone; replay that one, and "
                "train on from what comes of it.",
            )
        return self._manifest(champion, job, base, replay)

    async def _job(self, champion: AdapterRecord, project: str) -> JobRecord:
        try:
            if not champion.job_id:
                raise NotFound("")
            return await self._jobs.get(champion.job_id, project=project)
        except NotFound as error:
            raise _refused(
                "no_job", f"'{champion.name}' was made by no job of this server, so there is nothing to run again."
            ) from error

    def _manifest(self, champion: AdapterRecord, job: JobRecord, base: BaseRecord, replay: ReplayRecord) -> Manifest:
        shown, remarks = job.public(), list[str]()
        longest = min(self._settings.max_model_len, base.context_length)
        options = replace(shown.selftune, priority=None, cost=None, memory_gb=None)
        if options.max_length is not None and options.max_length > longest:
            remarks.append(f"max_length is {longest} in place of {options.max_length}, which the base does not have.")
            options = replace(options, max_length=None)
        if job.fine_tuned_model != champion.name:
            remarks.append("The champion is a checkpoint of its job; the challenger is the end of the new one.")
        request = CreateJob(
            model=base.id,
            training_file=job.training_file,
            validation_file=job.validation_file,
            suffix=replay.suffix or job.suffix,
            seed=job.seed,
            method=None if shown.method is UNSET else shown.method,
            metadata={name: said for name, said in (job.metadata or {}).items() if name not in _OF_FLOWS} or None,
            integrations=[_logged_again(one.wandb) for one in job.integrations] or None,
            selftune=options,
        )
        return Manifest(job.id, request, tuple(remarks))


def _logged_again(run: WandbRun) -> WandbIntegration:
    """Ask for a run of the new job's own, with the same settings."""
    return WandbIntegration(wandb=WandbSettings(project=run.project, name=run.name, entity=run.entity, tags=run.tags))


def _refused(code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code=code)
