"""Gates of aliases: who gets through, who is refused, what goes back, and how nobody gets past."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from shared.flow_states import FlowState
from shared.promotion_records import PromotionRecord
from shared.records import DEFAULT_PROJECT
from shared.store import entries
from shared.store.client import Client
from shared.store.flows import FlowStore
from shared.store.registry import Registry
from tests.api_server import ApiServer, wait_until, with_store
from tests.eval_scene import adds, content, make_eval
from tests.gate_scene import BAD, GOOD, OTHER, ROWS, GateScene, gate_scene, usual_client


@pytest.fixture
def gated(api: ApiServer, redis_url: str) -> Iterator[GateScene]:
    with gate_scene(api, redis_url) as scene:
        yield scene


def test_a_model_that_passes_is_promoted_and_a_worse_one_is_refused(gated: GateScene) -> None:
    gate = gated.gate(criteria={"min_pass_rate": 0.9, "against_current": "not_worse"})
    assert gated.change(gate=gate)["gate"]["criteria"] == gate["criteria"]
    refused = gated.promote(BAD)
    assert (refused["status"], refused["outcome"], refused["model"]) == ("completed", "refused", BAD)
    assert refused["figures"] == {
        "rows": 20, "passed": 0, "pass_rate": 0.0, "passed_by_current": 20, "current_pass_rate": 1.0,
        "only_candidate": 0, "only_current": 20, "p_value": pytest.approx(2 / 2**20), "verdict": "worse",
    }  # fmt: skip
    assert "0.0%, where min_pass_rate is 90.0%" in refused["message"] and "worse" in refused["message"]
    assert gated.shown()["model"] == GOOD
    passed = gated.promote(OTHER, reason="trained on March")
    assert passed["outcome"] == "promoted" and gated.shown()["model"] == OTHER
    assert passed["current_eval_run_id"] == refused["current_eval_run_id"], "a fresh run is not made again"
    assert len(gated.runs()) == 3 and all(run.status == "completed" for run in gated.runs())
    entry = gated.shown(path="/history")["data"][0]
    assert (entry["action"], entry["automatic"], entry["model"]) == ("promoted", False, OTHER)
    assert entry["promotion_id"] == passed["id"] and entry["key_id"]
    assert entry["eval_run_ids"] == [passed["eval_run_id"], passed["current_eval_run_id"]]
    assert entry["reason"].startswith("trained on March; 20 of 20 rows passed, 100.0%")
    listed = gated.shown(path="/promotions", limit=1)
    assert [one["id"] for one in listed["data"]] == [passed["id"]] and listed["has_more"]
    older = gated.shown(path="/promotions", after=passed["id"])["data"]
    assert [one["id"] for one in older] == [refused["id"]]


def test_better_is_asked_for_and_equal_is_not_enough(gated: GateScene) -> None:
    gated.change(gate=gated.gate(criteria={"against_current": "better"}))
    equal = gated.promote(OTHER)
    assert (equal["outcome"], equal["figures"]["verdict"]) == ("refused", "no_difference_shown")
    gated.change(model=BAD, override_gate="to see it climb")
    assert gated.promote(OTHER)["outcome"] == "promoted"


def test_nobody_gets_past_a_gate(gated: GateScene) -> None:
    gated.change(gate=gated.gate(), canary={"model": BAD, "percent": 5})
    moves: list[tuple[str, dict[str, Any], str | None]] = [
        ("", {"model": BAD}, "model"),
        ("", {"gate": None}, "gate"),
        ("", {"gate": gated.gate(criteria={"min_pass_rate": 0.0})}, "gate"),
        ("/promote", {}, None),
    ]
    for path, fields, param in moves:
        refusal = gated.refused(f"/v1/aliases/bot{path}", **fields)
        assert refusal[:3] == (400, "gate_not_passed", param) and "/promotions" in refusal[3], path
    with usual_client(gated) as usual:
        for path, fields, _ in moves:
            answer = usual.post(f"/v1/aliases/bot{path}", json={**fields, "override_gate": "hurry"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (403, "override_gate")
        answer = usual.post("/v1/aliases/bot", json={"description": "told as passed over", "override_gate": "hurry"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "override_gate")
    assert gated.change(gate=gated.gate(), description="the same gate")["model"] == GOOD
    gated.change(description="nothing is passed over", override_gate="not needed")
    assert not gated.shown(path="/history")["data"][0]["gate_overridden"]
    gated.change(path="/promote", override_gate="hurry", reason="Friday")
    entry = gated.shown(path="/history")["data"][0]
    assert (entry["model"], entry["gate_overridden"], entry["reason"]) == (BAD, True, "Friday; hurry")
    entered = gated.http.get("/v1/organization/audit_logs").json()["data"]
    told = [one for one in entered if one["type"] == "alias.gate_overridden"]
    assert [(one["selftune"]["reason"], one["selftune"]["resource_ids"]) for one in told] == [("hurry", ["bot"])]


def test_a_canary_of_many_users_has_to_pass(gated: GateScene) -> None:
    gated.change(gate=gated.gate())
    gated.change(canary={"model": OTHER, "percent": 10})
    refusal = gated.refused("/v1/aliases/bot", canary={"model": OTHER, "percent": 10.5})
    assert refusal[:3] == (400, "gate_not_passed", "canary.percent")
    gated.change(canary={"model": BAD, "percent": 50}, override_gate="to see it fail")
    assert gated.shown(path="/history")["data"][0]["gate_overridden"]
    gated.change(canary={"model": BAD, "percent": 40})
    assert gated.refused("/v1/aliases/bot", canary={"model": BAD, "percent": 41})[1] == "gate_not_passed"
    assert gated.promote(OTHER)["outcome"] == "promoted"
    gated.change(path="/rollback")
    gated.change(canary={"model": OTHER, "percent": 99})
    gated.change(gate=gated.gate(eval_id=make_eval(gated.sdk).id), canary=None, override_gate="another eval")
    assert gated.refused("/v1/aliases/bot", canary={"model": OTHER, "percent": 99})[1] == "gate_not_passed"


def test_a_failed_recheck_is_not_forgotten_by_the_next(gated: GateScene) -> None:
    gated.change(gate=gated.gate(criteria={"min_pass_rate": 0.1}, recheck_hours=0.5))
    passed = gated.promote(OTHER)
    assert passed["outcome"] == "promoted"
    gated.models.says[OTHER] = lambda prompt: adds(prompt) if int(adds(prompt)) % 4 else "no idea"
    for looks in (1, 2):
        gated.age()
        wait_until(lambda looks=looks: len(_rechecks(gated)) == looks)  # type: ignore[misc]
        found = gated.ended(_rechecks(gated)[0]["id"])
        assert (found["outcome"], found["current_eval_run_id"]) == ("stays", passed["eval_run_id"]), found


def _rechecks(gated: GateScene) -> list[dict[str, Any]]:
    return [one for one in gated.shown(path="/promotions")["data"] if one["kind"] == "recheck"]


def test_no_rollback_to_a_model_that_did_not_pass(gated: GateScene) -> None:
    gated.change(gate=gated.gate())
    assert gated.promote(BAD)["outcome"] == "refused"
    gated.change(model=BAD, override_gate="a mistake")
    gated.change(path="/rollback")
    assert gated.shown()["model"] == GOOD, "back to where it was is free"
    refusal = gated.refused("/v1/aliases/bot/rollback", expected_revision=gated.shown()["revision"])
    assert refusal[:2] == (400, "gate_not_passed") and BAD in refusal[3]


def test_a_model_that_stops_passing_makes_room_for_the_last_that_passed(gated: GateScene) -> None:
    gated.change(gate=gated.gate(recheck_hours=0.5))
    for model in (OTHER, GOOD, OTHER):
        assert gated.promote(model)["outcome"] == "promoted"
    gated.models.says[OTHER] = gated.models.says[BAD]
    hook = {"name": "h", "url": "https://example.org/h", "event_types": ["selftune.alias.rolled_back"]}
    assert gated.http.post("/v1/webhook_endpoints", json=hook).status_code in (200, 400), "known to webhooks"
    gated.age()
    wait_until(lambda: gated.shown()["model"] == GOOD, timeout_s=20)
    entry = gated.shown(path="/history")["data"][0]
    assert (entry["action"], entry["automatic"]) == ("rolled_back", True)
    assert f"'{OTHER}' does not pass its gate: 0 of 20 rows passed" in entry["reason"]
    recheck = gated.shown(path=f"/promotions/{entry['promotion_id']}")
    assert (recheck["kind"], recheck["model"]) == ("recheck", OTHER)
    assert wait_until(lambda: gated.ended(recheck["id"])["outcome"]) == "rolled_back"
    refusal = gated.refused("/v1/aliases/bot/rollback", expected_revision=gated.shown()["revision"])
    assert refusal[:2] == (400, "gate_not_passed")


def test_what_is_no_gate_is_refused(gated: GateScene) -> None:
    file = gated.http.post("/v1/files", files={"file": ("a", b"{}\n")}, data={"purpose": "fine-tune"}).json()["id"]
    source = gated.gate()["data_source"]
    wrong: list[tuple[dict[str, Any], str, int]] = [
        ({"eval_id": "eval_none"}, "gate.eval_id", 404),
        ({"criteria": {}}, "gate.criteria", 400),
        ({"criteria": {"min_pass_rate": 2}}, "gate.criteria.min_pass_rate", 400),
        ({"recheck_hours": 1 / 3600}, "gate.recheck_hours", 400),
        ({"fresh_hours": 0}, "gate.fresh_hours", 400),
        ({"data_source": {**source, "model": GOOD}}, "gate.data_source.model", 400),
        ({"data_source": {**source, "source": {"type": "stored_completions"}}}, "gate.data_source.source", 400),
        ({"data_source": {**source, "source": {"type": "file_id", "id": file}}}, "gate.data_source.source.id", 400),
        ({"data_source": {**source, "source": content(ROWS * 20)}}, "gate", 400),
    ]
    for changes, param, status in wrong:
        refusal = gated.refused("/v1/aliases/bot", gate=gated.gate(**changes))
        assert (refusal[0], str(refusal[2]).startswith(param)) == (status, True), (refusal, param)
    template = {"type": "template", "template": [{"role": "user", "content": "{{ sample.output_text }}"}]}
    refusal = gated.refused("/v1/aliases/bot", gate=gated.gate(data_source={**source, "input_messages": template}))
    assert refusal[2] == "gate.data_source.input_messages.template[0].content"
    assert gated.refused("/v1/aliases/bot/promotions", model=OTHER)[1] == "no_gate"
    gated.change(gate=gated.gate())
    assert gated.refused("/v1/aliases/bot/promotions", model=GOOD)[2] == "model"
    assert gated.refused("/v1/aliases/bot/promotions", model="ft:none")[:3] == (404, "model_not_found", "model")
    assert gated.refused("/v1/aliases/bot/promotions", model=OTHER, expected_revision=9)[1] == "alias_moved"
    assert gated.refused("/v1/aliases/bot/promotions/%2E%2E", "GET")[0] == 404
    assert gated.refused("/v1/aliases/none/promotions", "GET")[1] == "alias_not_found"


def test_what_changes_meanwhile_ends_a_promotion(gated: GateScene) -> None:
    gated.change(gate=gated.gate())
    gated.models.delay_s = 0.3
    moved = gated.http.post("/v1/aliases/bot/promotions", json={"model": OTHER}).json()["id"]
    gated.change(model=BAD, override_gate="meanwhile")
    found = gated.ended(moved)
    assert (found["status"], found["error"]["code"]) == ("failed", "alias_moved") and gated.shown()["model"] == BAD
    gated.models.delay_s = 3.0
    stopped = gated.http.post("/v1/aliases/bot/promotions", json={"model": GOOD}).json()["id"]
    for _ in range(2):
        assert gated.change(path=f"/promotions/{stopped}/cancel")["status"] == "canceled"
    assert gated.refused(f"/v1/aliases/bot/promotions/{moved}/cancel")[:2] == (400, "invalid_state")
    wait_until(lambda: all(run.status in ("completed", "canceled") for run in gated.runs()))
    lost = gated.http.post("/v1/aliases/bot/promotions", json={"model": OTHER}).json()["id"]
    assert gated.http.delete("/v1/aliases/bot").status_code == 200
    assert gated.refused(f"/v1/aliases/bot/promotions/{lost}", "GET")[0] == 404
    assert not with_store(gated.redis_url, _left), "with the alias goes what was seen behind its gate"


def test_a_promotion_that_cannot_begin_stops_what_it_has_begun(gated: GateScene) -> None:
    gated.change(gate=gated.gate(criteria={"against_current": "better"}))
    gated.models.delay_s = 3.0
    with_store(gated.redis_url, lambda client: Registry(client).retire(GOOD))
    found = gated.promote(OTHER)
    assert (found["status"], found["error"]["code"]) == ("failed", "model_not_found")
    assert wait_until(lambda: [run.status for run in gated.runs()] == ["canceled"])


def test_a_promotion_that_begins_when_its_alias_goes_goes_too(gated: GateScene) -> None:
    gated.change(gate=gated.gate())
    assert gated.promote(OTHER)["outcome"] == "promoted"
    left = with_store(gated.redis_url, _promotions)
    assert gated.http.delete("/v1/aliases/bot").status_code == 200
    assert not with_store(gated.redis_url, _promotions)
    late = replace(left[0], id="promotion_late", status=FlowState.QUEUED, outcome=None, figures=None)
    with_store(gated.redis_url, lambda client: _store(client).create(late))
    wait_until(lambda: not with_store(gated.redis_url, _promotions))


async def _promotions(client: Client) -> Sequence[PromotionRecord]:
    return (await _store(client).list(DEFAULT_PROJECT, after=None, limit=9))[0]


def _store(client: Client) -> FlowStore[PromotionRecord]:
    return FlowStore(client, "promotion", PromotionRecord)


async def _left(client: Client) -> list[str]:
    found = await entries.find(client)
    return [key for family in ("alias", "gate_runs") for key in found.get(family, [])]


def test_a_promotion_asked_for_twice_is_one(gated: GateScene) -> None:
    gated.change(gate=gated.gate())
    headers = {"Idempotency-Key": "k"}
    made = [
        gated.http.post("/v1/aliases/bot/promotions", json={"model": OTHER}, headers=headers).json()["id"]
        for _ in range(2)
    ]
    assert made[0] == made[1] and gated.ended(made[0])["outcome"] == "promoted"


def test_a_judge_or_rows_that_are_gone_fail_a_promotion(gated: GateScene) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    files = {"file": ("rows.jsonl", rows)}
    file = gated.http.post("/v1/files", files=files, data={"purpose": "evals"}).json()["id"]
    source = {**gated.gate()["data_source"], "source": {"type": "file_id", "id": file}}
    gated.change(gate=gated.gate(data_source=source))
    assert gated.promote(OTHER)["outcome"] == "promoted"
    gated.http.delete(f"/v1/files/{file}")
    found = gated.promote(GOOD)
    assert (found["status"], file in found["error"]["message"]) == ("failed", True)
    assert gated.shown()["model"] == OTHER
