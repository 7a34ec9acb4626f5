"""One run from where it is to its end, by the process that holds its lease. It may die between any two lines."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog
from msgspec.structs import replace

from services.api.batches.answering import Answering
from services.api.batches.slots import Slots
from services.api.evals.asking import Asking
from services.api.evals.failing import RunFailed
from services.api.evals.grading import Grading
from services.api.evals.keeping import Keeping
from services.api.evals.questions import Questions
from services.api.evals.rows import Rows
from services.api.evals.working import Working
from services.api.gateway.forwarding import Gateway
from services.api.graders.running import Graders
from services.api.stores import Stores
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, NotFound, StoreUnavailable, TransitionRefused
from shared.eval_records import EvalRecord, EvalRunRecord
from shared.eval_states import ENDED, EvalRunState
from shared.schemas.evals import CompletionsRun, EvalError, EvalFileId, RunSource
from shared.settings import Settings
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore
from shared.store.leases import LeaseStore

_log = structlog.get_logger()

_BEAT_S = 1.0
"""How often the lease is renewed and the record looked at: a cancellation is seen so soon."""
MAX_TRIES = 5
"""So often may a process die over a run that gets no row further, before the run is taken for the reason."""
ROWS_A_REQUEST = 2
"""So many rows are worked on for each request that may be under way: while one is graded and kept, another asks."""

_DEADLY = EvalError(
    code="server_error", message=f"The server broke down {MAX_TRIES} times over this run, without a row more."
)

_decode_source = msgspec.json.Decoder(RunSource).decode


@dataclass(frozen=True)
class Tools:
    """What every run needs. `slots` are those of `answering`, and `concurrency` their number."""

    evals: EvalStore
    runs: EvalRunStore
    leases: LeaseStore
    answering: Answering
    graders: Graders
    slots: Slots
    blobs: Blobs
    concurrency: int

    @classmethod
    def of(cls, settings: Settings, stores: Stores, blobs: Blobs, gateway: Gateway, graders: Graders) -> Tools:
        slots = Slots(settings.eval_concurrency)
        return cls(
            evals=stores.eval_store,
            runs=stores.eval_run_store,
            leases=stores.eval_run_leases,
            answering=Answering(gateway, stores.completions, stores.responses, slots),
            graders=graders,
            slots=slots,
            blobs=blobs,
            concurrency=settings.eval_concurrency,
        )


class Run:
    """Works on the run while its lease, known by `token`, is held."""

    def __init__(self, tools: Tools, run_id: str, token: str) -> None:
        self._tools = tools
        self._id = run_id
        self._token = token
        self._stop = asyncio.Event()
        """Set when the run has ended, by its owner's wish."""

    async def go(self) -> None:
        """Bring the run to its end.

        Raises NoReplica when a model is away, LeaseLost, Unavailable, OSError; then it is taken up again.
        """
        work, beat = asyncio.create_task(self._work()), asyncio.create_task(self._beat())
        try:
            done, _ = await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)

    async def _beat(self) -> None:
        """Keep the lease, and see what the run's owner wants. Raises LeaseLost."""
        while True:
            try:
                await self._tools.leases.renew(self._id, self._token)
                if (await self._tools.runs.get(self._id)).status in ENDED:
                    self._stop.set()
            except StoreUnavailable:
                _log.warning("eval_run.store_away", run_id=self._id)
            except NotFound:
                self._stop.set()
            await asyncio.sleep(_BEAT_S)

    async def _work(self) -> None:
        try:
            await self._bring_to_end()
        except (RunFailed, InvalidRequest) as error:
            await self._fail(_told(error))
        except (NotFound, TransitionRefused):
            _log.info("eval_run.over", run_id=self._id)  # cancelled or deleted meanwhile
        await self._tools.blobs.remove(self._tools.blobs.paths.eval_folder(self._id))

    async def _bring_to_end(self) -> None:
        record = await self._tried()
        eval_ = await self._tools.evals.get(record.eval_id, project=record.project)
        found = await self._tools.runs.find(self._id, eval_id=eval_.id, project=eval_.project)
        source = _decode_source(found.source)
        rows = await self._rows(source, eval_, is_checked=record.status is not EvalRunState.QUEUED)
        try:
            record = await self._begin(len(rows))
            await self._work_on(record, eval_, source, rows)
        finally:
            rows.close()
        if not self._stop.is_set():
            record = await self._change(EvalRunState.COMPLETED)
            _log.info("eval_run.ended", run_id=self._id, status=record.status.value, rows=record.rows)

    async def _tried(self) -> EvalRunRecord:
        """Count this try. Raises RunFailed when the processes that worked on the run died of it, as it seems."""
        done = sum(mark != 0 for mark in await self._tools.runs.marks(self._id))

        def count(current: EvalRunRecord) -> EvalRunRecord:
            if current.status in ENDED:
                return current
            tries = current.tries + 1 if current.tried_at == done else 1
            return replace(current, tries=tries, tried_at=done)

        record = await self._tools.runs.update(self._id, count, fence=self._token)
        if record.tries > MAX_TRIES:
            raise RunFailed(_DEADLY)
        return record

    async def _rows(self, source: RunSource, eval_: EvalRecord, *, is_checked: bool) -> Rows:
        """Read the run's rows. Raises InvalidRequest for those that cannot be worked on."""
        path = self._tools.blobs.paths.eval_rows(self._id)
        is_ours = is_checked or not isinstance(source.source, EvalFileId)
        try:
            await self._tools.blobs.fetch_file(path)
            return await asyncio.to_thread(Rows, path, config=eval_.data_source_config, is_ours=is_ours)
        except FileNotFoundError as error:
            raise InvalidRequest("The run's rows are gone from this server's storage.", code="rows_missing") from error

    async def _begin(self, rows: int) -> EvalRunRecord:
        def begin(current: EvalRunRecord) -> EvalRunRecord:
            if current.status is not EvalRunState.QUEUED:
                return current
            return replace(current, status=EvalRunState.IN_PROGRESS, rows=rows, started_at=int(time.time()))

        return await self._tools.runs.update(self._id, begin, fence=self._token)

    async def _work_on(self, record: EvalRunRecord, eval_: EvalRecord, source: RunSource, rows: Rows) -> None:
        tools = self._tools
        marks = await tools.runs.marks(self._id)
        todo = [number for number in range(len(rows)) if number >= len(marks) or not marks[number]]
        _log.info("eval_run.begun", run_id=self._id, rows=len(rows), left=len(todo))
        if not todo:
            return
        working = Working(
            Asking(tools.answering, tools.graders.judges, tools.slots, record.access),
            Grading(eval_.testing_criteria, tools.graders, tools.answering, tools.slots, record.access),
            Keeping(tools.runs, self._id, self._token),
            record,
            rows,
            questions=_questions(source),
            drafts=await tools.runs.drafts(self._id),
        )
        await working.work_all(todo, concurrency=ROWS_A_REQUEST * tools.concurrency, stop=self._stop)

    async def _fail(self, error: EvalError) -> None:
        with suppress(NotFound, TransitionRefused):
            await self._change(EvalRunState.FAILED, error)
            _log.info("eval_run.failed", run_id=self._id, code=error.code)

    async def _change(self, status: EvalRunState, error: EvalError | None = None) -> EvalRunRecord:
        def end(current: EvalRunRecord) -> EvalRunRecord:
            return replace(current, status=status, error=error or current.error, ended_at=int(time.time()))

        return await self._tools.runs.update(self._id, end, fence=self._token)


def _questions(source: RunSource) -> Questions | None:
    """Return what the run asks its model, None if it has none."""
    if isinstance(source, CompletionsRun) and source.model is not None:
        return Questions(source)
    return None


def _told(error: RunFailed | InvalidRequest) -> EvalError:
    if isinstance(error, RunFailed):
        return error.error
    return EvalError(code=error.code or "invalid_run", message=error.message)
