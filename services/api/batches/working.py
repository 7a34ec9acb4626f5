"""The requests of a batch, several at a time, each result on disk before the next request is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from services.api import metrics
from services.api.batches.answering import Answering
from services.api.batches.input_file import InputFile
from services.api.batches.results import Result, Results
from services.api.batches.side_by_side import side_by_side
from shared.batch_records import BatchRecord
from shared.errors import NoReplica


class Working:
    """Has the requests of one batch answered that have no result yet."""

    def __init__(self, answering: Answering, record: BatchRecord, found: InputFile, results: Results) -> None:
        self._answering = answering
        self._record = record
        self._found = found
        self._results = results
        self._absent: set[str] = set()
        """Models that had no server when they were asked; their requests are passed over."""
        self._waiting: list[Result] = []
        self._writing = asyncio.Lock()

    async def answer_all(self, *, concurrency: int, stop: asyncio.Event) -> None:
        """Return when every request has its result, or soon after `stop`: what is under way then is dropped.

        Raises NoReplica when what is left waits for models without a server, OSError when the disk does not take a
        result.
        """
        todo = iter([number for number in range(len(self._found.places)) if number not in self._results])
        await side_by_side(lambda: self._answer(todo), count=concurrency, stop=stop)
        await self._write()
        if self._absent and not stop.is_set():
            raise NoReplica(f"no inference server is there for {', '.join(sorted(self._absent))}")

    async def _answer(self, todo: Iterator[int]) -> None:
        for number in todo:
            if self._absent >= self._found.models:
                return
            request = await asyncio.to_thread(self._found.request, number)
            if self._absent and request.model in self._absent:
                continue
            record = self._record
            try:
                result = await self._answering.result(number, request, record.endpoint, access=record.access)
            except NoReplica:
                self._absent.add(request.model)
                continue
            metrics.BATCH_REQUESTS.labels("failed" if result.failed else "completed").inc()
            self._waiting.append(result)
            await self._write()

    async def _write(self) -> None:
        """Put on disk what waits for it: what came while others were written goes together, with one fsync."""
        async with self._writing:
            if self._waiting:
                group, self._waiting = self._waiting, []
                await asyncio.to_thread(self._results.append, group)
