"""What a client does with batches."""

from __future__ import annotations

import json
from typing import Any

from tests.faults.calls import Calls
from tests.faults.ledger import KnownBatch
from tests.integration.inference_stack import BASE_ID

MOST_BATCHES = 4
"""Unfinished batches at a time, of all clients."""
NOBODY = "nobody-has-this-model"
"""Requests for it belong into the error file."""
_ENDPOINT = "/v1/chat/completions"


class BatchClient:
    """Has files of requests answered."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._ledger = calls.ledger
        self._dice = calls.dice

    async def start(self) -> None:
        """Upload some requests and create a batch of them; cancel one in four at once."""
        if sum(not batch.ended_as for batch in self._ledger.batches.values()) >= MOST_BATCHES:
            return
        tag = self._calls.new_name("batch")
        lines = [self._line(f"{tag}-{number}") for number in range(self._dice.choice((3, 8, 24)))]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file_id = await self._calls.upload(content, purpose="batch")
        if file_id is None:
            return
        self._ledger.maybe_batches.add(tag)
        body = {
            "input_file_id": file_id, "endpoint": _ENDPOINT, "completion_window": "24h", "metadata": {"tag": tag},
        }  # fmt: skip
        made = await self._calls.ask("POST", "/batches", json=body, headers={"idempotency-key": tag})
        if made is None:
            return
        self._ledger.maybe_batches.discard(tag)
        asked = {line["custom_id"]: line["body"]["model"] != NOBODY for line in lines}
        self._ledger.batches[made["id"]] = KnownBatch(tag, asked)
        self._ledger.files[file_id].in_use = False  # the batch has it, whoever deletes the file
        if self._dice.random() < 0.25:
            await self._cancel(made["id"])

    async def look(self) -> None:
        """Look at a batch."""
        if not self._ledger.batches:
            return
        batch_id = self._dice.choice(list(self._ledger.batches)[-6:])
        known_before = self._ledger.batches[batch_id].shown
        batch = await self._calls.ask("GET", f"/batches/{batch_id}")
        if batch is not None:
            self._ledger.note_batch(batch, known_before)

    async def _cancel(self, batch_id: str) -> None:
        """Cancel a batch; 400 says that it has ended, or is about to."""
        self._ledger.batches[batch_id].cancel_asked = True
        if await self._calls.ask("POST", f"/batches/{batch_id}/cancel", fine=(400,)) is not None:
            self._ledger.batches[batch_id].cancelled = True

    def _line(self, custom_id: str) -> dict[str, Any]:
        tuned = [job.model for job in self._ledger.jobs.values() if job.model]
        model = self._dice.choices((BASE_ID, self._dice.choice(tuned or [BASE_ID]), NOBODY), (5, 2, 1))[0]
        body = {
            "model": model, "messages": [{"role": "user", "content": "colour 2 of 0?"}], "max_tokens": 3,
            "temperature": 0,
        }  # fmt: skip
        return {"custom_id": custom_id, "method": "POST", "url": _ENDPOINT, "body": body}
