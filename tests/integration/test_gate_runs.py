"""What gates remember of models in the database, when they look again, and where an alias goes that does not pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from msgspec.structs import replace

from services.api.aliases import rechecks
from services.api.aliases.gated_moves import GatedMoves
from services.api.aliases.rechecks import Rechecks
from services.api.flows import canceled
from shared.alias_records import AliasRecord, SetBy
from shared.promotion_records import GateRun, PromotionRecord, asked_of
from shared.schemas.aliases import AliasRevision
from shared.schemas.evals import EvalFileId, MessageTemplate, TemplateMessage
from shared.schemas.gates import Gate, GateCriteria, GateSource
from shared.store.aliases import AliasStore
from shared.store.audit import AuditStore
from shared.store.client import Client
from shared.store.flows import FlowStore
from shared.store.gate_runs import GateRunStore
from shared.store.registry import Registry
from tests.api_server import BASE, make_adapter, make_base, with_store

BEFORE, NOW = f"ft:{BASE}:acme:before:AAAAAAAA", f"ft:{BASE}:acme:now:BBBBBBBB"
GATE = Gate(
    eval_id="eval_1",
    data_source=GateSource(
        source=EvalFileId(id="file-1"),
        input_messages=MessageTemplate(template=[TemplateMessage(role="user", content="{{ item.question }}")]),
    ),
    criteria=GateCriteria(min_pass_rate=0.5),
    recheck_hours=1.0,
)
ALIAS = AliasRecord(
    uid="alias_1", name="bot", project="p", target=NOW, gate=GATE, gate_set=SetBy(key_id="k", is_admin=True, at=0),
    created_at=0, updated_at=0,
)  # fmt: skip


def seen(run_id: str, at: int, *, has_passed: bool, **fields: Any) -> GateRun:
    return GateRun(model=NOW, run_id=run_id, asked=asked_of(GATE), at=at, has_passed=has_passed, **fields)


def promotion(number: int, **fields: Any) -> PromotionRecord:
    return PromotionRecord(
        id=f"promotion_{number}", project="p", created_at=number, alias="bot", alias_uid=ALIAS.uid, model=NOW,
        current=NOW, gate=GATE, **fields,
    )  # fmt: skip


class Gated:
    """An alias of NOW that pointed to BEFORE, and what looks after it."""

    def __init__(self, client: Client) -> None:
        self.aliases, self.runs = AliasStore(client), GateRunStore(client)
        self.registry, self.audit = Registry(client), AuditStore(client)
        self.flows = FlowStore(client, "promotion", PromotionRecord)
        self.eval_runs = _EvalRuns()
        self.rechecks = Rechecks(self.flows, self.runs, cast(Any, self.eval_runs))
        unused: Any = None
        self.moves = GatedMoves(self.aliases, unused, unused, self.registry, self.runs, self.audit)

    async def furnish(self) -> None:
        entry = AliasRevision(id="1", revision=1, created_at=0, action="created", model=BEFORE)
        await self.aliases.create(ALIAS, entry)
        await self.registry.put_base(make_base())
        for place, name in enumerate((BEFORE, NOW)):
            await self.registry.publish(make_adapter(name, project="p", sha256=f"{place}" * 64))

    async def known(self) -> GateRun:
        found = await self.runs.find(ALIAS.uid, NOW)
        assert found is not None
        return found

    async def told(self) -> int:
        page, _ = await self.audit.page(lambda entry: entry.type == "alias.gate_lost", limit=9)
        return len(page)


class _EvalRuns:
    """Notes which runs are deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, run_id: str, **_: str) -> None:
        self.deleted.append(run_id)


def gated(redis_url: str, work: Callable[[Gated], Awaitable[None]]) -> None:
    async def furnished(client: Client) -> None:
        scene = Gated(client)
        await scene.furnish()
        await work(scene)

    with_store(redis_url, furnished)


