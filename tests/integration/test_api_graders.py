"""Running and validating graders: by OpenAI's SDK against a real API, with judges inside and outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from services.api.graders.judges import Judges
from shared.grading import asking
from shared.grading.cage import why_not
from shared.grading.outside import OutsideJudges
from shared.grading.run import Answer, JudgeFailed
from shared.model_records import Access
from shared.outgoing import Outgoing
from shared.schemas.graders import SamplingParams
from shared.settings import JudgeEndpoint, Settings
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, make_adapter, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

EQ: Any = {"type": "string_check", "name": "eq", "input": "{{ sample.output_text }}",
           "reference": "{{ item.answer }}", "operation": "eq"}  # fmt: skip
SCORE: Any = {"type": "score_model", "name": "score", "model": BASE,
              "input": [{"role": "user", "content": "Rate: {{ sample.output_text }}"}]}  # fmt: skip
TASTE = f"ft:{BASE}:acme:taste:reward00"
REWARD: Any = {
    "type": "selftune_reward",
    "name": "taste",
    "model": TASTE,
    "input": [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "{{ sample.output_text }}"}],
}
PYTHON: Any = {"type": "python", "name": "py", "source": "def grade(sample, item):\n    return 1.0\n"}


def completion(text: str, **message: Any) -> bytes:
    said = {"role": "assistant", "content": text, **message}
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(answer).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def judge(server: Upstream) -> Upstream:
    """A server that speaks OpenAI's API; tests say what it answers."""
    server.behaviour, server.status, server.error, server.headers = "whole", 200, b"", {}
    server.answer = completion('{"steps": [], "result": 0.5}')
    server.received.clear()
    return server


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, judge: Upstream) -> openai.OpenAI:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(redis_url, lambda client: Presence(client).beat_replica(make_replica(judge.url), ttl_s=600))
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0, _strict_response_validation=True)


def run(sdk: openai.OpenAI, grader: Any, sample: str = "Paris", item: Any = None) -> Any:
    return sdk.fine_tuning.alpha.graders.run(
        grader=grader, model_sample=sample, item={"answer": "Paris"} if item is None else item
    )


def flags(done: Any) -> set[str]:
    return {name for name, value in done.metadata.errors.to_dict().items() if value is True}


def test_a_grader_is_run(sdk: openai.OpenAI) -> None:
    done = run(sdk, EQ)
    assert (done.reward, done.metadata.name, done.metadata.type) == (1.0, "eq", "string_check")
    assert done.metadata.execution_time > 0 and done.metadata.scores == {"eq": 1.0} and not done.sub_rewards
    assert (done.metadata.token_usage, done.metadata.sampled_model_name) == (None, None)
    errors = done.metadata.errors.to_dict()
    assert len(errors) == 14 and not any(errors.values())
    assert run(sdk, EQ, "Rome").reward == 0.0
    assert flags(run(sdk, EQ, item={})) == {"invalid_variable_error"}
    assert flags(sdk.fine_tuning.alpha.graders.run(grader=EQ, model_sample="x")) == {"invalid_variable_error"}


def test_a_judge_of_this_server_is_asked(sdk: openai.OpenAI, judge: Upstream) -> None:
    done = run(sdk, SCORE | {"sampling_params": {"seed": 7, "max_completions_tokens": 9, "top_p": None}})
    assert (done.reward, done.metadata.token_usage, done.metadata.sampled_model_name) == (0.5, 25, BASE)
    usage = done.to_dict()["model_grader_token_usage_per_model"]
    assert usage == {BASE: {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "cached_tokens": 8}}
    (asked,) = judge.received
    body = json.loads(asked.body)
    assert asked.path == "/v1/chat/completions" and body["model"] == BASE
    assert body["messages"] == [{"role": "user", "content": "Rate: Paris"}]
    assert (body["seed"], body["max_completion_tokens"]) == (7, 9) and "top_p" not in body
    assert body["response_format"]["type"] == "json_schema"


def test_what_a_judge_does_is_told_in_the_result(sdk: openai.OpenAI, judge: Upstream) -> None:
    judge.answer = completion("I like it")
    assert flags(run(sdk, SCORE)) == {"model_grader_parse_error"}
    judge.answer = completion("", refusal="No.")
    assert flags(run(sdk, SCORE)) == {"model_grader_refusal_error"}
    judge.answer = b'{"choices": []}'
    assert flags(run(sdk, SCORE)) == {"model_grader_server_error"}
    judge.answer = completion('{"result": 99}')
    assert run(sdk, SCORE | {"range": [0, 10]}).reward == 10.0
    unknown = run(sdk, SCORE | {"model": "nobody"})
    assert (unknown.reward, flags(unknown)) == (0.0, {"model_grader_server_error"})
    assert "nobody" in unknown.metadata.errors.api_model_grader_server_error_details


