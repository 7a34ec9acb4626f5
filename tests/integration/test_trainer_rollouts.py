"""Rollouts with real Valkey and servers that only look like vLLM's: none is there, they break down, a job ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.jobs import leftovers
from services.trainer.jobs.deleted_adapters import drop_at_once
from services.trainer.rollouts import gathering, waiting
from services.trainer.rollouts.replicas import AnswerUnusable, QuestionRefused, Replicas
from shared.errors import NoReplica
from shared.grading import asking
from shared.internal_headers import PROJECT_HEADER
from shared.model_records import Access
from shared.records import AdapterRecord, BaseRecord, Residency
from shared.rollout_records import read_rollouts
from shared.settings import JudgeEndpoint, Settings
from shared.states import JobState
from tests.api_server import make_replica
from tests.fakes.upstream import Upstream
from tests.integration.inference_stack import BASE_ID
from tests.integration.rollout_scene import GROUP, Attempt, with_attempt
from tests.integration.test_api_graders import EQ

KEY = "internal-test-key"
CHOICES = [
    {"index": place, "message": {"content": "paris"}, "finish_reason": "stop", "token_ids": [7, place],
     "logprobs": {"content": [{"logprob": -0.25}, {"logprob": -1.5}]}}
    for place in range(GROUP)
]  # fmt: skip
ANSWER = json.dumps({"choices": CHOICES, "prompt_token_ids": [1, 2]}).encode()
CROWDED = b'{"error": {"message": "too much to do", "code": 503}}'


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return Settings(data_dir=str(tmp_path), redis_url=redis_url, base_model="unused", internal_key=KEY)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Something that has an adapter's files."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text(name)
    return folder


async def beat(one: Attempt, *servers: Upstream, **changes: Any) -> None:
    await one.stores.registry.put_base(
        BaseRecord(id=BASE_ID, path="unused", fingerprint="tiny", context_length=512, created_at=1)
    )
    for place, server in enumerate(servers):
        replica = make_replica(server.url, id=f"replica-{place}", base=BASE_ID, **changes)
        await one.stores.presence.beat_replica(replica, ttl_s=60)


def test_a_job_without_a_server_waits_says_so_once_and_goes_on(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PAUSE_S", 0.01)

    async def story(one: Attempt) -> None:
        wanted = one.wanted(adapter)
        working = asyncio.create_task(one.gathering.gather(wanted))
        while not (policies := await one.stores.registry.on_base(BASE_ID)):
            await asyncio.sleep(0.01)
        while not await one.story():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # ten pauses
        [told] = await one.story()
        assert "waits for an inference server" in told and "no inference server is running" in told
        [policy] = policies
        server.error, server.status = CROWDED, 503  # and then it is there, and has too much to do
        await beat(one, server)
        await one.stores.registry.acknowledge("replica-0", {policy.name: Residency(state="warm")})
        while len(server.received) < 4:
            await asyncio.sleep(0.01)
        server.error, server.status = b"", 200
        header, groups = read_rollouts(Path((await working).path))
        assert header.lines == [group.line for group in groups] == [1, 2]
        assert header.stats.reward_mean == 0.5 and [group.prompt_tokens for group in groups] == [[1, 2]] * 2
        assert groups[0].samples[2].tokens == [7, 2] and groups[0].samples[2].reward == 1.0
        assert len(await one.story()) == 1

    with Upstream(answer=ANSWER) as server:
        with_attempt(settings, {**EQ, "name": "eq"}, story)


def test_a_model_that_no_server_takes_fails_the_job(settings: Settings, adapter: Path) -> None:
    async def story(one: Attempt) -> None:
        await beat(one, server)
        working = asyncio.create_task(one.gathering.gather(one.wanted(adapter)))
        while not (policies := await one.stores.registry.on_base(BASE_ID)):
            await asyncio.sleep(0.01)
        refusal = Residency(state="quarantined", reason="it has no weights")
        await one.stores.registry.acknowledge("replica-0", {policies[0].name: refusal})
        with pytest.raises(TrainingFailed, match=r"cannot be served: .*it has no weights") as caught:
            await working
        assert caught.value.code == "not_servable"

    with Upstream() as server:
        with_attempt(settings, EQ, story)


def test_a_question_goes_to_another_server_where_one_breaks_down(settings: Settings) -> None:
    async def story(one: Attempt) -> None:
        replicas = Replicas(one.stores, "proj_x")
        body = b'{"model": "m"}'
        with pytest.raises(NoReplica, match="no inference server"):
            await replicas.ask(body, base=BASE_ID, model=BASE_ID)
        await beat(one, first, second)
        first.behaviour = "cut"
        for _ in range(3):
            assert await replicas.ask(body, base=BASE_ID, model=BASE_ID) == ANSWER
        assert len(second.received) == 3
        asked = second.received[0].headers
        assert (asked["x-vllm-priority"], asked[PROJECT_HEADER]) == ("1000", "proj_x")
        assert asked["authorization"] == f"Bearer {KEY}"
        first.status, first.error = 422, b'{"error": {"message": "damaged here", "code": "adapter_unavailable"}}'
        assert await replicas.ask(body, base=BASE_ID, model=BASE_ID) == ANSWER
        second.status, second.error = 503, CROWDED
        with pytest.raises(NoReplica, match=r"damaged here|too much to do") as passing:
            await replicas.ask(body, base=BASE_ID, model=BASE_ID)
        assert not isinstance(passing.value, AnswerUnusable)
        second.status = 500
        with pytest.raises(AnswerUnusable, match=r"damaged here|too much to do"):
            await replicas.ask(body, base=BASE_ID, model=BASE_ID)
        first.status = second.status = 400
        with pytest.raises(QuestionRefused, match=r"damaged here|too much to do"):
            await replicas.ask(body, base=BASE_ID, model=BASE_ID)
        await replicas.close()

    with Upstream(answer=ANSWER) as first, Upstream(answer=ANSWER) as second:
        with_attempt(settings, EQ, story)


def test_a_prompt_that_is_refused_fails_the_job_with_its_line(settings: Settings, adapter: Path) -> None:
    async def story(one: Attempt) -> None:
        await beat(one, server)
        working = asyncio.create_task(one.gathering.gather(one.wanted(adapter, validation=True)))
        while not (policies := await one.stores.registry.on_base(BASE_ID)):
            await asyncio.sleep(0.01)
        await one.stores.registry.acknowledge("replica-0", {policies[0].name: Residency(state="warm")})
        with pytest.raises(TrainingFailed, match=r"refuses line [12] of the validation file: too much") as caught:
            await working
        assert (caught.value.code, caught.value.param) == ("prompt_refused", "validation_file")

    with Upstream(status=400, error=CROWDED) as server:
        with_attempt(settings, EQ, story)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"answer": b"<html>"}, "the inference server's answer could not be read"),
        ({"answer": json.dumps({"choices": CHOICES[:1], "prompt_token_ids": [1]}).encode()}, ".* 1 answers where 3"),
        ({"status": 500, "error": b"{}"}, "status 500"),
    ],
)
def test_answers_that_are_never_of_use_fail_the_job_with_their_line(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)

    async def story(one: Attempt) -> None:
        await beat(one, server)
        working = asyncio.create_task(one.gathering.gather(one.wanted(adapter, lines=(2,))))
        while not (policies := await one.stores.registry.on_base(BASE_ID)):
            await asyncio.sleep(0.01)
        await one.stores.registry.acknowledge("replica-0", {policies[0].name: Residency(state="warm")})
        with pytest.raises(TrainingFailed, match=f"Line 2 of the training file .* in 5 tries: {reason}") as caught:
            await working
        assert (caught.value.code, len(server.received)) == ("answers_unusable", 5)

    with Upstream(**behaviour) as server:
        with_attempt(settings, EQ, story)


def test_a_judge_that_is_away_is_waited_for_longer_than_one_that_fails(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(gathering, "LONGEST_PAUSE_S", 0.001)
    monkeypatch.setattr(asking, "_FIRST_WAIT_S", 0.001)

    async def story(one: Attempt) -> None:
        await beat(one, server)
        judge.behaviour, judge.status = "status", 503
        working = asyncio.create_task(one.gathering.gather(one.wanted(adapter, lines=(1,))))
        while not (policies := await one.stores.registry.on_base(BASE_ID)):
            await asyncio.sleep(0.01)
        await one.stores.registry.acknowledge("replica-0", {policies[0].name: Residency(state="warm")})
        while len(judge.received) < 3 * GROUP * (gathering.MOST_TRIES + 2) and not working.done():
            await asyncio.sleep(0.01)
        judge.behaviour, judge.status = "whole", 200
        header, _ = read_rollouts(Path((await working).path))
        assert (header.stats.reward_mean, header.stats.ungraded) == (0.5, 0)
        assert sum("could be graded" in told for told in await one.story()) == 1
        monkeypatch.setattr(gathering, "MOST_AWAY_S", 0.0)
        judge.behaviour, judge.status = "status", 503
        with pytest.raises(TrainingFailed, match=r"of step 2 could be graded, in 1 tries: .*answered 503"):
            await one.gathering.gather(one.wanted(adapter, lines=(1,), step=2))

    judged = {"choices": [{"message": {"content": '{"steps": [], "result": 0.5}'}}]}
    score = {"type": "score_model", "name": "s", "model": "out/j", "input": [{"role": "user", "content": "?"}]}
    with Upstream(answer=ANSWER) as server, Upstream(answer=json.dumps(judged).encode()) as judge:
        endpoints = {"out": JudgeEndpoint(base_url=f"{judge.url}/v1")}
        with_attempt(replace(settings, judge_endpoints=endpoints), score, story)


def test_models_of_steps_are_nobodys_to_ask_and_go_with_their_job(settings: Settings, adapter: Path) -> None:
    async def story(one: Attempt) -> None:
        await beat(one)
        wanted = one.wanted(adapter)
        registry = one.stores.registry
        published = await registry.publish(one.gathering._policies._adapter(wanted), fence=one.token)
        access = Access(project=one.record.project, is_admin=True)
        assert (await registry.find(published.name, access)).own is None
        assert await registry.listed(one.record.project) == []
        await leftovers.sweep(one.stores)
        assert await one.policies() == [wanted.sha256]  # its job has not ended
        await one.stores.jobs.finish(one.record.id, JobState.CANCELLED, events=[])
        await one.stores.leases.release(one.record.id, one.token)
        await leftovers.sweep(one.stores)
        assert await one.policies() == [] and Path(wanted.folder).exists()  # young folders stay an hour

    with_attempt(settings, EQ, story)


def test_a_models_folder_goes_at_once_unless_it_is_of_use(settings: Settings, adapter: Path) -> None:
    async def story(one: Attempt) -> None:
        wanted = one.wanted(adapter)
        folder = Path(wanted.folder)
        registry, changed_at = one.stores.registry, folder.stat().st_mtime
        other = AdapterRecord(
            name="ft:x", base=BASE_ID, base_fingerprint="tiny", folder=one.stores.paths.relative(folder),
            sha256=wanted.sha256, rank=4, project="proj_y", job_id="", created_at=1,
        )  # fmt: skip
        await registry.publish(other)
        assert not await drop_at_once(one.stores, folder, known_since=changed_at)
        await registry.retire("ft:x")
        assert not await drop_at_once(one.stores, folder, known_since=changed_at - 1)  # made again since
        assert folder.is_dir()
        assert await drop_at_once(one.stores, folder, known_since=changed_at)
        assert list(folder.parent.iterdir()) == [] and await registry.retired() == {}
        assert not await drop_at_once(one.stores, folder, known_since=changed_at)

    with_attempt(settings, EQ, story)
