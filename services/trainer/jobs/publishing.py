"""From a finished adapter to a model that answers: publish, wait for a replica, compare, list, succeed."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from services.trainer.base.description import describe_base
from services.trainer.failures import ParityMismatch, TrainingFailed
from services.trainer.jobs.job_folder import NAMES_FILE, CheckpointNames, result_file_id
from services.trainer.jobs.mirror import keep_decisions
from services.trainer.jobs.narration import (
    RESULT_FILE_NAME,
    checkpoint_event,
    checkpoint_metrics,
    parity_event,
    pending_event,
    result_csv,
    reward_model_event,
    whole_model_event,
)
from services.trainer.jobs.serving import AdapterRefused, Answers, Serving
from services.trainer.jobs.story import newest_first
from services.trainer.launch.child_process import ChildProcess
from services.trainer.protocol import CheckParity, Exported, Failed, Finish, ParityMeasured, TrainSpec
from services.trainer.rollouts.policies import withdraw_policies
from services.trainer.shortages import died
from services.trainer.stores import Stores, persist, persist_once
from services.trainer.training.history import History
from services.trainer.training.keeping import kept_steps
from shared import ids, tracing
from shared.errors import NoReplica, StorageUnavailable
from shared.paths import folder_bytes, write_atomic
from shared.records import AdapterRecord, FileRecord, JobRecord
from shared.schemas.checkpoints import Checkpoint
from shared.schemas.events import Event
from shared.states import JobState
from shared.store.jobs import event

log = structlog.get_logger()


async def withdraw(stores: Stores, record: JobRecord, *, fence: str = "") -> None:
    """Take back all that was published of a job that did not succeed; twice is the same as once.

    `fence` is the token of the job's lease, "" for one that is at its end for good. Raises LeaseLost.
    Adapters are left to the hourly sweep, since another job's may be the same bytes; a whole model is its job's alone.
    """
    folder = stores.paths.job_folder(record.id)
    with suppress(FileNotFoundError, StorageUnavailable):  # another host may have given the names
        await stores.blobs.fetch_file(folder / NAMES_FILE)
    for name in {*CheckpointNames(folder, record.model_name).all(), record.model_name}:
        await persist(partial(stores.registry.retire, name, fence=fence))
    if record.method == "reinforcement":
        await withdraw_policies(stores, record.id, fence=fence)
    await persist(lambda: stores.jobs.forget_checkpoints(record.id, fence=fence))
    try:
        await stores.blobs.remove(stores.paths.whole_model_folder(record.id))
    except StorageUnavailable:
        log.warning("model.left_to_sweep", job_id=record.id)


class Publication:
    """The end of one job; `token` fences every write to its record."""

    def __init__(self, stores: Stores, serving: Serving, record: JobRecord, spec: TrainSpec, token: str) -> None:
        self._stores = stores
        self._serving = serving
        self._record = record
        self._spec = spec
        self._token = token
        self._folder = stores.paths.job_folder(record.id)
        self._history = History(self._folder, Path(spec.adapters_folder))
        self._names = CheckpointNames(self._folder, record.model_name)

    async def announce(self, step: int) -> None:
        """Tell of an epoch's checkpoint, once; its name answers when the job has succeeded."""
        name, is_new = await self._name(step, final=False)
        await self._say_once(checkpoint_event(step, name), step, is_new=is_new, final=False)

    async def prove(self, child: ChildProcess, exported: Exported, last_step_at: float) -> None:
        """Publish the final adapter and see it answer.

        `last_step_at` is Unix time. Raises ParityMismatch, or TrainingFailed when it cannot be served.
        """
        step = exported.metrics.step
        _, is_new = await self._name(step, final=True)
        await persist(lambda: self._stores.blobs.keep(Path(exported.folder)))
        if exported.remark:
            await self._say_once(event(exported.remark, data={"step": step}), step, is_new=is_new, final=True)
        unlisted = self._adapter(exported, listed=False)
        with tracing.span("model.publish", model=self._record.model_name):
            adapter = await persist(lambda: self._stores.registry.publish(unlisted, fence=self._token))
        if self._is_whole:
            await self._offer_as_base(exported, adapter)
            told = whole_model_event(adapter.name, adapter.folder)
            if not await self._is_in_story(told):
                await self._say(told)
        elif adapter.kind == "reward":
            told = reward_model_event(adapter.name, adapter.folder)
            if not await self._is_in_story(told):
                await self._say(told)
        else:
            await self._see_it_answer(child, exported, adapter, last_step_at)

    async def _name(self, step: int, *, final: bool) -> tuple[str, bool]:
        """Name a checkpoint, so that every host gives it this name from now on."""
        name, is_new = self._names.of(step, final=final)
        if is_new:
            await keep_decisions(self._stores, self._folder)
        return name, is_new

    @property
    def _is_whole(self) -> bool:
        return self._spec.finetuning_type == "full"

    async def _offer_as_base(self, exported: Exported, model: AdapterRecord) -> None:
        """Let the whole model be served and trained on, by those who may use it."""
        start = await persist(lambda: self._stores.registry.base(self._spec.base_id))
        origin = self._spec.base_id if start is None else start.origin or start.id
        described = await asyncio.to_thread(describe_base, Path(exported.folder), model.name)
        base = replace(described, path=model.folder, origin=origin, created_at=model.created_at)
        await persist(lambda: self._stores.registry.put_base(base))

    async def _see_it_answer(
        self, child: ChildProcess, exported: Exported, adapter: AdapterRecord, last_step_at: float
    ) -> None:
        try:
            with tracing.span("adapter.wait", model=adapter.name):
                replica = await self._serving.wait_until_warm(adapter)
            with tracing.span("adapter.ask", model=adapter.name, replica=replica.id):
                answers = await self._serving.answers(replica, adapter.name, exported.probes)
        except AdapterRefused as error:
            raise TrainingFailed(
                f"The trained model cannot be served: {error.message}.", code="not_servable"
            ) from error
        except NoReplica as error:
            log.warning("serving.pending", job_id=self._record.id, reason=error.message)
            await self._say(pending_event(adapter.name, error.message))
            return
        with tracing.span("parity.check"):
            measured = await self._compare(child, answers)
        await self._say(parity_event(measured, answers.first_token_at - last_step_at))
        if not measured.agrees:
            raise ParityMismatch(
                f"The served model differs from the trained one: log probabilities by up to "
                f"{measured.max_logprob_difference:.3g} nats, where {measured.tolerance:g} is allowed."
            )

    async def _compare(self, child: ChildProcess, answers: Answers) -> ParityMeasured:
        await child.send(CheckParity(samples=answers.samples))
        try:
            async with asyncio.timeout(child.answers_within_s):
                async for message in child.messages():
                    if isinstance(message, ParityMeasured):
                        return message
                    if isinstance(message, Failed):
                        raise TrainingFailed(message.message, code=message.code, param=message.param)
                    if isinstance(message, Exported) and message.final:  # by a group that was started anew meanwhile
                        await child.send(CheckParity(samples=answers.samples))
        except TimeoutError as error:
            raise TrainingFailed("The training process did not compare the served model in time.") from error
        raise died(await child.wait(), self._spec)

    async def succeed(self, child: ChildProcess, exported: Exported) -> None:
        """List everything, then let the job succeed; whoever sees it succeeded finds model, checkpoints and results."""
        await child.send(Finish())
        result_file = await self._store_result()
        for checkpoint in await self._kept(exported):
            await self._list(checkpoint)
        name = self._record.model_name
        await persist(
            lambda: self._stores.jobs.finish(
                self._record.id,
                JobState.SUCCEEDED,
                events=[event(f"New fine-tuned model created: {name}"), event("The job has successfully completed")],
                fence=self._token,
                fine_tuned_model=name,
                trained_tokens=exported.trained_tokens,
                result_files=[result_file],
            )
        )
        log.info("job.finished", job_id=self._record.id, model=name)

    async def _kept(self, final: Exported) -> Sequence[Exported]:
        """The checkpoints that stay, oldest first, the final one at the end; one that became it once.

        One whose folder is gone does not: it was of no use before the steps behind it were trained once more.
        """
        exports = [exported for exported in self._history.exports() if exported.metrics.step != final.metrics.step]
        earlier = {exported.metrics.step: exported for exported in exports if not exported.final}
        there = [exported.metrics for exported in earlier.values() if await self._is_there(Path(exported.folder))]
        return [*(earlier[step] for step in kept_steps(there)), final]

    async def _is_there(self, folder: Path) -> bool:
        return folder.is_dir() or await persist(lambda: self._stores.blobs.exists(folder))

    async def _list(self, exported: Exported) -> None:
        adapter = self._adapter(exported, listed=True)
        checkpoint = Checkpoint(
            id=ids.new_checkpoint_id(),
            created_at=int(time.time()),
            fine_tuning_job_id=self._record.id,
            fine_tuned_model_checkpoint=adapter.name,
            step_number=exported.metrics.step,
            metrics=checkpoint_metrics(exported),
        )
        await persist(lambda: self._stores.blobs.keep(Path(exported.folder)))
        await persist(lambda: self._stores.registry.publish(adapter, fence=self._token))
        await persist(lambda: self._stores.jobs.append_checkpoint(checkpoint, fence=self._token))

    def _adapter(self, exported: Exported, *, listed: bool) -> AdapterRecord:
        name, _ = self._names.of(exported.metrics.step, final=exported.final)
        return AdapterRecord(
            name=name,
            base=name if self._is_whole else self._spec.base_id,
            base_fingerprint=self._spec.base_fingerprint,
            folder=self._stores.paths.relative(Path(exported.folder)),
            sha256=exported.sha256,
            rank=0 if self._is_whole else self._spec.rank,
            whole=self._is_whole,
            project=self._record.project,
            job_id=self._record.id,
            created_at=int(time.time()),
            listed=listed,
            size_bytes=folder_bytes(Path(exported.folder)),
            kind="reward" if self._spec.method == "reward" else "text",
        )

    async def _store_result(self) -> str:
        """Store the metrics of every step as a file of the job's project, once, and return its id."""
        content = result_csv(self._history.steps())
        record = FileRecord(
            id=await asyncio.to_thread(result_file_id, self._stores.paths.job_folder(self._record.id)),
            project=self._record.project,
            filename=RESULT_FILE_NAME,
            purpose="fine-tune-results",
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            created_at=int(time.time()),
        )
        blobs, mark = self._stores.blobs, self._stores.paths.unrecorded_mark(record.id)
        await keep_decisions(self._stores, self._folder)
        await persist(lambda: blobs.mark(mark))
        await asyncio.to_thread(self._write_result, record, content)
        await persist(lambda: blobs.keep(self._stores.paths.file_folder(record.id)))

        async def add() -> None:
            await blobs.mark(mark)  # anew each time: what nobody has tried to record for an hour is swept
            await self._stores.files.add(record)

        await persist(add)
        with suppress(StorageUnavailable, OSError):  # the api's sweeper sees to it
            await blobs.delete(mark)
        return record.id

    def _write_result(self, record: FileRecord, content: bytes) -> None:
        folder = self._stores.paths.file_folder(record.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._stores.paths.file_content(record.id), content)
        write_atomic(folder / "manifest.json", msgspec.json.encode(record))

    async def _say_once(self, told: Event, step: int, *, is_new: bool, final: bool) -> None:
        """Say it unless the story has it: a worker may have died after the name, after the event, or after its note.

        A checkpoint whose name was given just now was never told of.
        """
        if self._names.is_told(step, final=final):
            return
        if is_new or not await self._is_in_story(told):
            await self._say(told)
        self._names.note_told(step, final=final)

    async def _is_in_story(self, told: Event) -> bool:
        async for earlier in newest_first(self._stores, self._record.id):
            if earlier.message == told.message:
                return True
        return False

    async def _say(self, told: Event) -> None:
        job_id, jobs = self._record.id, self._stores.jobs
        await persist_once(lambda nonce: jobs.append_events(job_id, [told], fence=self._token, nonce=nonce))
