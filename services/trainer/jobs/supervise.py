"""One attempt at one job: hold its lease, run its training process, pass on what it says, and bring the job to its end.

leased ─ running ─┬─ the model answers ───────────→ succeeded
                  ├─ the process gives a reason ──→ failed
                  ├─ the process dies ────────────→ goes on from the last checkpoint; the third time failed
                  ├─ its owner cancels ───────────→ cancelled (the api wrote it; the process is stopped)
                  ├─ its owner pauses ────────────→ paused (the api wrote it; the process saves and ends)
                  ├─ this worker stops ───────────→ queued, goes on from the last checkpoint
                  └─ the lease is lost ───────────→ nothing is written; another worker has the job
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from services.trainer import metrics as observed
from services.trainer.failures import ProcessDied, TrainingFailed
from services.trainer.jobs import attempt_record, job_folder
from services.trainer.jobs.alarms import Alarms
from services.trainer.jobs.device_time import DeviceTime
from services.trainer.jobs.first_attempt import other_way
from services.trainer.jobs.holding import Lease, holding
from services.trainer.jobs.leftovers import DROPPED
from services.trainer.jobs.mirror import mirroring
from services.trainer.jobs.narration import (
    other_way_event,
    plain_event,
    rehearsed_event,
    requantized_event,
    restarted_event,
    step_event,
)
from services.trainer.jobs.publishing import Publication, withdraw
from services.trainer.jobs.serving import Serving
from services.trainer.jobs.story import newest_first
from services.trainer.jobs.validating import fail
from services.trainer.jobs.wanting import TRAINABLE, while_wanted
from services.trainer.launch.child_process import ChildProcess
from services.trainer.launch.launching import Launcher
from services.trainer.protocol import (
    Exported,
    Failed,
    Metrics,
    Rehearsed,
    Requantized,
    Started,
    Stepped,
    TrainSpec,
    WantRollouts,
)
from services.trainer.rollouts.answering import answer
from services.trainer.rollouts.gathering import Gathering, gathering
from services.trainer.shortages import died, files_failed
from services.trainer.stores import Stores, persist, persist_once
from services.trainer.tracking.tracker import Tracker, tracking
from services.trainer.training.pace import Estimates
from shared import tracing
from shared.errors import LeaseLost, NotFound, SelftuneError, TransitionRefused
from shared.records import JobRecord
from shared.schemas.events import Event
from shared.schemas.graders import Grader
from shared.states import TERMINAL, JobState
from shared.store.jobs import event

WATCH_S = 0.5
"""How often the record is read for a cancellation: with the child's three seconds to stop, well under five."""
SAVE_GRACE_S = 60.0
"""How long a paused job's process may take to end its step and save; it is stopped after that, and goes on from an
earlier step."""
MAX_PROCESS_DEATHS = 3
"""A job whose training process died so often without a new resume point fails with what the last one died of."""
MAX_ATTEMPTS = 5
"""A job whose worker died so often without a new resume point is given up: it probably takes the machine down."""

T = TypeVar("T")

log = structlog.get_logger()


async def train_job(stores: Stores, serving: Serving, launcher: Launcher, job_id: str) -> bool:
    """Bring a queued job as far as it goes. Safe to call twice, and for a job that is gone or taken.

    Returns whether to take it up again at once: it was paused, and resumed before it was put down, or its process died.
    Cancelling this coroutine puts the job back into the queue.
    """
    wanted_again = False
    async with holding(stores, job_id) as lease:
        if lease is None:
            return False
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            try:
                wanted_again = await _Attempt(stores, serving, launcher, job_id, lease).run()
            except NotFound:
                log.info("job.gone")
    return wanted_again


