"""Requests to reward models, taken from Redis by every trainer, whatever it trains, and scored by one process of its.

Conversations that wait for the same model are scored together. When the process dies, another one begins; when this
worker does, what it had taken is due again. A request over which they die again and again is answered with that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from services.trainer.failures import ProcessDied, TrainingFailed
from services.trainer.launch.scoring_process import ScoringProcess
from services.trainer.scoring_protocol import Batch, NotScored, Scored
from services.trainer.stores import Stores
from shared.errors import StorageUnavailable, StoreUnavailable
from shared.store.scorings import ScoringReply, ScoringRequest, ScoringStore, Taken

MOST_TOGETHER = 32
MAX_TAKES = 3
"""So many trainers may die that have a request."""
MAX_TRIES = 2
"""So many processes may die over a conversation that they have alone."""
LEASE_S = 10.0
BEAT_S = 2.0
POLL_S = 0.1
AWAY_S = 0.5
LONGEST_S = 600.0
"""So long may loading a model and scoring a batch take."""

log = structlog.get_logger()


async def score_forever(stores: Stores) -> None:
    """Answer requests until cancelled."""
    scoring = Scoring(stores)
    try:
        while True:
            try:
                if not await scoring.work_once():
                    await asyncio.sleep(POLL_S)
            except (StoreUnavailable, StorageUnavailable):
                await asyncio.sleep(AWAY_S)
            except Exception:  # what was taken is due again; a worker that trains must not end over it
                log.exception("scoring.failed")
                await asyncio.sleep(AWAY_S)
    finally:
        await scoring.close()


class Scoring:
    """Takes requests, and has its process score them."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._scorings = ScoringStore(stores.client)
        self._process = ScoringProcess(stores.settings)

    async def work_once(self) -> bool:
        """Answer what waits longest, with what waits for the same model; False when nothing does."""
        taken = await self._scorings.take(most=MOST_TOGETHER, lease_s=LEASE_S)
        if not taken:
            await self._process.end_if_idle()
            return False
        async with self._held([one.request.id for one in taken]):
            if requests := await self._without_deadly(taken):
                await self._answer(requests)
        return True

    async def close(self) -> None:
        await self._process.close()

    async def _without_deadly(self, taken: Sequence[Taken]) -> list[ScoringRequest]:
        """Answer the requests over which trainers have died too often, and return the others."""
        deadly = [one.request for one in taken if one.takes > MAX_TAKES]
        if deadly:
            log.error("scoring.deadly", request_ids=[request.id for request in deadly])
            reason = f"{MAX_TAKES} trainers ended while they had this conversation to score."
            await self._reply(deadly, NotScored(reason=reason))
        return [one.request for one in taken if one.takes <= MAX_TAKES]

    async def _answer(self, requests: Sequence[ScoringRequest]) -> None:
        """Have requests scored; where the process dies over several they are tried one by one."""
        for tries in range(1, MAX_TRIES + 1):
            try:
                answer = await self._scored(requests)
                break
            except ProcessDied as error:
                log.warning("scoring.process_died", reason=error.message, requests=len(requests), tries=tries)
                if len(requests) > 1:
                    for request in requests:
                        await self._answer([request])
                    return
                answer = NotScored(reason=f"The process that scores ended {tries} times over this conversation.")
        await self._reply(requests, answer)

    async def _scored(self, requests: Sequence[ScoringRequest]) -> Scored | NotScored:
        """Raises ProcessDied."""
        try:
            return await self._process.score(await self._batch(requests), within_s=LONGEST_S)
        except ProcessDied:
            raise
        except TrainingFailed as error:
            return NotScored(reason=error.message)
        except TimeoutError:
            return NotScored(reason=f"The trainer did not score the conversation within {LONGEST_S:g} s.")

    async def _batch(self, requests: Sequence[ScoringRequest]) -> Batch:
        """Form what the process is told. Raises TrainingFailed for a model that is not to be had here."""
        first = requests[0]
        base = await self._stores.registry.base(first.base)
        if base is None:
            raise TrainingFailed(f"The base model {first.base} of {first.model} is not offered here any more.")
        if base.fingerprint != first.base_fingerprint:
            raise TrainingFailed(f"{first.model} was trained on another model than {first.base} is now.")
        base_folder = Path(base.placed(self._stores.paths.home).path)
        adapter_folder = self._stores.paths.adapter_folder(first.base, first.sha256)
        with suppress(FileNotFoundError):  # the process says what it lacks
            if base.origin:  # the operator's own are on every host
                await self._stores.blobs.fetch(base_folder)
            await self._stores.blobs.fetch(adapter_folder)
        return Batch(
            base_folder=str(base_folder),
            adapter_folder=str(adapter_folder),
            sha256=first.sha256,
            max_length=min(self._stores.settings.max_model_len, base.context_length),
            conversations=[request.messages for request in requests],
        )

    async def _reply(self, requests: Sequence[ScoringRequest], answer: Scored | NotScored) -> None:
        by_asker: dict[str, list[ScoringReply]] = {}
        for request, reply in zip(requests, _replies(requests, answer), strict=True):
            by_asker.setdefault(request.asker, []).append(reply)
        for asker, replies in by_asker.items():
            await self._scorings.answer(asker, replies)

    @asynccontextmanager
    async def _held(self, request_ids: Sequence[str]) -> AsyncIterator[None]:
        """Keep other trainers from taking the requests meanwhile."""
        beating = asyncio.create_task(self._beat(request_ids))
        try:
            yield
        except BaseException:
            await self._let_go(request_ids)
            raise
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _let_go(self, request_ids: Sequence[str]) -> None:
        """Leave the requests to whoever takes them next; that this one had them does not count."""
        with suppress(StoreUnavailable, TimeoutError):  # they are due when the lease is over
            async with asyncio.timeout(BEAT_S):
                await self._scorings.hand_back(request_ids, due_s=AWAY_S)

    async def _beat(self, request_ids: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._scorings.hold(request_ids, lease_s=LEASE_S)
            except StoreUnavailable:
                pass  # once more at the next beat
            except Exception:  # another trainer would take them while they are scored here
                log.exception("scoring.not_held")


def _replies(requests: Sequence[ScoringRequest], answer: Scored | NotScored) -> list[ScoringReply]:
    if isinstance(answer, NotScored):
        return [ScoringReply(id=request.id, problem=answer.reason) for request in requests]
    return [
        ScoringReply(id=request.id, score=score, problem=problem, is_unscorable=bool(problem))
        for request, score, problem in zip(requests, answer.scores, answer.problems, strict=True)
    ]
