"""How a batch ends, and what its requests get that were not answered."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from services.api.batches.input_file import InputFile
from services.api.batches.results import Result, Results
from shared import ids
from shared.batch_records import BatchRecord
from shared.batch_states import BatchState

_AT_ONCE = 1000


class Reason(NamedTuple):
    """Why a request was not answered: the error of its line, with OpenAI's codes."""

    code: str
    message: str


_EXPIRED = Reason("batch_expired", "This request could not be executed before the completion window expired.")
_CANCELLED = Reason("batch_cancelled", "The batch was cancelled before this request was executed.")

ENDS: dict[BatchState, tuple[BatchState, Reason | None]] = {
    BatchState.FINALIZING: (BatchState.COMPLETED, None),
    BatchState.IN_PROGRESS: (BatchState.EXPIRED, _EXPIRED),
    BatchState.CANCELLING: (BatchState.CANCELLED, _CANCELLED),
}
"""From the state in which no request is under way any more to the end, and the reason for those without a result."""


def counted(record: BatchRecord, results: Results) -> BatchRecord:
    """Return the record with what the results amount to."""
    counts = replace(record.counts, completed=results.completed, failed=results.failed)
    return replace(record, counts=counts, usage=results.usage)


def fill(found: InputFile, results: Results, reason: Reason) -> None:
    """Give every request that has no result an error. Blocks; raises OSError."""
    left = [number for number in range(len(found.places)) if number not in results]
    for start in range(0, len(left), _AT_ONCE):
        results.append([_unanswered(found, number, reason) for number in left[start : start + _AT_ONCE]])


def _unanswered(found: InputFile, number: int, reason: Reason) -> Result:
    line = {
        "id": ids.new_batch_request_id(),
        "custom_id": found.request(number).custom_id,
        "response": None,
        "error": reason._asdict(),
    }
    return Result(number=number, failed=True, line=Raw(msgspec.json.encode(line)))
