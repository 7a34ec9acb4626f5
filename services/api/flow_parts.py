"""What makes jobs and runs of evals by itself, put together: distillations, sweeps, base replays; and costs."""

from __future__ import annotations

from dataclasses import dataclass

from services.api.aliases.parts import AliasParts
from services.api.core import Core
from services.api.costs.break_even import BreakEvens
from services.api.costs.estimates import Estimates
from services.api.costs.usage import UsageCosts
from services.api.distillation.creation import Distillations
from services.api.distillation.opening import open_distillations
from services.api.distillation.runner import DistillationRunner
from services.api.evals.parts import EvalParts
from services.api.flow_jobs import FlowJobs
from services.api.model_deletion import ModelDeletion
from services.api.model_evals import ModelEvals
from services.api.replays.creation import Replays
from services.api.replays.manifest import Manifests
from services.api.replays.promotion import Promotion
from services.api.replays.runner import ReplayRunner, ReplayTools
from services.api.sweeps.creation import Sweeps
from services.api.sweeps.runner import SweepRunner, SweepTools
from shared.replay_records import REPLAY
from shared.sweep_records import SWEEP


@dataclass(frozen=True)
class FlowParts:
    """Handlers ask for one by its name here."""

    model_deletion: ModelDeletion
    estimates: Estimates
    usage_costs: UsageCosts
    break_evens: BreakEvens
    distillations: Distillations
    distillation_runner: DistillationRunner
    replays: Replays
    replay_runner: ReplayRunner
    promotion: Promotion
    sweeps: Sweeps
    sweep_runner: SweepRunner

    @classmethod
    def open(cls, core: Core, measured: EvalParts, named: AliasParts) -> FlowParts:
        at, settings = core.stores, core.settings
        deletion = ModelDeletion(settings, at.registry, named.aliases, core.blobs)
        model_evals = ModelEvals(at.eval_store, at.eval_run_store, measured.eval_runs)
        usage_costs = UsageCosts(settings, at.usage, at.registry, at.projects)
        jobs = FlowJobs(at.jobs, core.submission, core.control, core.project_admin.job_limit)
        comparisons = measured.eval_comparisons
        replay_runner = ReplayRunner(
            at.replay_store,
            at.replay_store.leases(ttl_s=settings.lease_ttl_s),
            core.leftovers(core.paths.flows_of(REPLAY)),
            core.drain,
            ReplayTools(jobs, Manifests(settings, at.registry, at.jobs), model_evals, comparisons),
        )
        sweep_runner = SweepRunner(
            at.sweep_store,
            at.sweep_store.leases(ttl_s=settings.lease_ttl_s),
            core.leftovers(core.paths.flows_of(SWEEP)),
            core.drain,
            SweepTools(jobs, at.registry, model_evals, comparisons, deletion),
        )
        distillations, distillation_runner = open_distillations(core, measured)
        return cls(
            model_deletion=deletion,
            estimates=Estimates(settings, core.submission, at.files, at.jobs, at.usage, core.blobs),
            usage_costs=usage_costs,
            break_evens=BreakEvens(settings, usage_costs),
            distillations=distillations,
            distillation_runner=distillation_runner,
            replays=Replays(at.replay_store, core.names, model_evals, jobs, replay_runner.clean_up),
            replay_runner=replay_runner,
            promotion=Promotion(at.alias_store, named.aliases),
            sweeps=Sweeps(at.sweep_store, core.submission, model_evals, jobs, sweep_runner.clean_up),
            sweep_runner=sweep_runner,
        )

    def start(self) -> None:
        self.distillation_runner.start()
        self.replay_runner.start()
        self.sweep_runner.start()

    async def close(self) -> None:
        await self.distillation_runner.close()
        await self.replay_runner.close()
        await self.sweep_runner.close()
