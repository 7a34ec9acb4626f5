"""Monitors of aliases: live answers sampled and graded, planted drift found, retraining proposed and begun."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
import redis
from msgspec.structs import replace

from services.api.aliases.watching import first_until
from shared import keys
from shared.alias_records import AliasRecord
from shared.drift.traits import traits_of
from shared.ids import new_file_id, new_job_id
from shared.monitor_records import Sample
from shared.store.aliases import AliasStore
from shared.store.client import Argument, Client
from shared.store.completions import CompletionStore, StoredCompletion
from shared.store.proposals import ProposalStore
from shared.store.registry import Registry
from shared.store.webhooks import WebhookStore
from shared.webhook_records import WebhookRecord
from tests.api_server import BASE, ApiServer, make_adapter, wait_until, with_store
from tests.batch_requests import upload
from tests.eval_scene import spoken
from tests.gate_scene import GOOD, GateScene, gate_scene
from tests.unit.api.test_alias_quality import CODE, ORDERS

POLITE = {
    "type": "string_check", "name": "polite", "operation": "ilike",
    "input": "{{ sample.output_text }}", "reference": "please",
}  # fmt: skip
ASKED = {**POLITE, "name": "asked", "operation": "ne", "input": "{{ item.messages[-1].content }}", "reference": ""}
TASTE = {"type": "selftune_reward", "name": "taste", "model": GOOD}
ALL = {"sample_rate": 1.0, "max_samples_per_hour": 3600, "graders": [POLITE]}
PROJECT = "proj_default"
TUNED = f"ft:{BASE}:acme:orders:eeeeeeee"
END = {"index": 0, "delta": {"content": "Please"}, "finish_reason": "stop"}
CHUNK = {"id": "chatcmpl-s", "object": "chat.completion.chunk", "created": 1, "model": GOOD, "choices": [END]}
STREAM = [f"data: {json.dumps(CHUNK)}\n\n".encode(), b"data: [DONE]\n\n"]


@pytest.fixture
def watched(api: ApiServer, redis_url: str) -> Iterator[GateScene]:
    with gate_scene(api, redis_url) as scene:
        scene.models.says[GOOD] = lambda prompt: f"Please see {prompt}"
        yield scene


def quality(scene: GateScene) -> dict[str, Any]:
    return scene.shown(path="/quality")


def kept(scene: GateScene) -> list[Any]:
    return list(scene.sdk.chat.completions.list(metadata={"selftune_alias": "bot"}))


def test_live_answers_are_kept_as_stored_completions_and_graded(watched: GateScene) -> None:
    watched.change(monitor={**ALL, "graders": [POLITE, ASKED]})
    watched.ask()
    watched.models.events = STREAM
    assert list(
        watched.sdk.chat.completions.create(model="bot", messages=[{"role": "user", "content": "s"}], stream=True)
    )
    own = watched.ask(store=True, metadata={"mine": "yes"}).json()["id"]
    watched.ask(priority=5)
    watched.ask(GOOD)
    found = wait_until(lambda: (q := quality(watched))["baseline"]["first_samples"] == 3 and q)
    mean, asked = found["baseline"]["scores"]
    assert (asked["samples"], asked["mean"]) == (3, 1.0), "what was asked is where rows have it, too"
    assert (mean["grader"], mean["samples"], mean["mean"]) == ("polite", 3, 1.0) and found["due_samples"] == 0
    assert len(kept(watched)) == 2, "what was stored by its client stays as that stored it"
    assert watched.sdk.chat.completions.retrieve(own).metadata == {"mine": "yes"}
    watched.change(monitor={**ALL, "max_samples_per_hour": 4})
    for _ in range(3):
        watched.ask()
    wait_until(lambda: quality(watched)["baseline"]["first_samples"] == 4)
    assert len(kept(watched)) == 3, "the hour has its four"
    watched.change(monitor={**ALL, "graders": [{**POLITE, "reference": "see"}]})
    assert quality(watched)["baseline"]["first_samples"] == 0, "scores of two graders are not compared"
    watched.change(monitor=None)
    assert watched.refused("/v1/aliases/bot/quality", "GET")[1] == "no_monitor"
    watched.change(monitor=ALL)
    assert quality(watched)["baseline"]["first_samples"] == 0, "with the monitor goes what it had seen"


def test_what_is_no_monitor_is_refused(watched: GateScene) -> None:
    judge = {
        "type": "score_model", "name": "judge", "model": "ft:none", "input": [{"role": "user", "content": "hm"}],
    }  # fmt: skip
    in_parts = {"type": "multi", "graders": {"taste": TASTE}, "calculate_output": "taste"}
    budget = {"budget": {"jobs": 1}, "retrain_without_approval": True}
    wrong: list[tuple[dict[str, Any], str, int]] = [
        ({"sample_rate": 0}, "monitor.sample_rate", 400),
        ({"graders": [POLITE, POLITE]}, "monitor.graders[1].name", 400),
        ({"graders": [{**POLITE, "input": "{{ nothing.here }}"}]}, "monitor.graders[0]", 400),
        ({"graders": [judge]}, "monitor.graders[0].model", 404),
        ({"graders": [{**TASTE, "model": "ft:none"}]}, "monitor.graders[0].model", 404),
        ({"graders": [TASTE]}, "monitor.graders[0].model", 400),
        ({"graders": [in_parts]}, "monitor.graders[0].graders.taste.model", 400),
        ({"actions": ["webhook", "webhook"]}, "monitor.actions", 400),
        ({"actions": ["retrain"]}, "monitor.budget", 400),
        ({"actions": ["retrain"], "budget": {"jobs": 1}}, "monitor.retrain_without_approval", 400),
        ({"actions": ["retrain"], **budget}, "monitor.recipe.min_score", 400),
        ({"window_s": 0}, "monitor.window_s", 400),
        ({"thresholds": {"min_samples": 3}}, "monitor.thresholds.min_samples", 400),
        ({"graders": [{**POLITE, "reference": "x" * 20_000}]}, "monitor", 400),
    ]
    for changes, param, status in wrong:
        refusal = watched.refused("/v1/aliases/bot", monitor={**ALL, **changes})
        assert (refusal[0], str(refusal[2]).startswith(param)) == (status, True), (refusal, param)
    for path in ("/proposals/proposal_none", "/proposals/%2E%2E"):
        assert watched.refused(f"/v1/aliases/bot{path}", "GET")[0] == 404
    assert watched.refused("/v1/aliases/bot/proposals/proposal_none/approve")[2] == "proposal_id"


class Stretch(NamedTuple):
    """So many answers at a time, in seconds from the end of the baseline."""

    answers: int
    at: float
    words: list[str]
    score: float = 1.0


class Traffic:
    """Graded answers with their texts, where the monitor keeps them, as if they had come at those times."""

    def __init__(self, scene: GateScene) -> None:
        self.scene = scene
        self.drawing = random.Random(5)
        found = with_store(scene.redis_url, lambda client: AliasStore(client).get("bot", project=PROJECT))
        self.alias: AliasRecord = found
        self.start = first_until(found)

    def plant(self, *stretches: Stretch) -> None:
        """Put them there all at once: whoever looks sees all of them or none."""
        with_store(self.scene.redis_url, lambda client: self._plant(client, stretches))

    async def _plant(self, client: Client, stretches: Sequence[Stretch]) -> None:
        completions = CompletionStore(client, keep_days=1)
        commands: list[tuple[Argument, ...]] = []
        for stretch in stretches:
            for _ in range(stretch.answers):
                asked = " ".join(self.drawing.choices(stretch.words, k=self.drawing.randint(6, 14)))
                sample = await self._stored(completions, stretch, asked)
                is_first = stretch.at < 0
                key = (keys.alias_first_samples if is_first else keys.alias_samples)(self.alias.uid)
                commands.append(("RPUSH" if is_first else "LPUSH", key, msgspec.json.encode(sample)))
        await client.together(commands)

    async def _stored(self, completions: CompletionStore, stretch: Stretch, asked: str) -> Sample:
        model, body = self.alias.target, spoken(self.alias.target, "Please wait.")
        stored = StoredCompletion(id=json.loads(body)["id"], project=PROJECT, model=model, metadata={}, body=body)
        await completions.keep(stored, messages=json.dumps([{"role": "user", "content": asked}]).encode())
        return Sample(
            id=stored.id,
            at=self.start + stretch.at,
            model=model,
            since=self.alias.target_since,
            traits=traits_of(asked),
            scores={"polite": stretch.score},
        )


def tuned_alias(scene: GateScene, **monitor: Any) -> tuple[str, str]:
    """Point the alias to the model of a job with 80 rows, watched in windows of a second; return job and file."""
    drawing = random.Random(7)
    said = {"role": "assistant", "content": "Please wait."}
    rows = [
        {"messages": [{"role": "user", "content": " ".join(drawing.choices(ORDERS, k=drawing.randint(6, 14)))}, said]}
        for _ in range(80)
    ]
    file = upload(scene.sdk, rows, purpose="fine-tune")
    job = scene.sdk.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="orders", seed=1)
    adapter = make_adapter(TUNED, sha256="e" * 64, job_id=job.id)
    with_store(scene.redis_url, lambda client: Registry(client).publish(adapter))
    scene.change(model=TUNED, wait_warm=False)
    with_store(scene.redis_url, _listen)
    scene.change(monitor={**ALL, "baseline": {"first_s": 1}, "window_s": 1, "recipe": {"min_score": 1.0}, **monitor})
    with_store(scene.redis_url, _an_hour_ago)
    return job.id, file


def windows(scene: GateScene, count: int) -> list[dict[str, Any]]:
    """Return the alias's windows, newest first, as soon as there are so many."""
    return wait_until(lambda: len(found := quality(scene)["windows"]) == count and found, timeout_s=20) or []


