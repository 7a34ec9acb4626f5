"""How the parts of distillations are put together."""

from __future__ import annotations

from services.api.core import Core
from services.api.distillation.collecting import Collecting
from services.api.distillation.creation import Distillations
from services.api.distillation.data_set import DataSets
from services.api.distillation.evaluation import Evaluation
from services.api.distillation.jobs import StudentJobs
from services.api.distillation.runner import DistillationRunner, Parts
from services.api.evals.parts import EvalParts
from shared.distillation_records import KIND


def open_distillations(core: Core, measured: EvalParts) -> tuple[Distillations, DistillationRunner]:
    """Return what takes distillations in, and what works on them."""
    stores, blobs = core.stores, core.blobs
    flows, sources = stores.distillation_store, measured.eval_sources
    evals, runs = measured.evals, measured.eval_runs
    jobs = StudentJobs(core.submission, core.control, stores.jobs, core.project_admin.job_limit)
    parts = Parts(
        collecting=Collecting(sources, stores.files, blobs),
        data_sets=DataSets(stores.files, stores.eval_run_store, blobs),
        evaluation=Evaluation(evals, runs, stores.eval_run_store, measured.eval_comparisons),
        jobs=jobs,
        blobs=blobs,
    )
    leftovers = core.leftovers(core.paths.flows_of(KIND))
    leases = flows.leases(ttl_s=core.settings.lease_ttl_s)
    runner = DistillationRunner(flows, leases, parts, leftovers, core.drain)
    return Distillations(flows, stores.files, sources, evals, runs, jobs, parts, blobs), runner
