"""Asking reward models through a real Redis: who may, who answers, and what is told when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from shared import keys, reward_scoring
from shared.chat_data import Message
from shared.errors import TooLarge
from shared.grading.means import JudgeFailed, NotFinite, Unresponsive, Unscorable
from shared.model_records import Access
from shared.records import WorkerRecord
from shared.reward_scoring import NoTrainer, RewardScoring, UnknownModel
from shared.store import scorings
from shared.store.client import Client
from shared.store.model_settings import ModelSettingsStore
from shared.store.permissions import PermissionStore
from shared.store.presence import Presence
from shared.store.registry import Registry
from shared.store.scorings import ScoringReply, ScoringRequest, ScoringStore
from tests.api_server import BASE, make_adapter, make_base, with_store

TASTE = f"ft:{BASE}:acme:taste:reward00"
ACCESS = Access(project="proj_default", key_id="key_x")
CONVERSATION = [Message(role="user", content="Capital?"), Message(role="assistant", content="Paris")]


def with_models(redis_url: str, story: Callable[[Client, RewardScoring], Awaitable[None]], **options: Any) -> None:
    """Run a story with a reward model, a text model and a trainer that is alive."""

    async def run(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(TASTE, kind="reward"))
        await registry.publish(make_adapter(f"ft:{BASE}:acme:text:text0000", sha256="b" * 64))
        await Presence(client).beat_worker(WorkerRecord(id="w", state="idle"), ttl_s=600)
        scoring = RewardScoring(client, **{"timeout_s": 30.0, **options})
        try:
            await story(client, scoring)
        finally:
            await scoring.close()

    with_store(redis_url, run)


async def taken(client: Client, count: int = 1, **options: Any) -> list[ScoringRequest]:
    """Wait until so many requests could be taken."""
    store, found = ScoringStore(client), list[ScoringRequest]()
    async with asyncio.timeout(20):
        while len(found) < count:
            found += [one.request for one in await store.take(**{"most": 8, "lease_s": 60.0, **options})]
            await asyncio.sleep(0.01)
    return found


async def answered(client: Client, request: ScoringRequest, **reply: Any) -> None:
    await ScoringStore(client).answer(request.asker, [ScoringReply(id=request.id, **reply)])


async def left(client: Client) -> tuple[int, int]:
    """Return how many requests are queued, and how many keys of requests there are."""
    _, found = await client.call("SCAN", 0, "MATCH", keys.scoring("*"), "COUNT", 10_000)
    return int(await client.call("ZCARD", keys.SCORINGS)), len(found)


def test_answers_find_whoever_asked(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        asking = [asyncio.create_task(scoring.score(TASTE, conversation(n), ACCESS)) for n in range(6)]
        other = RewardScoring(client, timeout_s=30.0)
        asking.append(asyncio.create_task(other.of(ACCESS).score(TASTE, conversation(6))))
        requests = await taken(client, 7, most=3)
        assert {(one.model, one.base, one.sha256, one.base_fingerprint) for one in requests} == {
            (TASTE, BASE, "a" * 64, "f" * 64)
        }
        for request in reversed(requests):
            await answered(client, request, score=float(request.messages[0].text))
        await answered(client, requests[0], score=-1.0)  # late, from a trainer that was taken for dead
        assert await asyncio.gather(*asking) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert await left(client) == (0, 0)
        again = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        await answered(client, (await taken(client))[0], score=0.5)
        assert await again == 0.5
        await other.close()

    with_models(redis_url, story)


def conversation(number: int) -> list[Message]:
    return [Message(role="user", content=str(number)), CONVERSATION[1]]


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        ({"problem": "no memory"}, JudgeFailed, "no memory"),
        ({"problem": "too long", "is_unscorable": True}, Unscorable, "too long"),
        ({"score": None}, NotFinite, "no finite number"),
        ({"score": float("nan")}, NotFinite, "no finite number"),
    ],
)
def test_answer_without_a_score_is_an_error(
    redis_url: str, reply: dict[str, Any], error: type[Exception], text: str
) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        await answered(client, (await taken(client))[0], **reply)
        with pytest.raises(error, match=text):
            await asking

    with_models(redis_url, story)


def test_model_must_be_a_reward_model_that_the_key_may_use(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        stranger = Access(project="proj_other", key_id="key_y")
        for model, access, text in (
            (f"ft:{BASE}:acme:text:text0000", ACCESS, "is not the name of a reward model"),
            (BASE, ACCESS, "is not the name of a reward model"),
            ("nobody/../:x", ACCESS, "does not exist or you do not have access"),
            (TASTE, stranger, "does not exist or you do not have access"),
        ):
            with pytest.raises(UnknownModel, match=text):
                await scoring.score(model, CONVERSATION, access)
        await PermissionStore(client).grant(TASTE, ["proj_other"])
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, stranger))
        await answered(client, (await taken(client))[0], score=1.0)
        assert await asking == 1.0
        await ModelSettingsStore(client).update(
            TASTE, lambda current: replace(current, revision=current.revision + 1, allowed_keys=["key_z"])
        )
        with pytest.raises(UnknownModel):
            await scoring.score(TASTE, CONVERSATION, ACCESS)
        assert await left(client) == (0, 0)

    with_models(redis_url, story)


def test_without_a_trainer_it_is_said_at_once(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        await taken(client)
        await Presence(client).forget_worker("w")
        for waiting in (asking, scoring.score(TASTE, CONVERSATION, ACCESS)):
            with pytest.raises(NoTrainer, match="no trainer is running"):
                await waiting
        assert await left(client) == (0, 0)

    with_models(redis_url, story)


def test_request_of_a_trainer_that_died_is_taken_by_another(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        [request] = await taken(client, lease_s=60.0)
        store = ScoringStore(client)
        assert await store.take(most=8, lease_s=60.0) == [], "it is held"
        await store.hold([request.id, "unknown"], lease_s=0.0)
        [again] = await store.take(most=8, lease_s=60.0)
        assert (again.request, again.takes) == (request, 2)
        await answered(client, request, score=2.0)
        assert await asking == 2.0
        await store.hold([request.id], lease_s=0.0)
        assert await left(client) == (0, 0), "what is answered comes back no more"

    with_models(redis_url, story)


def test_request_that_is_handed_back_counts_as_never_taken(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        store = ScoringStore(client)
        assert await store.add(make_request("1"), lifetime_s=60.0)
        for _ in range(5):
            [taken_one] = await store.take(most=8, lease_s=60.0)
            assert taken_one.takes == 1
            await store.hand_back(["1", "unknown"], due_s=0.0)
        await store.hand_back(["1"], due_s=60.0)
        assert await store.take(most=8, lease_s=60.0) == [], "it is not due yet"
        assert await client.call("HGET", keys.scoring("1"), "takes") == b"0"
        assert await left(client) == (1, 1), "nothing is made of what is not there"

    with_models(redis_url, story)


def test_models_are_taken_one_at_a_time_the_longest_waiting_first(redis_url: str) -> None:
    async def story(client: Client, _: RewardScoring) -> None:
        store = ScoringStore(client)
        for number, sha256 in enumerate("abbab"):
            assert await store.add(make_request(str(number), sha256), lifetime_s=60.0)
        batches = [[one.request.id for one in await store.take(most=2, lease_s=60.0)] for _ in range(4)]
        assert batches == [["0", "3"], ["1", "2"], ["4"], []]

    with_models(redis_url, story)


def make_request(request_id: str, sha256: str = "a", messages: Sequence[Message] = CONVERSATION) -> ScoringRequest:
    return ScoringRequest(
        id=request_id, asker="asker", model=TASTE, base=BASE, base_fingerprint="f", sha256=sha256,
        messages=list(messages),
    )  # fmt: skip


def test_nobody_waits_for_ever_and_nothing_is_left(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        with pytest.raises(Unresponsive, match="gave no score within"):
            await scoring.score(TASTE, CONVERSATION, ACCESS)
        assert await left(client) == (0, 0)
        patient = RewardScoring(client, timeout_s=30.0)
        asking = asyncio.create_task(patient.score(TASTE, CONVERSATION, ACCESS))
        await taken(client)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await patient.close()
        assert await left(client) == (0, 0)

    with_models(redis_url, story, timeout_s=0.3)


def test_queue_is_bounded_and_whoever_comes_then_waits(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorings, "MAX_WAITING", 2)
    monkeypatch.setattr(reward_scoring, "_FULL_S", 0.01)

    async def story(client: Client, scoring: RewardScoring) -> None:
        store = ScoringStore(client)
        assert await store.add(make_request("1"), lifetime_s=60.0)
        assert await store.add(make_request("2"), lifetime_s=60.0)
        assert not await store.add(make_request("3"), lifetime_s=60.0)
        assert await left(client) == (2, 2)
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        await client.call("DEL", keys.scoring("1"))  # as if whoever asked had died long ago
        await answered(client, (await taken(client, 2))[1], score=4.0)
        assert await asking == 4.0
        with pytest.raises(TooLarge):
            await store.add(make_request("4", messages=[Message(role="user", content="x" * (1 << 20))]), lifetime_s=1)

    with_models(redis_url, story)


def test_closing_ends_whoever_waits(redis_url: str) -> None:
    async def story(client: Client, scoring: RewardScoring) -> None:
        asking = asyncio.create_task(scoring.score(TASTE, CONVERSATION, ACCESS))
        await taken(client)
        await scoring.close()
        with pytest.raises(NoTrainer, match="the server stops"):
            await asking

    with_models(redis_url, story)
