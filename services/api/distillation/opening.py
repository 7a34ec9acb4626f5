"""How the parts of distillations are put together."""

from __future__ import annotations

import asyncio

from services.api.distillation.collecting import Collecting
from services.api.distillation.creation import Distillations
from services.api.distillation.data_set import DataSets
from services.api.distillation.evaluation import Evaluation
from services.api.distillation.jobs import StudentJobs
from services.api.distillation.runner import DistillationRunner, Parts
from services.api.evals.comparison import Comparisons
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.evals.sources import Sources
from services.api.jobs.control import JobControl
from services.api.jobs.submission import Submission
from services.api.leftovers import Leftovers
from services.api.stores import Stores
from shared.blobs.interface import Blobs
from shared.distillation_records import KIND
from shared.settings import Settings
from shared.store.client import Client


def open_distillations(
    settings: Settings,
    stores: Stores,
    client: Client,
    blobs: Blobs,
    sources: Sources,
    evals: Evals,
    runs: EvalRuns,
    comparisons: Comparisons,
    submission: Submission,
    control: JobControl,
    drain: asyncio.Event,
) -> tuple[Distillations, DistillationRunner]:
    """Return what takes distillations in, and what works on them."""
    flows = stores.distillation_store
    jobs = StudentJobs(settings, submission, control, stores.jobs, stores.projects)
    parts = Parts(
        collecting=Collecting(sources, blobs),
        data_sets=DataSets(stores.files, stores.eval_run_store, blobs),
        evaluation=Evaluation(evals, runs, stores.eval_run_store, comparisons),
        jobs=jobs,
        blobs=blobs,
    )
    leftovers = Leftovers(client, blobs, blobs.paths.flows_of(KIND))
    runner = DistillationRunner(flows, flows.leases(ttl_s=settings.lease_ttl_s), parts, leftovers, drain)
    return Distillations(flows, stores.files, sources, evals, runs, jobs, parts, blobs), runner
