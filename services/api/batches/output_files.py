"""Results made into files that their owner can list and download, once."""

from __future__ import annotations

import structlog

from services.api.batches.results import Results
from services.api.files.produced import ProducedFiles
from shared.batch_records import BatchRecord
from shared.blobs.interface import Blobs
from shared.store.files import FileStore

_log = structlog.get_logger()


class OutputFiles:
    """Publishes output and error file under the ids that the batch's record has for them."""

    def __init__(self, files: FileStore, blobs: Blobs) -> None:
        self._produced = ProducedFiles(files, blobs)

    async def publish(self, record: BatchRecord, results: Results) -> tuple[str | None, str | None]:
        """Return the ids of output and error file, None for one that would be empty. Twice is the same as once.

        Raises StoreUnavailable, Unavailable.
        """
        output = await self._publish(record, results, failed=False) if results.completed else None
        error = await self._publish(record, results, failed=True) if results.failed else None
        return output, error

    async def _publish(self, record: BatchRecord, results: Results, *, failed: bool) -> str:
        file_id = record.planned_error if failed else record.planned_output
        await self._produced.publish(
            file_id,
            results.lines(failed=failed),
            project=record.project,
            filename=f"{record.id}_{'error' if failed else 'output'}.jsonl",
            purpose="batch_output",
            lifetime_s=record.output_lifetime_s,
        )
        _log.info("batch.file", batch_id=record.id, file_id=file_id, failed=failed)
        return file_id
