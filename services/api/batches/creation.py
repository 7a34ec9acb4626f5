"""Taking a batch in, and cancelling it: what its owner may do."""

from __future__ import annotations

import time

import structlog
from msgspec.structs import replace

from shared import ids
from shared.batch_records import BatchRecord
from shared.batch_states import BatchState
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, NotFound, TransitionRefused, Unavailable
from shared.model_records import Access
from shared.records import FileRecord
from shared.schemas.batches import CreateBatch
from shared.store.batches import BatchStore
from shared.store.files import FileStore

_log = structlog.get_logger()

_WINDOW_S = 86_400
MAX_INPUT_BYTES = 200 << 20


class Batches:
    """Creates and cancels batches; the record says what is wanted, and the runners follow it."""

    def __init__(self, batches: BatchStore, files: FileStore, blobs: Blobs) -> None:
        self._batches = batches
        self._files = files
        self._blobs = blobs

    async def create(self, request: CreateBatch, *, access: Access, batch_id: str) -> BatchRecord:
        """Record a batch; one that has this id already is returned as it is.

        The batch holds its input from here on: deleting the file takes nothing from it, and frees no storage
        before it has ended. It may use the models that its creator may. Raises InvalidRequest, NotFound, Unavailable.
        """
        try:
            return await self._batches.get(batch_id, project=access.project)
        except NotFound:
            pass
        held = await self._check_input(request.input_file_id, access.project)
        await self._hold_input(request.input_file_id, batch_id)
        record = await self._batches.create(_record(request, access, batch_id), held=held)
        _log.info("batch.created", batch_id=record.id, endpoint=record.endpoint, input_file=record.input_file_id)
        return record

    async def cancel(self, batch_id: str, *, project: str) -> BatchRecord:
        """Ask for a batch's end; twice is the same as once.

        Raises NotFound, and TransitionRefused for a batch whose requests all have their results.
        """

        def stop(current: BatchRecord) -> BatchRecord:
            if current.status in (BatchState.CANCELLING, BatchState.CANCELLED):
                return current
            if current.status not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
                raise TransitionRefused(
                    f"Cannot cancel a batch with status '{current.status.value}'.", code="invalid_batch_state"
                )
            return replace(current, status=BatchState.CANCELLING, cancelling_at=int(time.time()))

        record = await self._batches.update(batch_id, stop, project=project)
        _log.info("batch.cancelling", batch_id=batch_id)
        return record

    async def _check_input(self, file_id: str, project: str) -> FileRecord:
        try:
            record = await self._files.get(file_id, project=project)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param="input_file_id") from error
        if record.purpose != "batch":
            raise InvalidRequest(
                f"File {file_id} was uploaded with purpose '{record.purpose}'; upload it with purpose 'batch'.",
                code="invalid_file_purpose",
                param="input_file_id",
            )
        if record.size_bytes > MAX_INPUT_BYTES:
            raise InvalidRequest(
                f"File {file_id} has {record.size_bytes:,} bytes; a batch takes at most {MAX_INPUT_BYTES:,}.",
                code="file_too_large",
                param="input_file_id",
            )
        return record

    async def _hold_input(self, file_id: str, batch_id: str) -> None:
        """Give the batch a name of its own for the file's bytes."""
        paths = self._blobs.paths
        try:
            await self._blobs.copy_file(paths.file_content(file_id), paths.batch_input(batch_id))
        except FileNotFoundError as error:
            raise NotFound(f"No such File object: {file_id}", param="input_file_id") from error
        except OSError as error:
            raise Unavailable("The server's storage does not take the batch.", code="storage_unavailable") from error


def _record(request: CreateBatch, access: Access, batch_id: str) -> BatchRecord:
    now = int(time.time())
    kept = request.output_expires_after
    return BatchRecord(
        id=batch_id,
        project=access.project,
        key_id=access.key_id,
        is_admin=access.is_admin,
        endpoint=request.endpoint,
        input_file_id=request.input_file_id,
        completion_window=request.completion_window,
        metadata=request.metadata,
        output_lifetime_s=None if kept is None else kept.seconds,
        planned_output=ids.new_file_id(),
        planned_error=ids.new_file_id(),
        created_at=now,
        expires_at=now + _WINDOW_S,
    )
