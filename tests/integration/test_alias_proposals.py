"""Deciding on proposals, in a real Redis, with a plan and jobs that are as each test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from services.api.aliases.changes import first_entry, updated
from services.api.aliases.proposals import Proposals
from shared import keys
from shared.alias_records import AliasRecord, SetBy
from shared.errors import InvalidRequest, StoreUnavailable
from shared.proposal_records import ProposalRecord
from shared.records import KeyRecord
from shared.schemas.aliases import UpdateAlias
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.monitors import Monitor, RetrainingBudget
from shared.schemas.quality import QualityWindow
from shared.schemas.retraining import RetrainingPlan
from shared.store.aliases import AliasStore
from shared.store.client import Client
from shared.store.proposals import ProposalStore
from tests.api_server import with_store

CALLER = KeyRecord(id="key_1", name="ada", project="proj_a", created_at=1)
MONITOR = Monitor(sample_rate=1.0, budget=RetrainingBudget(jobs=2, tokens=1000))
ALIAS = AliasRecord(
    uid="u1", name="bot", project="proj_a", target="m", created_at=1, updated_at=1, monitor=MONITOR,
    monitor_set=SetBy(key_id="key_1", at=1),
)  # fmt: skip


class Retraining:
    """Plans what it is told to, and notes the plans that it starts."""

    def __init__(self) -> None:
        self.plan = RetrainingPlan(
            model="m", former_job_id=None, training_file=None, answers=3, hyperparameters=SupervisedHyperparameters(),
            estimated_tokens=400,
        )  # fmt: skip
        self.fails: Exception | None = None
        self.started: list[RetrainingPlan] = []
        self.jobs: set[str] = set()

    async def planned(self, *_: Any) -> tuple[RetrainingPlan, Sequence[bytes]]:
        return self.plan, [b"{}\n"] * self.plan.answers

    async def planned_again(self, alias: AliasRecord, _: ProposalRecord) -> RetrainingPlan:
        if self.fails is not None:
            raise self.fails
        return self.plan

    async def rows_again(self, alias: AliasRecord, _: ProposalRecord) -> Sequence[bytes]:
        if alias.monitor is None:
            raise InvalidRequest("no monitor", code="no_monitor")
        if self.fails is not None:
            raise self.fails
        return [b"{}\n"]

    async def is_started(self, record: ProposalRecord) -> bool:
        return record.job_id in self.jobs

    async def start(self, record: ProposalRecord, _: Sequence[bytes]) -> None:
        self.started.append(record.plan)
        self.jobs.add(record.job_id)

    async def tokens_of(self, record: ProposalRecord) -> int:
        return record.plan.estimated_tokens


class Scene:
    """An alias with proposals."""

    def __init__(self, client: Client) -> None:
        self.store, self.aliases, self.retraining = ProposalStore(client), AliasStore(client), Retraining()
        self.proposals = Proposals(self.store, cast(Any, self.retraining))
        self.client = client

    async def propose(self, number: int = 1) -> ProposalRecord:
        window = QualityWindow(
            id=f"1-{number}", model="m", starts_at=0, ends_at=10, samples=0, status="compared", alarms=["other words"]
        )
        await self.proposals.propose(ALIAS, window)
        found = next(one for one in await self.store.all("u1") if one.window_id == window.id)
        assert found.status == "open"
        return found

    async def approve(self, record: ProposalRecord) -> ProposalRecord:
        return await self.proposals.approve(ALIAS, record.id, caller=CALLER, reason="go")


def with_scene(redis_url: str, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def run(client: Client) -> None:
        scene = Scene(client)
        await scene.aliases.create(ALIAS, first_entry(ALIAS, "", CALLER))
        await client.call("SADD", keys.TENDED_ALIASES, "proj_a bot")
        await story(scene)

    with_store(redis_url, run)


def test_the_budget_is_that_of_the_plan_which_is_carried_out(redis_url: str) -> None:
    async def story(scene: Scene) -> None:
        proposal = await scene.propose()
        small = scene.retraining.plan
        scene.retraining.plan = replace(small, estimated_tokens=1001)
        with pytest.raises(InvalidRequest, match="1,001 of 1,000"):
            await scene.approve(proposal)
        left = await scene.store.get("u1", proposal.id)
        assert (left.status, left.plan, scene.retraining.started) == ("open", scene.retraining.plan, [])
        scene.retraining.plan = replace(small, answers=5)
        assert (await scene.approve(proposal)).status == "started"
        assert scene.retraining.started == [scene.retraining.plan]

    with_scene(redis_url, story)


def test_what_failed_takes_nothing_of_the_budget(redis_url: str) -> None:
    async def story(scene: Scene) -> None:
        for number in (1, 2, 3):
            proposal = await scene.propose(number)
            scene.retraining.fails = InvalidRequest("no answers", code="no_answers")
            with pytest.raises(InvalidRequest, match="no answers"):
                await scene.approve(proposal)
            assert (await scene.store.get("u1", proposal.id)).status == "failed"
            scene.retraining.fails = None
        stored = await scene.store.get("u1", proposal.id)
        await scene.store.update(
            "u1", stored.id, lambda now: replace(now, job_id="ftjob-x", decided_at=int(time.time()))
        )
        for number in (4, 5):
            assert (await scene.approve(await scene.propose(number))).status == "started"
        with pytest.raises(InvalidRequest, match="2 jobs were started"):
            await scene.approve(await scene.propose(6))

    with_scene(redis_url, story)


def test_a_proposal_whose_job_is_there_is_started_whatever_has_happened_since(redis_url: str) -> None:
    async def story(scene: Scene) -> None:
        proposal = await scene.propose()
        approved = await scene.store.update(
            "u1", proposal.id, lambda now: replace(now, status="approved", job_id="ftjob-1", file_id="file-1")
        )
        scene.retraining.jobs.add("ftjob-1")
        scene.retraining.fails = InvalidRequest("the alias has moved", code="alias_moved")
        done = await scene.proposals.carry_out(ALIAS, approved)
        assert (done.status, done.error.code, scene.retraining.started) == ("started", "", [])

    with_scene(redis_url, story)


def test_an_approved_proposal_ends_though_its_monitor_is_taken_off(redis_url: str) -> None:
    async def story(scene: Scene) -> None:
        proposal = await scene.propose()
        await scene.store.update("u1", proposal.id, lambda now: replace(now, status="approved", job_id="ftjob-1"))
        off = UpdateAlias(monitor=None)
        changed = await scene.aliases.change("bot", lambda now: updated(now, off, CALLER), project="proj_a")
        assert changed.monitor is None and await scene.aliases.tended() == [("proj_a", "bot")]
        await scene.proposals.tend(changed, time.time())
        ended = await scene.store.get("u1", proposal.id)
        assert (ended.status, ended.error.code) == ("failed", "no_monitor")
        other = UpdateAlias(description="x", monitor=UNSET)
        await scene.aliases.change("bot", lambda now: updated(now, other, CALLER), project="proj_a")
        assert await scene.aliases.tended() == []

    with_scene(redis_url, story)


def test_times_of_what_is_over_are_forgotten(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.aliases.proposals._AGAIN_S", 0.0)

    async def story(scene: Scene) -> None:
        for number in range(50):
            await scene.proposals.tend(replace(ALIAS, uid=f"gone{number}"), time.time())
            await asyncio.sleep(0)
        assert len(scene.proposals._tried) <= 1

    with_scene(redis_url, story)


def test_storage_that_is_away_ends_nothing(redis_url: str) -> None:
    async def story(scene: Scene) -> None:
        proposal = await scene.propose()
        scene.retraining.fails = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await scene.approve(proposal)
        assert (await scene.store.get("u1", proposal.id)).status == "open"

    with_scene(redis_url, story)