def test_multi_with_a_map_of_graders_is_run_and_echoed(api: ApiServer, sdk: openai.OpenAI, judge: Upstream) -> None:
    multi = {"type": "multi", "name": "m", "graders": {"a": EQ, "b": SCORE}, "calculate_output": "a - b / 2"}
    rewarding = REWARD | {"squash": True}
    done = run(sdk, multi)
    assert (done.reward, done.sub_rewards, done.metadata.scores) == (0.75, {"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.5})
    with api.client() as http:
        for grader in (multi, rewarding):
            answer = http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})
            assert answer.json() == {"grader": grader}


def test_a_sound_grader_is_echoed(sdk: openai.OpenAI, judge: Upstream) -> None:
    for grader in (
        EQ,
        SCORE | {"range": [0, 5]},
        {"type": "multi", "name": "m", "graders": EQ, "calculate_output": "eq"},
    ):
        echoed = sdk.fine_tuning.alpha.graders.validate(grader=grader).grader
        assert echoed is not None and echoed.to_dict() == grader
    assert not judge.received


def test_a_reward_model_needs_a_trainer(sdk: openai.OpenAI, redis_url: str) -> None:
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(TASTE, kind="reward")))
    for model, text in ((TASTE, "no trainer is running"), ("nobody", "nobody"), (BASE, "is not the name of a reward")):
        done = run(sdk, REWARD | {"model": model})
        assert (done.reward, done.metadata.type, flags(done)) == (0.0, "selftune_reward", {"model_grader_server_error"})
        assert text in done.metadata.errors.api_model_grader_server_error_details


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (EQ | {"input": "{{ config.key }}"}, "grader.input"),
        (EQ | {"input": "{{ item.__class__() }}"}, "grader.input"),
        (EQ | {"surplus": 1}, "grader.surplus"),
        (EQ | {"operation": "matches"}, "grader.operation"),
        ({"type": "label_model", "name": "l"}, "grader.type"),
        ({"type": "text_similarity", "name": "t", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
         "grader.evaluation_metric"),
        (REWARD | {"range": [2, 1]}, "grader.range"),
        (REWARD | {"input": REWARD["input"][:1] * 2}, "grader.input"),
        (REWARD | {"sampling_params": {}}, "grader.sampling_params"),
        ({"type": "multi", "graders": {"a": EQ}, "calculate_output": "a +"}, "grader.calculate_output"),
        ({"type": "multi", "graders": {"a": EQ | {"name": 1}}, "calculate_output": "a"}, "grader.graders.a.name"),
        (PYTHON, "grader"),
        ({"type": "multi", "graders": {"a": EQ, "b": PYTHON}, "calculate_output": "a"}, "grader"),
    ],
)  # fmt: skip
def test_graders_that_could_not_grade_are_refused(sdk: openai.OpenAI, grader: Any, param: str) -> None:
    graders = sdk.fine_tuning.alpha.graders
    for call in (lambda: graders.validate(grader=grader), lambda: run(sdk, grader)):
        with pytest.raises(openai.BadRequestError) as caught:
            call()
        assert caught.value.param == param, caught.value.message


def test_bodies_of_another_shape_are_refused(api: ApiServer) -> None:
    with api.client() as http:
        for path, body, param in (
            ("run", {"grader": EQ}, "model_sample"),
            ("run", {"grader": EQ, "model_sample": "x", "item": [1]}, "item"),
            ("run", {"model_sample": "x"}, "grader"),
            ("validate", {"grader": EQ, "model_sample": "x"}, "model_sample"),
            ("validate", {"grader": "eq"}, "grader"),
        ):
            answer = http.post(f"/v1/fine_tuning/alpha/graders/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        long = http.post("/v1/fine_tuning/alpha/graders/run", json={"grader": EQ, "model_sample": "x" * (1 << 20)})
        assert long.status_code == 413


# Judges outside: the same server, asked by its address as an operator has configured it.


def ask(model: str, *, timeout_s: float = 30.0, hosts: tuple[str, ...] = (), **endpoint: str) -> Answer:
    """Ask a judge at the endpoint `out`."""

    async def go() -> Answer:
        outside = OutsideJudges({"out": JudgeEndpoint(**endpoint)}, Outgoing(hosts))
        asking = Judges(None, outside, timeout_s=timeout_s)  # type: ignore[arg-type]
        try:
            messages = [{"role": "user", "content": "?"}]
            return await asking.of(Access(project="proj_default")).ask(model, messages, SamplingParams(), {})
        finally:
            await asking.close()

    return asyncio.run(go())


def test_a_judge_outside_gets_its_key_and_its_models_name(
    judge: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGES_KEY", "sk-of-the-variable")
    answer = ask("out/meta/llama", base_url=f"{judge.url}/v1/", key_env="JUDGES_KEY")
    assert (answer.text, answer.prompt_tokens, answer.cached_tokens) == ('{"steps": [], "result": 0.5}', 20, 8)
    (asked,) = judge.received
    assert asked.headers["authorization"] == "Bearer sk-of-the-variable"
    assert (asked.path, json.loads(asked.body)["model"]) == ("/v1/chat/completions", "meta/llama")
    (tmp_path / "key").write_text("sk-of-the-file\n")
    ask("out/llama", base_url=f"{judge.url}/v1", key_file=str(tmp_path / "key"))
    assert judge.received[-1].headers["authorization"] == "Bearer sk-of-the-file"
    ask("out/llama", base_url=f"{judge.url}/v1")
    assert "authorization" not in judge.received[-1].headers


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (401, 1), (404, 1), (307, 1), (429, 3), (500, 3), (503, 3)])
def test_a_judge_outside_that_is_busy_is_asked_again(
    judge: Upstream, monkeypatch: pytest.MonkeyPatch, status: int, asked: int
) -> None:
    monkeypatch.setattr(asking, "_FIRST_WAIT_S", 0.01)
    judge.behaviour, judge.status, judge.error = "status", status, b'{"error": {"message": "key sk-secret is wrong"}}'
    with pytest.raises(JudgeFailed, match=f"'out' answered {status}") as caught:
        ask("out/m", base_url=f"{judge.url}/v1")
    assert len(judge.received) == asked and "sk-secret" not in str(caught.value)