class _Attempt:
    def __init__(self, stores: Stores, serving: Serving, launcher: Launcher, job_id: str, lease: Lease) -> None:
        self._stores = stores
        self._serving = serving
        self._launcher = launcher
        self._job_id = job_id
        self._lease = lease
        self._token = lease.token
        self._reported_step = 0
        self._rehearsal_told = False
        self._path_told = False
        self._requantized_told = False
        self._alarms = Alarms(stores, job_id)
        self._last_step_at = 0.0
        self._estimates = Estimates()
        self._stop_asked_at: float | None = None
        self._stopping = asyncio.Event()
        self._concluding = False
        self._tenant: tuple[str, ...] = ("", "")
        self._grader: Grader | None = None

    async def run(self) -> bool:
        """Go through the attempt; returns whether the job waits for the next one already."""
        record = await self._begin()
        if record.status is not JobState.RUNNING:
            return False
        self._tenant = observed.tenant(record.project, record.model)
        self._grader = None if record.reinforcement is None else record.reinforcement.grader
        with (
            tracing.span("job.train", parent=record.traceparent, job_id=record.id, attempt=record.attempts),
            observed.attempt(record) as measured,
        ):
            device_time = DeviceTime(self._stores, self._launcher, record)
            try:
                return await self._go_through(record, measured, device_time)
            finally:
                device_time.leave()

    async def _go_through(self, record: JobRecord, measured: observed.Measured, device_time: DeviceTime) -> bool:
        try:
            await self._train(record, device_time)
        except LeaseLost:
            raise
        except asyncio.CancelledError:
            await attempt_record.hand_back(self._stores, self._job_id, self._token, device_time)
            raise
        except TransitionRefused:
            log.info("job.paused_at_its_end")
        except (SelftuneError, OSError) as error:
            if isinstance(error, ProcessDied):
                observed.PROCESS_DEATHS.inc()
            if isinstance(error, ProcessDied) and record.attempts < MAX_PROCESS_DEATHS:
                await self._tell(event(f"{error.message} The job goes on from its last checkpoint.", level="warn"))
                measured.outcome = "process_died"
                await attempt_record.note_time(self._stores, self._job_id, self._token, device_time)
                await device_time.tell()
                return True
            reason = files_failed(error) if isinstance(error, OSError) else error
            await self._withdraw_unless_succeeded(record)  # whoever sees the job failed finds no model of it
            await persist(partial(fail, self._stores, self._job_id, reason, fence=self._token))
        status = await self._withdraw_unless_succeeded(record)
        measured.outcome = status.value
        if status in DROPPED:
            await job_folder.drop_points(self._stores, self._job_id)
        await device_time.tell()
        return await attempt_record.put_down(self._stores, self._job_id, self._token, device_time)

    async def _begin(self) -> JobRecord:
        record = await attempt_record.begin(self._stores, self._job_id, self._token)
        self._reported_step = await self._last_reported_step()
        log.info("job.started", status=record.status.value, attempt=record.attempts, reported_step=self._reported_step)
        return record

    async def _last_reported_step(self) -> int:
        """Find the newest step in the job's story: a resumed process repeats the steps after its checkpoint.

        0 if there is none, or only what came before the first.
        """
        async for told in newest_first(self._stores, self._job_id):
            self._rehearsal_told |= told.data.get("step") == 0
            self._path_told |= "plain_because" in told.data
            self._requantized_told |= "requantized" in told.data
            if told.type == "metrics":
                return int(told.data.get("step", 0))
        return 0

    async def _train(self, record: JobRecord, device_time: DeviceTime) -> None:
        if record.attempts > MAX_ATTEMPTS:
            raise TrainingFailed(
                f"The trainer died {record.attempts - 1} times while it worked on this job, after step "
                f"{record.reached_step} each time."
            )
        prepared = await self._while_held(while_wanted(self._stores, self._job_id, TRAINABLE, self._prepare(record)))
        if prepared is None:
            return  # cancelled or paused meanwhile
        folder, spec = prepared
        await self._lease.show(folder)
        publication = Publication(self._stores, self._serving, record, spec, self._token)
        async with (
            mirroring(self._stores, folder, spec, self._token),
            tracking(self._stores, record, spec, self._token) as tracker,
            gathering(self._stores, self._serving, record, spec, self._token) as rollouts,
        ):
            child = await self._launcher.start(folder, spec, record, self._token)
            log.info("child.started", pid=child.pid)
            try:
                await self._until_ended(
                    self._follow(child, spec, publication, tracker, rollouts, device_time), self._watch(child)
                )
            except LeaseLost:
                await child.kill()  # it is in other hands: nothing more may be written
                raise
            finally:
                await child.stop()

    async def _prepare(self, record: JobRecord) -> tuple[Path, TrainSpec]:
        return await persist(lambda: job_folder.prepare(self._stores, record))

    async def _while_held(self, work: Coroutine[None, None, T]) -> T:
        """Do what may take long before there is a process. Raises LeaseLost as soon as the lease is another's."""
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({working, self._lease.kept}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._lease.kept.result()
            return await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _until_ended(self, following: Coroutine[None, None, None], watching: Coroutine[None, None, None]) -> None:
        """Follow the child until it is through, nobody wants it any longer, or the lease is lost (LeaseLost)."""
        follower = asyncio.create_task(following)
        watcher = asyncio.create_task(watching)
        try:
            ends = (follower, watcher, self._lease.kept)
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            next(task for task in ends if task in done).result()
        finally:
            for task in (follower, watcher):
                task.cancel()
            await asyncio.gather(follower, watcher, return_exceptions=True)

    async def _watch(self, child: ChildProcess) -> None:
        """Return when the child is to be stopped; one whose job is paused is asked first, and given time to save."""
        while True:
            record = await persist(lambda: self._stores.jobs.get(self._job_id))
            if record.status in TERMINAL:
                log.info("job.ended_elsewhere", status=record.status.value)
                return
            # A job that was paused and resumed between two looks is queued: it, too, is put down and taken up again.
            if record.status is not JobState.RUNNING and self._is_saved(child):
                return
            await asyncio.sleep(WATCH_S)

    def _is_saved(self, child: ChildProcess) -> bool:
        """Ask the child to save, once; True when there is nothing to wait for, or no longer."""
        if self._stop_asked_at is None:
            log.info("job.putting_down", concluding=self._concluding)
            self._stop_asked_at = time.monotonic()
            self._stopping.set()
            child.ask_to_stop()
        return self._concluding or time.monotonic() - self._stop_asked_at > SAVE_GRACE_S

    async def _follow(
        self,
        child: ChildProcess,
        spec: TrainSpec,
        publication: Publication,
        tracker: Tracker,
        rollouts: Gathering | None,
        device_time: DeviceTime,
    ) -> None:
        """Pass on what the child says, and conclude. Raises TrainingFailed with the child's reason, or that it died."""
        async for message in child.messages():
            match message:
                case Started():
                    log.info("child.ready", **msgspec.to_builtins(message))
                    if message.n_restarts:
                        observed.PROCESS_RESTARTS.inc()
                        await self._tell(restarted_event(message))
                    await self._report_path(message)
                    await self._report_other_way(message)
                case Rehearsed():
                    await self._report_rehearsal(message)
                case Stepped(metrics=metrics, checkpoint_s=checkpoint_s):
                    if checkpoint_s is not None:
                        observed.CHECKPOINT_SECONDS.observe(checkpoint_s)
                    self._last_step_at = time.time()
                    await self._report_step(metrics, tracker, device_time)
                case Requantized():
                    await self._report_requantized(message)
                case WantRollouts() if rollouts is not None:
                    await answer(child, rollouts, message, self._stopping)
                case Exported(final=True):
                    if self._stop_asked_at is not None:
                        return
                    self._concluding = True
                    await publication.prove(child, message, self._last_step_at)
                    if rollouts is not None:
                        await rollouts.retire()
                    await tracker.close("finished")
                    await attempt_record.note_time(self._stores, self._job_id, self._token, device_time)
                    await publication.succeed(child, message)
                    await device_time.note_pace(message.trained_tokens)
                    return
                case Exported(metrics=metrics):
                    await publication.announce(metrics.step)
                case Failed():
                    raise TrainingFailed(message.message, code=message.code, param=message.param)
                case _:
                    log.info("child.said", message=type(message).__name__)
        status = await child.wait()
        if self._stop_asked_at is None:
            raise died(status, spec)
        log.info("child.stopped", status=status)

    async def _report_path(self, started: Started) -> None:
        """Tell it once, in the attempt that trains the first step."""
        if started.plain_because and self._reported_step == 0 and not self._path_told:
            self._path_told = True
            await self._tell(plain_event(started.plain_because))

    async def _report_other_way(self, started: Started) -> None:
        folder = self._stores.paths.job_folder(self._job_id)
        if difference := other_way(folder, started):
            await self._tell(other_way_event(difference))

    async def _report_rehearsal(self, rehearsed: Rehearsed) -> None:
        """Tell it once, in the attempt that trains the first step."""
        if self._reported_step == 0 and not self._rehearsal_told:
            self._rehearsal_told = True
            await self._tell(rehearsed_event(rehearsed))

    async def _report_requantized(self, found: Requantized) -> None:
        if not self._requantized_told:
            self._requantized_told = True
            await self._tell(requantized_event(found))

    async def _tell(self, told: Event) -> None:
        job_id, jobs = self._job_id, self._stores.jobs
        await persist_once(lambda nonce: jobs.append_events(job_id, [told], fence=self._token, nonce=nonce))

    async def _report_step(self, metrics: Metrics, tracker: Tracker, device_time: DeviceTime) -> None:
        is_new = metrics.step > self._reported_step
        if is_new:
            self._reported_step = metrics.step
            self._count(metrics)
            await self._tell(step_event(metrics, self._grader))
        for told in await self._alarms.raised_by(metrics, is_new=is_new):
            await self._tell(told)
        if is_new:
            tracker.step(metrics)
            await self._estimate(metrics, device_time)

    def _count(self, metrics: Metrics) -> None:
        observed.STEPS.inc()
        observed.TOKENS.labels(*self._tenant).inc(metrics.tokens)
        observed.note_rate(self._job_id, metrics.tokens_per_s)
        observed.PEAK_MEMORY.set(metrics.peak_memory_bytes or 0)

    async def _estimate(self, metrics: Metrics, device_time: DeviceTime) -> None:
        finish = self._estimates.finish(metrics.seconds_left)
        if finish is None:
            return

        def estimate(current: JobRecord) -> JobRecord:
            timed = device_time.on(current)
            return timed if current.status is not JobState.RUNNING else replace(timed, estimated_finish=finish)

        await persist(lambda: self._stores.jobs.update(self._job_id, estimate, fence=self._token))
        await device_time.tell()

    async def _withdraw_unless_succeeded(self, record: JobRecord) -> JobState:
        """Take back the names of a job that failed, was cancelled or paused, whatever was published by then.

        Returns the job's state.
        """
        ended = await persist(lambda: self._stores.jobs.get(self._job_id))
        if ended.status is not JobState.SUCCEEDED:
            await withdraw(self._stores, record, fence=self._token)
        return ended.status
