"""Asking reward models: conversations go through Redis to any trainer that is alive, and their scores come back.

Whoever grades may ask, however many at a time: one task listens for all answers of a process.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import structlog

from shared import ids
from shared.chat_data import Message
from shared.errors import StoreUnavailable, TooLarge
from shared.grading.means import JudgeFailed, NotFinite, RewardModels, Unresponsive, Unscorable
from shared.model_records import Access
from shared.records import AdapterRecord
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.scorings import ScoringReply, ScoringRequest, ScoringStore

_LISTEN_S = 1.0
"""Between two looks for trainers that are alive."""
_FULL_S = 0.2
_AWAY_S = 0.5

_log = structlog.get_logger()


class NoTrainer(JudgeFailed):
    """Nobody is there to score, or Redis is away; later there may be."""


class UnknownModel(JudgeFailed):
    """The model is not there, or not to be used by whoever asks."""


class RewardScoring:
    """Has trainers score; an answer may take `timeout_s`, waiting for others included."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        self._scorings = ScoringStore(client)
        self._registry = Registry(client)
        self._presence = Presence(client)
        self._timeout_s = timeout_s
        self._asker = ids.new_token()
        self._place = "0-0"
        self._waiting: dict[str, asyncio.Future[ScoringReply]] = {}
        self._listener: asyncio.Task[None] | None = None

    def of(self, access: Access) -> RewardModels:
        """Return the reward models that a key may use."""
        return _ProjectRewardModels(self, access)

    async def score(self, model: str, conversation: Sequence[Message], access: Access) -> float:
        """Return the finite score of the last message.

        Raises UnknownModel, NoTrainer, Unresponsive, Unscorable, NotFinite, or JudgeFailed with the reason.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                adapter = await self._find(model, access)
                await self._check_trainers()
                reply = await self._asked(_request(adapter, conversation, self._asker))
        except TimeoutError as error:
            raise Unresponsive(f"the reward model '{model}' gave no score within {self._timeout_s:g} s") from error
        except StoreUnavailable as error:
            raise NoTrainer(error.message) from error
        if reply.problem:
            raise (Unscorable if reply.is_unscorable else JudgeFailed)(reply.problem)
        if reply.score is None or not math.isfinite(reply.score):
            raise NotFinite(f"the score of the reward model '{model}' is no finite number")
        return reply.score

    async def close(self) -> None:
        """Stop listening; whoever waits gets NoTrainer."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        self._give_up("the server stops")

    async def _find(self, model: str, access: Access) -> AdapterRecord:
        found = (await self._registry.find(model, access)).own
        if found is None:
            raise UnknownModel(f"the model '{model[:200]}' does not exist or you do not have access to it")
        if not isinstance(found.model, AdapterRecord) or found.model.kind != "reward":
            raise UnknownModel(f"'{model[:200]}' is not the name of a reward model")
        return found.model

    async def _check_trainers(self) -> None:
        if not await self._presence.workers():
            raise NoTrainer("no trainer is running, and reward models are run by trainers")

    async def _asked(self, request: ScoringRequest) -> ScoringReply:
        """Wait for the answer, or for as long as the caller likes."""
        future: asyncio.Future[ScoringReply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            while not await self._scorings.add(request, lifetime_s=self._timeout_s):
                await asyncio.sleep(_FULL_S)
            if self._listener is None or self._listener.done():
                self._listener = asyncio.create_task(self._listen())
            return await future
        except TooLarge as error:
            raise Unscorable(error.message) from error
        finally:
            del self._waiting[request.id]
            if not _has_result(future):
                await self._withdraw(request.id)

    async def _withdraw(self, request_id: str) -> None:
        try:
            await self._scorings.withdraw(request_id)
        except StoreUnavailable:  # it vanishes by itself
            _log.info("scoring.left_to_expire", request_id=request_id)

    async def _listen(self) -> None:
        """Hand out answers as long as somebody waits for one."""
        while self._waiting:
            try:
                await self._hand_out()
            except StoreUnavailable:
                await asyncio.sleep(_AWAY_S)
            except NoTrainer as error:
                self._give_up(str(error))

    async def _hand_out(self) -> None:
        self._place, replies = await self._scorings.replies(self._asker, self._place, block_ms=int(_LISTEN_S * 1000))
        for reply in replies:
            future = self._waiting.get(reply.id)
            if future is not None and not future.done():
                future.set_result(reply)
        if not replies:
            await self._check_trainers()

    def _give_up(self, reason: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NoTrainer(reason))


class _ProjectRewardModels:
    def __init__(self, scoring: RewardScoring, access: Access) -> None:
        self._scoring = scoring
        self._access = access

    async def score(self, model: str, conversation: Sequence[Message]) -> float:
        return await self._scoring.score(model, conversation, self._access)


def _has_result(future: asyncio.Future[ScoringReply]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _request(adapter: AdapterRecord, conversation: Sequence[Message], asker: str) -> ScoringRequest:
    return ScoringRequest(
        id=ids.new_token(),
        asker=asker,
        model=adapter.name,
        base=adapter.base,
        base_fingerprint=adapter.base_fingerprint,
        sha256=adapter.sha256,
        messages=list(conversation),
    )