def test_the_run_with_which_a_model_passed_outlasts_later_verdicts(redis_url: str) -> None:
    async def work(scene: Gated) -> None:
        await scene.runs.note(ALIAS, seen("first", 10, has_passed=True))
        for run_id, at, has_passed in (("good", 20, True), ("bad", 30, False), ("worse", 40, False), ("up", 50, True)):
            await scene.runs.note(ALIAS, seen(run_id, at, has_passed=has_passed))
            found = await scene.known()
            assert (found.run_id, found.has_passed, found.passed_run_id) == (run_id, has_passed, "first")
        await scene.runs.note(ALIAS, seen("promoted", 60, has_passed=True, passed_run_id="promoted"))
        assert (await scene.known()).passed_run_id == "promoted"
        await scene.runs.note(ALIAS, replace(seen("other", 70, has_passed=False), asked="other rows"))
        assert (await scene.known()).passed_run_id == "", "other rows are not compared"

    gated(redis_url, work)


def test_a_verdict_gives_way_to_newer_runs_only(redis_url: str) -> None:
    async def work(scene: Gated) -> None:
        failed = seen("run", 20, has_passed=False)
        await scene.runs.note(ALIAS, failed)
        await scene.runs.note(ALIAS, seen("run", 20, has_passed=True), rejudges=False)
        await scene.runs.note(ALIAS, seen("older", 10, has_passed=True))
        assert await scene.known() == failed
        await scene.runs.note(ALIAS, seen("run", 20, has_passed=True))
        assert (await scene.known()).has_passed, "its own promotion judges it anew"

    gated(redis_url, work)


def test_no_recheck_begins_while_one_is_under_way(redis_url: str) -> None:
    async def work(scene: Gated) -> None:
        for now in (3600.0, 3601.0, 7200.0, 36_000.0):
            await scene.rechecks.begin_if_due(ALIAS, now)
        (first,) = await scene.flows.active()
        await scene.flows.update(first, canceled)
        await scene.rechecks.begin_if_due(ALIAS, 40_000.0)
        assert await scene.flows.active() == [first], "what it has begun is not yet stopped"
        await scene.flows.close(first)
        await scene.rechecks.begin_if_due(ALIAS, 40_000.0)
        (second,) = await scene.flows.active()
        assert second != first

    gated(redis_url, work)


def test_ended_promotions_are_kept_up_to_a_number(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechecks, "KEPT", 1)
    monkeypatch.setattr(rechecks, "KEPT_PROMOTIONS", 2)

    async def work(scene: Gated) -> None:
        await scene.runs.note(ALIAS, seen("run_1", 1, has_passed=True))
        await scene.runs.note(ALIAS, seen("run_5", 5, has_passed=False))
        for number in range(1, 6):
            await scene.flows.create(promotion(number, kind="recheck", eval_run_id=f"run_{number}"))
            await scene.flows.create(promotion(10 + number, eval_run_id=f"run_{number}"))
        for number in (1, 2, 3, 5, 11, 12, 13, 14):
            await scene.flows.update(f"promotion_{number}", canceled)
        await scene.rechecks.forget_old(promotion(5))
        left = {one.id async for one in scene.rechecks.of_alias(ALIAS.uid, "p")}
        assert left == {f"promotion_{number}" for number in (1, 4, 5, 13, 14, 15)}
        assert scene.eval_runs.deleted == ["run_3", "run_2"], "neither what is compared with, nor runs of promotions"

    gated(redis_url, work)


def test_an_alias_goes_back_to_what_passed_the_gate_of_now_and_that_is_told_once(redis_url: str) -> None:
    lost = promotion(1, kind="recheck", message="0 of 20 rows passed")

    async def work(scene: Gated) -> None:
        passed = replace(seen("old", 5, has_passed=True), model=BEFORE)
        await scene.runs.note(ALIAS, replace(passed, asked="other rows"))
        assert (await scene.moves.roll_back(lost))[0] == "stays"
        await scene.runs.note(ALIAS, passed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scene.audit, "add", _die)
            with pytest.raises(ConnectionError):
                await scene.moves.roll_back(lost)
        assert await scene.told() == 0
        for _ in range(2):
            outcome, message = await scene.moves.roll_back(lost)
            assert (outcome, message) == ("rolled_back", f"0 of 20 rows passed; the alias points to '{BEFORE}' again")
        assert await scene.told() == 1

    gated(redis_url, work)


async def _die(*_: object) -> None:
    raise ConnectionError
