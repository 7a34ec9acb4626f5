"""The trainer process: two arq workers on one event loop, a heartbeat, a reaper, and the base model's preparation."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog
from arq.worker import Retry, Worker, func
from redis.exceptions import RedisError

from services.trainer import metrics
from services.trainer.base.preparation import prepare_base
from services.trainer.jobs.admission import admit
from services.trainer.jobs.leftovers import sweep_forever
from services.trainer.jobs.places import Places
from services.trainer.jobs.reaper import reap_forever
from services.trainer.jobs.scoring import score_forever
from services.trainer.jobs.serving import Serving
from services.trainer.jobs.supervise import train_job
from services.trainer.jobs.validating import validate_job
from services.trainer.jobs.wanting import TRAINABLE, while_wanted
from services.trainer.launch import processes
from services.trainer.launch.launching import Launcher
from services.trainer.memory.capacity import usable_memory_bytes
from services.trainer.stores import Stores, persist
from shared import queue
from shared.errors import NotFound, StoreUnavailable
from shared.records import WorkerRecord
from shared.settings import Settings
from shared.store.schema import ensure_schema

BEAT_S = 1.0
BEAT_TTL_S = 5.0
RESTART_S = 1.0
CANCEL_S = 0.2
VALIDATIONS_AT_ONCE = 4
# arq gives its in-progress mark one lifetime of this length and never renews it; our own lease says who works.
_NEVER = timedelta(days=3650)
_ALWAYS_AGAIN = 1_000_000

Work = Callable[[dict[Any, Any], str], Awaitable[None]]

log = structlog.get_logger()


class Trainer:
    """Runs until cancelled; then running jobs go back into the queue."""

    def __init__(self, settings: Settings) -> None:
        self._stores = Stores(settings)
        self._serving = Serving(self._stores)
        self._id = f"{socket.gethostname()}-{os.getpid()}"
        self._started_at = time.time()
        self._state: tuple[str, str] = ("preparing", "preparing base model")
        self._launcher = Launcher(settings)
        self._places = Places(self._launcher.most_together)
        self._job_ids: list[str] = []
        self._waiting_ids: list[str] = []
        self._memory_bytes: int | None = None

    async def run(self) -> None:
        """Prepare the base model, then work."""
        try:
            await ensure_schema(self._stores.client, self._stores.settings)
        except BaseException:
            await self._serving.close()
            await self._stores.close()
            raise
        beating = asyncio.create_task(self._beat_forever())
        try:
            await processes.warm_up()
            await prepare_base(self._stores, self._explain)
            self._state = ("idle", "")
            await self._work()
        finally:
            beating.cancel()
            await self._leave()

    async def _work(self) -> None:
        training = await self._worker(queue.TRAIN_QUEUE, "train", self._train, at_once=self._launcher.most_together)
        validating = await self._worker(queue.VALIDATE_QUEUE, "validate", self._validate, at_once=VALIDATIONS_AT_ONCE)
        log.info("worker.ready", worker_id=self._id)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_run_again(training))
                group.create_task(_run_again(validating))
                group.create_task(reap_forever(self._stores, training.pool))
                group.create_task(sweep_forever(self._stores))
                group.create_task(score_forever(self._stores))
        finally:
            await self._close(training)
            await self._close(validating)

    async def _worker(self, queue_name: str, name: str, work: Work, *, at_once: int) -> Worker:
        pool = await persist(lambda: queue.connect(self._stores.settings.database_url))
        return Worker(
            functions=[func(_with_its_id(work), name=name, keep_result=0, timeout=_NEVER, max_tries=_ALWAYS_AGAIN)],  # type: ignore[arg-type]
            queue_name=queue_name,
            redis_pool=pool,
            max_jobs=at_once,
            handle_signals=False,
            job_timeout=_NEVER,
            max_tries=_ALWAYS_AGAIN,
            keep_result=0,
            poll_delay=0.2,
            health_check_interval=10,
            job_serializer=queue.serialize,
            job_deserializer=queue.deserialize,
            log_results=False,
        )

    async def _validate(self, _context: dict[Any, Any], job_id: str) -> None:
        if await validate_job(self._stores, job_id):
            raise Retry

    async def _train(self, _context: dict[Any, Any], job_id: str) -> None:
        # A message that is let go comes back with the reaper, at the place in the queue that it had.
        if not await admit(self._stores, job_id, self._memory_bytes):
            return
        async with self._place(job_id) as is_wanted:
            if not is_wanted or not await admit(self._stores, job_id, await self._measure_memory()):
                return
            self._job_ids.append(job_id)
            try:
                # arq dropped the message that came with the job's resumption: this one was still in progress.
                if await train_job(self._stores, self._serving, self._launcher, job_id):
                    raise Retry
            finally:
                self._job_ids.remove(job_id)

    @asynccontextmanager
    async def _place(self, job_id: str) -> AsyncIterator[bool]:
        """Wait for a place beside the jobs that train; the heartbeat tells the reaper that the job is in hand.

        Gives False, and no place, where the job was cancelled or paused meanwhile.
        """
        company = await self._company(job_id)
        self._waiting_ids.append(job_id)
        try:
            entered = await while_wanted(self._stores, job_id, TRAINABLE, self._places.enter(company))
        finally:
            self._waiting_ids.remove(job_id)
        try:
            yield entered is not None
        finally:
            if entered is not None:
                await self._places.leave()

    async def _company(self, job_id: str) -> str | None:
        try:
            return self._launcher.company(await persist(lambda: self._stores.jobs.get(job_id)))
        except NotFound:
            return None  # train_job has nothing to do for it

    async def _measure_memory(self) -> int | None:
        """See what a job may need here, while none trains; as long as one does it stays what it was."""
        if not self._job_ids:
            settings = self._stores.settings
            self._memory_bytes = await asyncio.to_thread(usable_memory_bytes, settings.trainer_memory_bytes)
            metrics.USABLE_MEMORY.set(self._memory_bytes or 0)
        return self._memory_bytes

    async def _beat_forever(self) -> None:
        while True:
            await self._measure_memory()
            try:
                await self._stores.presence.beat_worker(self._record(), ttl_s=BEAT_TTL_S)
            except StoreUnavailable:
                log.warning("heartbeat.store_unavailable")
            except Exception:  # a worker that works and is silent would be taken for dead, for ever
                log.exception("heartbeat.failed")
            await asyncio.sleep(BEAT_S)

    def _record(self) -> WorkerRecord:
        state, reason = self._state
        is_training = state == "idle" and bool(self._job_ids)
        return WorkerRecord(
            id=self._id,
            state="training" if is_training else state,  # type: ignore[arg-type]
            reason=reason,
            job_id=self._job_ids[0] if self._job_ids else None,
            job_ids=list(self._job_ids),
            waiting_job_ids=list(self._waiting_ids),
            started_at=self._started_at,
            memory_bytes=self._memory_bytes,
        )

    def _explain(self, reason: str) -> None:
        self._state = ("preparing", reason)

    async def _close(self, worker: Worker) -> None:
        """Cancel what the worker runs and wait for it; each job hands itself back."""
        self._state = ("draining", "stopping")
        try:
            await worker.close()
        except (asyncio.CancelledError, RedisError, OSError) as error:
            log.info("worker.closed", reason=type(error).__name__)

    async def _leave(self) -> None:
        try:
            await self._stores.presence.forget_worker(self._id)
        except StoreUnavailable:
            log.warning("heartbeat.left_to_expire")
        await self._serving.close()
        await self._stores.close()


def _with_its_id(work: Work) -> Work:
    """Have every line that is logged for a job carry its id."""

    async def bound(context: dict[Any, Any], job_id: str) -> None:
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            await work(context, job_id)

    return bound


async def _run_again(worker: Worker) -> None:
    """Keep an arq worker polling: it gives up when Redis goes away, its running jobs do not."""
    while True:
        try:
            await _run(worker)
        except (RedisError, OSError) as error:
            log.warning("queue.unavailable", queue=worker.queue_name, reason=type(error).__name__)
        await asyncio.sleep(RESTART_S)
        await _recount(worker)


async def _recount(worker: Worker) -> None:
    """Have arq count the jobs that it runs: one that it was about to start when Redis went away stays counted."""
    running = sum(not task.done() for task in worker.tasks.values())
    worker.job_counter = running
    worker.sem = asyncio.BoundedSemaphore(worker.max_jobs + 1)
    for _ in range(running):
        await worker.sem.acquire()


async def _run(worker: Worker) -> None:
    """Run an arq worker until it gives up or this is cancelled, again and again: redis-py loses cancellations.

    See shared.store.client; arq has a pool of its own.
    """
    running = asyncio.create_task(worker.async_run())
    try:
        await asyncio.wait({running})
    finally:
        while not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=CANCEL_S)
    running.result()


async def run_until_signal(settings: Settings) -> None:
    """Run a trainer until SIGTERM or SIGINT."""
    running = asyncio.create_task(Trainer(settings).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("worker.stopped")
