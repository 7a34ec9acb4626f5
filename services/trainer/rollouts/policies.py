"""The models of a job's steps, as inference servers have them: published unlisted, one at a time, and taken back.

Each has a name of its own, which stands for its bytes alone. What an attempt that died has left is found in the
registry, by its name; when the job ends without success publishing.withdraw takes it back, and the sweep whatever was
missed.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import structlog

from services.trainer.failures import TrainingFailed
from services.trainer.jobs.deleted_adapters import drop_at_once
from services.trainer.jobs.serving import AdapterRefused, Serving
from services.trainer.protocol import TrainSpec, WantRollouts
from services.trainer.rollouts.waiting import Waiting
from services.trainer.stores import Stores, persist
from shared import ids
from shared.errors import NoReplica, StorageUnavailable, StoreUnavailable
from shared.records import AdapterRecord, JobRecord

log = structlog.get_logger()


class Policies:
    """Those of one attempt at one job; `token` fences every write to the registry."""

    def __init__(
        self, stores: Stores, serving: Serving, record: JobRecord, spec: TrainSpec, token: str, waiting: Waiting
    ) -> None:
        self._stores = stores
        self._serving = serving
        self._record = record
        self._spec = spec
        self._token = token
        self._waiting = waiting
        self._known_since: dict[str, float] = {}
        """By digest: when the folder had come that was published, so that one that came again is told apart."""

    async def serve(self, wanted: WantRollouts) -> AdapterRecord:
        """Return the model that is wanted once a replica has it in memory, in place of the one before.

        Waits as long as there is no replica. Raises LeaseLost, or TrainingFailed when it cannot be served.
        """
        folder = Path(wanted.folder)
        await persist(lambda: self._stores.blobs.keep(folder))
        changed_at = await persist(lambda: self._stores.blobs.changed_at(folder))
        self._known_since.setdefault(wanted.sha256, changed_at or 0.0)
        unlisted = self._adapter(wanted)
        policy = await persist(lambda: self._stores.registry.publish(unlisted, fence=self._token))
        await self.retire(but=policy.name)
        await self._until_warm(policy)
        return policy

    async def retire(self, *, but: str = "") -> None:
        """Take back every model of the job's steps, but for one, and delete those that nothing else names.

        Raises LeaseLost.
        """
        for policy in await persist(lambda: self._stores.registry.policies(self._record.id)):
            if policy.name != but:
                await persist(partial(self._stores.registry.retire, policy.name, fence=self._token))
                await self._drop(policy)

    async def _drop(self, policy: AdapterRecord) -> None:
        """Delete a model's folder; the hourly sweep does it where this one does not know enough."""
        since = self._known_since.pop(policy.sha256, None)
        if since is None:
            return
        try:
            gone = await drop_at_once(self._stores, self._stores.paths.home / policy.folder, known_since=since)
        except (StoreUnavailable, StorageUnavailable, OSError) as error:
            log.warning("policy.left_to_sweep", sha256=policy.sha256, reason=type(error).__name__)
        else:
            log.debug("policy.retired", sha256=policy.sha256, gone=gone)

    async def _until_warm(self, policy: AdapterRecord) -> None:
        while True:
            try:
                await self._serving.wait_until_warm(policy)
            except AdapterRefused as error:
                raise TrainingFailed(
                    f"The model that is to answer cannot be served: {error.message}.", code="not_servable"
                ) from error
            except NoReplica as error:
                await self._waiting.pause(error.message)
            else:
                self._waiting.over()
                return

    def _adapter(self, wanted: WantRollouts) -> AdapterRecord:
        return AdapterRecord(
            name=ids.policy_name(self._record.id, wanted.sha256),
            base=self._spec.base_id,
            base_fingerprint=self._spec.base_fingerprint,
            folder=self._stores.paths.relative(Path(wanted.folder)),
            sha256=wanted.sha256,
            rank=self._spec.rank,
            project=self._record.project,
            job_id=self._record.id,
            created_at=int(time.time()),
        )


async def withdraw_policies(stores: Stores, job_id: str, *, fence: str = "") -> None:
    """Take back every model of a job's steps; their folders are left to the hourly sweep. Raises LeaseLost."""
    for policy in await persist(lambda: stores.registry.policies(job_id)):
        await persist(partial(stores.registry.retire, policy.name, fence=fence))
