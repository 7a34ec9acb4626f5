"""What a training process wants of a step: prompts answered by its model as it is, rewarded, and stored in its folder.

A step whose file is there, by the same model, is not sampled or judged again: whoever dies on the way costs the step at
hand, and nothing before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from services.trainer.failures import TrainingFailed
from services.trainer.jobs.serving import Serving
from services.trainer.protocol import Rollouts, TrainSpec, WantRollouts
from services.trainer.rollouts.counting import stats_of
from services.trainer.rollouts.grading import Grading
from services.trainer.rollouts.judges import Noting, StackModels
from services.trainer.rollouts.policies import Policies
from services.trainer.rollouts.replicas import Replicas
from services.trainer.rollouts.rows import Row, read_rows
from services.trainer.rollouts.sampling import Sampling
from services.trainer.rollouts.waiting import Waiting
from services.trainer.stores import Stores, persist, persist_once
from shared.grading.asking import ModelJudge
from shared.grading.caging import Caging
from shared.grading.means import Means
from shared.grading.outside import OutsideJudges
from shared.grading.parts import parts_of
from shared.model_records import Access
from shared.outgoing import Outgoing
from shared.paths import write_atomic
from shared.records import AdapterRecord, JobRecord
from shared.reward_scoring import RewardScoring
from shared.rollout_records import RolloutGroup, RolloutHeader, read_rollouts, rollout_file, write_rollouts
from shared.schemas.events import Event
from shared.schemas.graders import Grader, MultiGrader, PythonGrader
from shared.settings import TOOLS_OFF
from shared.store.jobs import event

SAMPLES_AT_ONCE = 512
"""Answers that are asked for at a time; more than the servers write at once, so that none of them idles."""
MOST_TRIES = 5
"""A step none of whose answers could be graded, so often, fails the job; a try with a judge away does not count."""
MOST_AWAY_S = 1800.0
"""How long a step waits for judges that are away."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
"""Before the second try; twice as long before each further one."""

T = TypeVar("T")