def test_planted_drift_raises_an_alarm_and_a_proposal_that_becomes_a_job(watched: GateScene) -> None:
    job, file = tuned_alias(watched, actions=["webhook", "propose_retraining"], budget={"jobs": 1})
    traffic = Traffic(watched)
    traffic.plant(
        Stretch(60, -0.5, ORDERS), Stretch(60, 0.5, ORDERS), Stretch(60, 1.5, CODE), Stretch(60, 1.5, ORDERS, 0.0)
    )
    drifted, calm = windows(watched, 2)
    assert quality(watched)["baseline"]["training_samples"] == 80
    assert (calm["status"], calm["alarms"], calm["samples"], drifted["samples"]) == ("compared", [], 60, 120)
    alarmed = {(one["measure"], one["against"]) for one in drifted["inputs"] if one["alarm"]}
    assert {("input_words", "training"), ("input_words", "first_samples")} <= alarmed
    (score,) = drifted["scores"]
    assert score["alarm"] and score["difference"] == pytest.approx(-0.5) and score["difference_interval"][1] < 0
    assert any("the mean score of 'polite' fell from 1.000 to 0.500" in alarm for alarm in drifted["alarms"])
    with redis.Redis.from_url(watched.redis_url) as client:
        told = wait_until(lambda: client.keys("selftune:webhook_delivery:*"))
        event = json.loads(json.loads(client.get(told[0]))["body"])
    assert (len(told), event["type"], event["data"]) == (1, "selftune.alias.drifted", {"id": "bot"})

    (proposal,) = watched.shown(path="/proposals")["data"]
    assert (proposal["status"], proposal["window_id"], proposal["automatic"]) == ("open", drifted["id"], False)
    plan = proposal["plan"]
    assert (plan["model"], plan["former_job_id"], plan["training_file"]) == (BASE, job, file)
    assert plan["answers"] == 180 and plan["estimated_tokens"] > 3000
    path = f"/proposals/{proposal['id']}"
    begun = [watched.change(path=f"{path}/approve", reason="go") for _ in range(2)]
    assert begun[0] == begun[1] and begun[0]["status"] == "started" and begun[0]["reason"] == "go"
    made = watched.sdk.fine_tuning.jobs.retrieve(begun[0]["job_id"])
    assert (made.model, made.training_file) == (BASE, begun[0]["training_file"])
    assert (made.metadata or {})["selftune_proposal"] == proposal["id"]
    lines = watched.sdk.files.content(made.training_file).text.splitlines()
    assert len(lines) == 80 + 180 and json.loads(lines[-1])["messages"][-1]["content"] == "Please wait."
    assert watched.refused(f"/v1/aliases/bot{path}/dismiss")[:2] == (400, "invalid_proposal_state")

    traffic.plant(Stretch(60, 2.5, CODE))
    windows(watched, 3)
    newer = watched.shown(path="/proposals")["data"][0]
    assert newer["id"] != proposal["id"]
    refusal = watched.refused(f"/v1/aliases/bot/proposals/{newer['id']}/approve")
    assert refusal[1] == "retraining_budget_exceeded" and "1 jobs" in refusal[3]
    for _ in range(2):
        assert watched.change(path=f"/proposals/{newer['id']}/dismiss")["status"] == "dismissed"