def test_a_judge_outside_that_hangs_is_given_up(judge: Upstream) -> None:
    judge.behaviour = "silent"
    with pytest.raises(JudgeFailed, match=r"'out/m' gave no answer within 0\.3 s"):
        ask("out/m", base_url=f"{judge.url}/v1", timeout_s=0.3)


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b'{"choices": [{}]}', b'{"choices": 1}', b"\xff", b"[" * 99_999]
)
def test_nonsense_of_a_server_outside_is_no_answer(judge: Upstream, answer: bytes) -> None:
    judge.answer = answer or b" "
    with pytest.raises(JudgeFailed, match="no chat completion"):
        ask("out/m", base_url=f"{judge.url}/v1")


def test_an_answer_without_end_is_given_up(judge: Upstream) -> None:
    judge.answer = b"x" * (5 << 20)
    with pytest.raises(JudgeFailed, match="longer than 4 MiB"):
        ask("out/m", base_url=f"{judge.url}/v1")


def test_judges_outside_that_cannot_be_asked_say_why(judge: Upstream, tmp_path: Path) -> None:
    with pytest.raises(JudgeFailed, match=r"may not be asked.*outgoing_hosts"):
        ask("out/m", base_url=f"{judge.url}/v1", hosts=("hooks.example.com",))
    with pytest.raises(JudgeFailed, match="cannot be read"):
        ask("out/m", base_url=f"{judge.url}/v1", key_file=str(tmp_path / "none"))
    (tmp_path / "two").write_text("a\nb")
    with pytest.raises(JudgeFailed, match="is no key"):
        ask("out/m", base_url=f"{judge.url}/v1", key_file=str(tmp_path / "two"))
    assert not judge.received
    with pytest.raises(JudgeFailed, match="connection to the judge endpoint 'out' failed"):
        ask("out/m", base_url="http://127.0.0.1:1/v1")


def test_endpoints_are_read_from_the_environment() -> None:
    text = '{"openai": {"base_url": "https://api.openai.com/v1", "key_env": "OPENAI_API_KEY"}}'
    settings = Settings.load(environ={"SELFTUNE_JUDGE_ENDPOINTS": text})
    assert settings.judge_endpoints["openai"].key_env == "OPENAI_API_KEY"
    assert Settings.load(environ=settings.to_env()) == settings


def test_a_key_that_may_not_have_models_answer_runs_no_grader(api: ApiServer, sdk: openai.OpenAI) -> None:
    with api.client() as http:
        scopes = {"name": "trains", "selftune": {"scopes": ["read", "train"]}}
        made = http.post("/v1/organization/projects/proj_default/api_keys", json=scopes)
        with api.client(key=made.json()["value"]) as limited:
            body = {"grader": EQ, "model_sample": "x"}
            assert limited.post("/v1/fine_tuning/alpha/graders/run", json=body).status_code == 403
            assert limited.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": EQ}).status_code == 200


GRADE: Any = {"type": "python", "name": "py", "source": "def grade(sample, item):\n"
              "    return 1.0 if sample['output_text'] == item['answer'] else 1 / len(item['answer'])\n"}  # fmt: skip


@pytest.mark.skipif(bool(why_not()), reason="no cage can be built here")
def test_programs_grade_where_the_server_lets_them(redis_url: str, tmp_path: Path) -> None:
    server = ApiServer(tmp_path, redis_url, python_graders=True)
    try:
        sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
        sdk.fine_tuning.alpha.graders.validate(grader=GRADE)
        assert run(sdk, GRADE).reward == 1.0
        assert run(sdk, GRADE, "London").reward == 0.2
        both = {"type": "multi", "graders": {"eq": EQ, "py": GRADE}, "calculate_output": "eq + 10 * py"}
        assert run(sdk, both, "London").reward == 2.0
        failed = run(sdk, GRADE, "", {"answer": []})
        assert (failed.reward, flags(failed)) == (0.0, {"python_grader_runtime_error"})
        assert "ZeroDivisionError" in failed.metadata.errors.python_grader_runtime_error_details
    finally:
        server.stop()
