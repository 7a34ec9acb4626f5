"""Signs of reward hacking in a job's story: each is told once, however often the job is taken up.

A training process that goes on repeats what its earlier steps were, so that each attempt sees all steps from the first;
an alarm of a step that an earlier attempt had told of is in the story, unless a worker died between the two events.
"""

from __future__ import annotations

from services.trainer.jobs.narration import alarm_event
from services.trainer.jobs.story import newest_first
from services.trainer.protocol import Metrics
from services.trainer.stores import Stores
from shared.grading.hacking import Watch
from shared.rollout_records import RolloutHeader
from shared.schemas.events import Event


class Alarms:
    """What one attempt at a job has to tell of them."""

    def __init__(self, stores: Stores, job_id: str) -> None:
        self._stores = stores
        self._job_id = job_id
        self._watch = Watch()
        self._seen_step = 0

    async def raised_by(self, metrics: Metrics, *, is_new: bool) -> list[Event]:
        """Form the events of what a step is the first to show; none where the story has them, or the step was seen.

        `is_new` says that no attempt has told of the step before.
        """
        if metrics.rollouts is None or metrics.step <= self._seen_step:
            return []
        self._seen_step = metrics.step
        raised = self._watch.add(RolloutHeader(step=metrics.step, validation=False, policy="", stats=metrics.rollouts))
        told = set[tuple[str, str | None]]() if is_new or not raised else await self._told()
        return [alarm_event(alarm) for alarm in raised if (alarm.kind, alarm.grader) not in told]

    async def _told(self) -> set[tuple[str, str | None]]:
        """Return kind and grader of each alarm in the story."""
        found = set[tuple[str, str | None]]()
        async for earlier in newest_first(self._stores, self._job_id):
            if alarm := earlier.data.get("alarm"):
                found.add((alarm["kind"], alarm["grader"]))
        return found
