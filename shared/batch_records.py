"""How batches are stored. Reading is tolerant: unknown fields are skipped, every later field has a default."""

from __future__ import annotations

from msgspec import Struct

from shared.batch_states import BatchState
from shared.model_records import Access
from shared.schemas.batches import Batch, BatchEndpoint, BatchError, BatchErrors, BatchRequestCounts, BatchUsage


class BatchRecord(Struct, frozen=True, kw_only=True):
    """A batch. Times are Unix times; None says that it has not happened."""

    id: str
    project: str
    endpoint: BatchEndpoint
    input_file_id: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_lifetime_s: int | None = None
    """How long output and error file are kept once they are made; None is for ever."""
    planned_output: str
    planned_error: str
    """The ids that its files will have; chosen at the start, so that a second attempt publishes the same files."""
    status: BatchState = BatchState.VALIDATING
    model: str | None = None
    errors: list[BatchError] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    counts: BatchRequestCounts = BatchRequestCounts()
    usage: BatchUsage = BatchUsage()
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    key_id: str = ""
    """The key that created it, with which it asks for models; empty for a batch from before models were for keys."""
    is_admin: bool = False
    """Whether that key had the scope `admin`."""

    @property
    def access(self) -> Access:
        return Access(project=self.project, key_id=self.key_id, is_admin=self.is_admin)

    @property
    def ended_at(self) -> int | None:
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    def public(self) -> Batch:
        return Batch(
            id=self.id,
            endpoint=self.endpoint,
            model=self.model,
            errors=None if self.errors is None else BatchErrors(data=self.errors),
            input_file_id=self.input_file_id,
            completion_window=self.completion_window,
            status=self.status.value,
            output_file_id=self.output_file_id,
            error_file_id=self.error_file_id,
            created_at=self.created_at,
            in_progress_at=self.in_progress_at,
            expires_at=self.expires_at,
            finalizing_at=self.finalizing_at,
            completed_at=self.completed_at,
            failed_at=self.failed_at,
            expired_at=self.expired_at,
            cancelling_at=self.cancelling_at,
            cancelled_at=self.cancelled_at,
            request_counts=self.counts,
            usage=self.usage,
            metadata=self.metadata,
        )