class Gathering:
    """Gathers for one attempt at a job, whose claim is `token`. Close it at the end."""

    def __init__(self, stores: Stores, serving: Serving, record: JobRecord, spec: TrainSpec, token: str) -> None:
        assert record.reinforcement is not None and spec.reinforcement is not None
        settings = stores.settings
        self._stores = stores
        self._job_id = record.id
        self._token = token
        self._spec = spec
        self._grader: Grader = record.reinforcement.grader
        self._waiting = Waiting(self._tell)
        self._policies = Policies(stores, serving, record, spec, token, self._waiting)
        self._replicas = Replicas(stores, record.project)
        self._sampling = Sampling(
            self._replicas,
            self._waiting,
            record,
            spec.reinforcement,
            reads_tools=settings.tool_call_parser != TOOLS_OFF,
        )
        self._outside = OutsideJudges(settings.judge_endpoints, Outgoing(settings.outgoing_hosts))
        self._caging = Caging(turned_on=settings.python_graders)
        inside = StackModels(stores, self._replicas, record.project).ask
        judge = ModelJudge(inside, self._outside, timeout_s=settings.judge_timeout_s)
        self._scoring = RewardScoring(stores.client, timeout_s=settings.judge_timeout_s)
        scores = self._scoring.of(Access(project=record.project))
        self._judges = Noting(judge, scores)
        self._means = Means(judge=self._judges, cage=self._caging.cage, reward_models=self._judges)

    async def close(self) -> None:
        """Let go of connections and cages; what is published stays."""
        await self._scoring.close()
        await self._caging.close()
        await self._outside.close()
        await self._replicas.close()

    async def retire(self) -> None:
        """Take back what was published for sampling. Raises LeaseLost."""
        await self._policies.retire()

    async def gather(self, wanted: WantRollouts) -> Rollouts:
        """Return where the rollouts lie. Waits as long as no inference server is there, and says so once.

        Raises TrainingFailed when the model cannot be served, a prompt is refused, or nothing can be graded; LeaseLost.
        """
        path = rollout_file(self._stores.paths.job_folder(self._job_id), wanted.step, validation=wanted.validation)
        if not await asyncio.to_thread(_is_answered, path, wanted):
            content = await self._made(wanted)
            await asyncio.to_thread(_write, path, content)
        await persist(lambda: self._stores.blobs.keep_file(path))
        return Rollouts(step=wanted.step, validation=wanted.validation, path=str(path))

    async def _made(self, wanted: WantRollouts) -> bytes:
        """Sample and grade, and return the file's bytes."""
        await self._check_cage()
        started = time.monotonic()
        file = self._spec.validation_path if wanted.validation else self._spec.training_path
        assert file is not None
        rows = await asyncio.to_thread(read_rows, Path(file), wanted.lines)
        policy = await self._policies.serve(wanted)
        grading = Grading(self._grader, self._means)
        self._judges.are_away = False
        places = asyncio.Semaphore(max(1, SAMPLES_AT_ONCE // wanted.samples))
        answered = await _all([self._answered(policy, row, wanted, grading, places) for row in rows])
        self._waiting.over()
        sampled_at = max(at for _, at in answered)
        groups = await self._surely_graded([group for group, _ in answered], grading, wanted)
        stats = await asyncio.to_thread(
            stats_of,
            groups,
            usage=grading.take_usage(),
            sampling_s=sampled_at - started,
            grading_s=time.monotonic() - sampled_at,
        )
        header = RolloutHeader(
            step=wanted.step,
            validation=wanted.validation,
            policy=wanted.sha256,
            stats=stats,
            lines=[group.line for group in groups],
        )
        return await asyncio.to_thread(write_rollouts, header, list(groups))

    async def _answered(
        self, policy: AdapterRecord, row: Row, wanted: WantRollouts, grading: Grading, places: asyncio.Semaphore
    ) -> tuple[RolloutGroup, float]:
        """Return a prompt's answers, graded while others are still written, and when they were there."""
        async with places:
            group = await self._sampling.group(policy, row, wanted)
        sampled_at = time.monotonic()
        return await grading.grade(group), sampled_at

    async def _surely_graded(
        self, groups: Sequence[RolloutGroup], grading: Grading, wanted: WantRollouts
    ) -> Sequence[RolloutGroup]:
        """Grade again, after a pause, where there is no reward at all.

        Raises TrainingFailed after MOST_TRIES, or when judges have been away for MOST_AWAY_S.
        """
        began, tries, in_vain = time.monotonic(), 0, 0
        while not _has_reward(groups):
            tries += 1
            in_vain += not self._judges.are_away
            if in_vain >= MOST_TRIES or time.monotonic() - began > MOST_AWAY_S:
                raise TrainingFailed(
                    f"None of the answers of step {wanted.step} could be graded, in {tries} tries: {_reason(groups)}",
                    code="grader_unavailable",
                )
            if tries == 1:
                await self._tell(ungraded_event(wanted, _reason(groups)))
            await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S))
            self._judges.are_away = False
            groups = await _all([grading.grade(group) for group in groups])
        return groups

    async def _check_cage(self) -> None:
        """Raise TrainingFailed when the grader needs a cage, and none can be had here."""
        grader = self._grader
        parts = parts_of(grader).values() if isinstance(grader, MultiGrader) else [grader]
        if any(isinstance(part, PythonGrader) for part in parts) and (reason := await self._caging.why_not()):
            raise TrainingFailed(f"Python graders cannot be run: {reason}.", code="python_graders_unavailable")

    async def _tell(self, told: Event) -> None:
        job_id, jobs = self._job_id, self._stores.jobs
        await persist_once(lambda nonce: jobs.append_events(job_id, [told], fence=self._token, nonce=nonce))


@asynccontextmanager
async def gathering(
    stores: Stores, serving: Serving, record: JobRecord, spec: TrainSpec, token: str
) -> AsyncIterator[Gathering | None]:
    """Give what gathers rollouts for an attempt; None for a job that wants none."""
    if spec.reinforcement is None:
        yield None
        return
    given = Gathering(stores, serving, record, spec, token)
    try:
        yield given
    finally:
        await given.close()


def ungraded_event(wanted: WantRollouts, reason: str) -> Event:
    """Tell that a step waits for its graders."""
    message = (
        f"None of the answers of step {wanted.step} could be graded: {reason}. They are graded again after a pause"
    )
    return event(message, level="warn", data={"waiting_for": "grader", "step": wanted.step})


def _is_answered(path: Path, wanted: WantRollouts) -> bool:
    """Whether a file is whole, and what is wanted: of this step, by this model, with all answers."""
    try:
        header, groups = read_rollouts(path)
    except (OSError, ValueError, msgspec.MsgspecError):
        return False
    is_same = (header.step, header.validation, header.policy) == (wanted.step, wanted.validation, wanted.sha256)
    is_whole = [(group.line, len(group.samples)) for group in groups] == [(n, wanted.samples) for n in wanted.lines]
    return is_same and is_whole


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def _has_reward(groups: Sequence[RolloutGroup]) -> bool:
    return any(sample.reward is not None for group in groups for sample in group.samples)


def _reason(groups: Sequence[RolloutGroup]) -> str:
    """Return what went wrong, in the words of the first answer that has any."""
    details = (sample.detail for group in groups for sample in group.samples if sample.detail)
    return next(details, "its graders gave no reason").rstrip(".")


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do everything at a time; what is left of it is stopped when one raises, or this is cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