def test_what_was_approved_before_a_kill_is_carried_out_once(watched: GateScene) -> None:
    """The monitor approves by itself, in the budget; a process that died right after is stood in for."""
    tuned_alias(watched, actions=["propose_retraining"])
    traffic = Traffic(watched)
    traffic.plant(Stretch(60, -0.5, ORDERS), Stretch(60, 0.5, CODE))
    windows(watched, 1)
    (proposal,) = watched.shown(path="/proposals")["data"]
    file_id, job_id = new_file_id(), new_job_id()

    async def approve_and_die(client: Client) -> None:
        await ProposalStore(client).update(
            traffic.alias.uid,
            proposal["id"],
            lambda now: replace(now, status="approved", file_id=file_id, job_id=job_id, key_id="k", is_admin=True),
        )

    with_store(watched.redis_url, approve_and_die)
    path = f"/proposals/{proposal['id']}"
    wait_until(lambda: watched.shown(path=path)["status"] == "started")
    assert watched.sdk.fine_tuning.jobs.retrieve(job_id).training_file == file_id
    budget = {"tokens": 10**6}
    monitor = {**watched.shown()["monitor"], "actions": ["retrain"], "budget": budget, "retrain_without_approval": True}
    watched.change(monitor=monitor)
    traffic.plant(Stretch(60, 1.5, CODE))
    windows(watched, 2)
    automatic = watched.shown(path="/proposals")["data"][0]
    found = wait_until(lambda: (p := watched.shown(path=f"/proposals/{automatic['id']}"))["status"] == "started" and p)
    assert found["automatic"] and found["job_id"] not in ("", job_id)
    assert watched.http.delete("/v1/aliases/bot").status_code == 200
    with redis.Redis.from_url(watched.redis_url) as client:
        left = [key.decode() for key in client.keys("*") if traffic.alias.uid in key.decode()]
        assert not left and not client.smembers(keys.TENDED_ALIASES)


async def _an_hour_ago(client: Client) -> None:
    """Have the alias be watched for an hour already, so that windows are over as soon as there is traffic in them."""
    found = await AliasStore(client).get("bot", project=PROJECT)
    assert found.monitor_set is not None
    earlier = replace(found.monitor_set, at=found.monitor_set.at - 3600)
    record = replace(found, moved_at=found.moved_at - 3600, monitor_set=earlier)
    await client.call("SET", keys.alias(PROJECT, "bot"), msgspec.json.encode(record))


async def _listen(client: Client) -> None:
    """Keep an endpoint that nobody listens at: what is on its way to it stays in the queue."""
    record = WebhookRecord(
        id="we_1", project=PROJECT, name="h", url="http://127.0.0.1:9/h", event_types=["selftune.alias.drifted"],
        secret="whsec_AAAA", created_at=1, updated_at=1,
    )  # fmt: skip
    await WebhookStore(client).create(record)
