"""What is left on disk of jobs that have ended, and of models that were deleted.

Of jobs: resume points that nobody goes on from, models half written or of no use, those of single steps.

Whoever ends a job gives its space back at once, where it can. A job that was cancelled while it was paused or waited,
or whose worker or api died at that moment, is found here.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import structlog

from services.trainer.jobs.deleted_adapters import drop_deleted
from services.trainer.jobs.job_folder import drop_points
from services.trainer.jobs.settled import ended
from services.trainer.rollouts.policies import withdraw_policies
from services.trainer.stores import Stores
from shared.blobs.copies import drop_copies
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.states import JobState

PERIOD_S = 3600.0
DROPPED = frozenset({JobState.SUCCEEDED, JobState.CANCELLED})
"""Jobs whose resume points are of no use; those of a failed one are left for its owner."""

log = structlog.get_logger()


async def sweep_forever(stores: Stores) -> None:
    """Look at once and then every hour."""
    while True:
        try:
            await sweep(stores)
        except (StoreUnavailable, StorageUnavailable, OSError, msgspec.MsgspecError) as error:
            log.warning("leftovers.unavailable", reason=type(error).__name__)
        await asyncio.sleep(PERIOD_S)


async def sweep(stores: Stores) -> None:
    """Delete what is left of jobs that nobody works on."""
    for job_id in await _with_points(stores):
        record = await ended(stores, job_id)
        if record is not None and record.status in DROPPED:
            log.info("points.dropped", job_id=job_id)
            await drop_points(stores, job_id)
    for job_id, folder in await asyncio.to_thread(_half_written, stores):
        if await ended(stores, job_id) is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    for job_id in await _with_models(stores):
        record = await ended(stores, job_id)
        if record is not None and await stores.registry.get(record.model_name) is None:
            log.info("model.dropped", job_id=job_id)
            await stores.blobs.remove(stores.paths.whole_model_folder(job_id))
    for job_id in {policy.job_id for policy in await stores.registry.policies()}:
        if await ended(stores, job_id) is not None:
            await withdraw_policies(stores, job_id)
    await drop_deleted(stores)
    await drop_copies(stores.blobs, stores.jobs.active)


def _half_written(stores: Stores) -> list[tuple[str, Path]]:
    """List the adapters that no export has finished, with their jobs: `.partial-<job id>-<random>`."""
    found = stores.paths.adapters.glob("*/.partial-*")
    return [(folder.name.removeprefix(".partial-").rpartition("-")[0], folder) for folder in found]


async def _with_points(stores: Stores) -> set[str]:
    here = await asyncio.to_thread(lambda: {folder.parent.name for folder in stores.paths.jobs.glob("*/checkpoints")})
    if stores.blobs.is_local:
        return here
    return here | {kept.folder.parts[-3] for kept in await stores.blobs.folders(stores.paths.jobs, depth=3)}


async def _with_models(stores: Stores) -> set[str]:
    """List the jobs that have one, after whatever is left of models that were being deleted."""
    here = await asyncio.to_thread(_models_here, stores)
    return here if stores.blobs.is_local else here | (await stores.blobs.children(stores.paths.models)).keys()


def _models_here(stores: Stores) -> set[str]:
    for doomed in stores.paths.models.glob(".partial-*"):
        shutil.rmtree(doomed, ignore_errors=True)
    return {folder.name for folder in stores.paths.models.iterdir()}
