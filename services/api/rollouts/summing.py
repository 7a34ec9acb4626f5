"""A job's rollouts step by step, with what is worth a look in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.api.rollouts.files import RolloutFiles
from shared.grading.hacking import alarms
from shared.rollout_records import RolloutHeader
from shared.schemas.rollouts import RolloutAlarm, RolloutStep, RolloutSummary

_KNOWN_JOBS = 64


class Summaries:
    """Sums up. A job's alarms are remembered, as long as it has the same steps."""

    def __init__(self, files: RolloutFiles) -> None:
        self._files = files
        self._known: dict[str, tuple[Sequence[RolloutHeader], list[RolloutAlarm]]] = {}

    async def of(self, job_id: str) -> RolloutSummary:
        """Sum a job's rollouts up. Raises StorageUnavailable."""
        headers = await self._files.headers(job_id)
        return RolloutSummary(
            fine_tuning_job_id=job_id,
            steps=[_step(header) for header in headers],
            alarms=await self._alarms(job_id, [header for header in headers if not header.validation]),
        )

    async def _alarms(self, job_id: str, history: Sequence[RolloutHeader]) -> list[RolloutAlarm]:
        known, found = self._known.get(job_id, ((), []))
        if known == history:
            return found
        found = await asyncio.to_thread(alarms, history)
        self._known.pop(job_id, None)
        if len(self._known) >= _KNOWN_JOBS:
            del self._known[next(iter(self._known))]
        self._known[job_id] = history, found
        return found


def _step(header: RolloutHeader) -> RolloutStep:
    return RolloutStep(
        step=header.step,
        validation=header.validation,
        **{name: getattr(header.stats, name) for name in header.stats.__struct_fields__},
    )
