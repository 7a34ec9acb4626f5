"""Every inference endpoint with the real engine behind the real API, by OpenAI's SDK in its strict mode.

A tiny random Llama answers, so the tests are about shapes, constraints and what is kept, not about wit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest

from services.inference.http.usage import TELL_EVERY_S
from shared.grading.judging import score_format
from tests.api_server import ApiServer, wait_until
from tests.integration.engine.names import ALIAS, TUNED
from tests.integration.inference_stack import BASE_ID, InferenceStack
from tests.openai_spec import violations

MESSAGES: list[Any] = [{"role": "user", "content": "what is the capital of france?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": CITY}}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare every JSON answer, generated ones too, with OpenAI's specification."""
    found: list[str] = []
    send = httpx2.Client.send

    def checked_send(client: httpx2.Client, *args: Any, **options: Any) -> httpx2.Response:
        response = send(client, *args, **options)
        path = response.request.url.path
        if response.headers.get("content-type", "").startswith("application/json") and "messages" not in path:
            response.read()
            found.extend(violations(response.request.method, path, response.status_code, response.json()))
        return response

    monkeypatch.setattr(httpx2.Client, "send", checked_send)
    yield
    assert not found, "\n".join(found)


@pytest.fixture
def sdk(engine_api: ApiServer, checked: None) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{engine_api.url}/v1", api_key=engine_api.key, max_retries=0, _strict_response_validation=True
    )


@pytest.fixture
def http(engine_api: ApiServer) -> Iterator[httpx2.Client]:
    with engine_api.client() as client:
        yield client


def test_tokens_are_counted_by_model_however_they_are_sent(sdk: openai.OpenAI, http: httpx2.Client) -> None:
    def used(model: str) -> dict[str, int]:
        groups = http.get("/v1/usage/costs").json()["data"]
        found: dict[str, int] = next((group for group in groups if group["group"] == model), {})
        return {name: found.get(name, 0) for name in ("requests", "input_tokens", "output_tokens")}

    def settled() -> dict[str, dict[str, int]]:
        """Return what was used once all that earlier tests have used is told."""
        found = {model: used(model) for model in (BASE_ID, TUNED)}
        time.sleep(2 * TELL_EVERY_S)
        return found if found == {model: used(model) for model in found} else settled()

    before = settled()
    whole = sdk.chat.completions.create(model=ALIAS, messages=MESSAGES, max_tokens=4, n=2, temperature=1)
    assert whole.usage is not None
    for chunk in sdk.chat.completions.create(model=TUNED, messages=MESSAGES, max_tokens=3, temperature=0, stream=True):
        assert chunk.usage is None
    wanted = {"requests": 2, "input_tokens": 2 * whole.usage.prompt_tokens, "output_tokens": 2 * 4 + 3}
    expected = {name: before[TUNED][name] + number for name, number in wanted.items()}
    wait_until(lambda: used(TUNED) == expected)
    assert used(BASE_ID) == before[BASE_ID]


@pytest.mark.parametrize("model", [BASE_ID, TUNED, ALIAS])
def test_chat_answers_under_every_kind_of_name(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, temperature=0)
    assert answer.model == (TUNED if model == ALIAS else model)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.retrieve(answer.id)


def test_an_adapter_answers_for_its_alias_and_not_for_the_base(sdk: openai.OpenAI) -> None:
    texts = [
        sdk.completions.create(model=model, prompt=[20, 30, 40, 50], max_tokens=12, temperature=0).choices[0].text
        for model in (BASE_ID, TUNED, ALIAS)
    ]
    assert texts[0] != texts[1] == texts[2]


@pytest.mark.parametrize("model", [BASE_ID, TUNED])
@pytest.mark.parametrize("endpoint", ["completions", "chat/completions", "responses", "messages"])
def test_prompts_are_cached_for_their_project_alone(engine_api: ApiServer, model: str, endpoint: str) -> None:
    """How long an answer takes must not tell a project what another one has asked before."""
    with engine_api.client() as admin:
        project = admin.post("/v1/organization/projects", json={"name": "guests"}).json()["id"]
        made = admin.post(f"/v1/organization/projects/{project}/api_keys", json={"name": "k"})
        admin.post(f"/v1/fine_tuning/checkpoints/{TUNED}/permissions", json={"project_ids": [project]})
    others = made.json()["value"]
    # a prompt of its own for each case, since models and endpoints share what the base computes
    start = 20 + 40 * ["completions", "chat/completions", "responses", "messages"].index(endpoint)
    text = f"{endpoint} {model} " + "the lazy dog " * 40
    bodies: dict[str, dict[str, Any]] = {
        "completions": {"prompt": [start + number % 37 for number in range(400)], "max_tokens": 1},
        "chat/completions": {"messages": [{"role": "user", "content": text}], "max_tokens": 1},
        "responses": {"input": text, "max_output_tokens": 16, "store": False},
        "messages": {"messages": [{"role": "user", "content": text}], "max_tokens": 1},
    }

    def cached(key: str) -> int:
        with engine_api.client(key) as http:
            answer = http.post(f"/v1/{endpoint}", json={"model": model, **bodies[endpoint]}).raise_for_status().json()
        usage = answer["usage"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        return int(details.get("cached_tokens") or usage.get("cache_read_input_tokens") or 0)

    assert cached(engine_api.key) == 0
    assert cached(others) == 0
    assert cached(engine_api.key) > 0
    assert cached(others) > 0


def test_a_salt_of_the_clients_is_refused(http: httpx2.Client) -> None:
    for endpoint in ("chat/completions", "completions", "responses", "messages"):
        refused = http.post(f"/v1/{endpoint}", json={"model": BASE_ID, "cache_salt": "x", "input": "hi"})
        assert refused.status_code == 400 and "cache_salt" in refused.text


def test_chat_with_choices_and_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=TUNED, messages=MESSAGES, max_tokens=3, n=2, logprobs=True, top_logprobs=2, seed=7, stop=["§"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_json_schema_is_obeyed(sdk: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    answer = sdk.chat.completions.create(model=BASE_ID, messages=MESSAGES, max_tokens=120, response_format=form)
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_tool_call_obeys_the_tools_schema(sdk: openai.OpenAI, choice: Any) -> None:
    answer = sdk.chat.completions.create(
        model=BASE_ID, messages=MESSAGES, tools=[TOOL], tool_choice=choice, max_tokens=200, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_tools_that_are_not_called_leave_the_text(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=BASE_ID, messages=MESSAGES, tools=[TOOL], max_tokens=4, temperature=0)
    assert not answer.choices[0].message.tool_calls
    assert answer.choices[0].message.content


@pytest.mark.parametrize("usage", [True, False])
def test_a_stored_stream_is_the_completion_that_was_streamed(sdk: openai.OpenAI, usage: bool) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model=ALIAS,
            messages=MESSAGES,
            max_tokens=5,
            logprobs=True,
            stream=True,
            store=True,
            stream_options={"include_usage": usage},
            metadata={"kind": "stream"},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    kept = sdk.chat.completions.retrieve(chunks[0].id)
    assert kept.choices[0].message.content == text
    assert kept.choices[0].finish_reason == "length"
    assert kept.choices[0].logprobs is not None and len(kept.choices[0].logprobs.content or []) == 5
    assert (kept.usage is not None) is usage
    assert kept.to_dict()["metadata"] == {"kind": "stream"}


def test_a_stored_tool_call_is_kept_whole(sdk: openai.OpenAI) -> None:
    options: Any = {"model": BASE_ID, "messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "store": True}
    chunks = list(sdk.chat.completions.create(**options, max_tokens=200, temperature=0, stream=True))
    whole = sdk.chat.completions.create(**options, max_tokens=200, temperature=0)
    streamed, at_once = (sdk.chat.completions.retrieve(one) for one in (chunks[0].id, whole.id))
    arguments = [
        call.function.arguments
        for kept in (streamed, at_once)
        for call in kept.choices[0].message.tool_calls or []
        if call.type == "function"
    ]
    assert len(arguments) == 2
    assert {json.loads(text)["city"] for text in arguments} <= {"Paris", "Rome"}


def test_responses_answer_and_go_on_from_each_other(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=TUNED, input="hello", max_output_tokens=16, metadata={"a": "b"}, temperature=0)
    assert first.metadata == {"a": "b"}
    assert sdk.responses.retrieve(first.id) == first
    second = sdk.responses.create(
        model=TUNED, input="and then?", previous_response_id=first.id, max_output_tokens=16, temperature=0
    )
    assert second.previous_response_id == first.id
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    counted = sdk.responses.input_tokens.count(model=TUNED, input="and then?", previous_response_id=first.id)
    assert counted.input_tokens == second.usage.input_tokens
    explicit: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and then?"},
    ]
    again = sdk.responses.create(model=TUNED, input=explicit, max_output_tokens=16, temperature=0, store=False)
    assert again.output_text == second.output_text
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(again.id)


def test_a_streamed_response_is_kept_as_its_last_event_has_it(sdk: openai.OpenAI, engine_api: ApiServer) -> None:
    lax = openai.OpenAI(base_url=f"{engine_api.url}/v1", api_key=engine_api.key, max_retries=0)
    events = list(lax.responses.create(model=BASE_ID, input="hello", max_output_tokens=16, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    kept = sdk.responses.retrieve(last.response.id)
    assert kept.output_text == last.response.output_text
    assert sdk.responses.input_items.list(kept.id).data[0].type == "message"


def test_a_response_with_a_schema_and_a_tool(sdk: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    answer = sdk.responses.create(model=BASE_ID, input="where?", text=form, max_output_tokens=120)
    assert json.loads(answer.output_text)["city"] in ("Paris", "Rome")
    tool: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
    called = sdk.responses.create(
        model=BASE_ID,
        input="where?",
        tools=[tool],
        tool_choice="required",
        max_output_tokens=200,
        temperature=0,
    )
    (call,) = called.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    after = sdk.responses.create(
        model=BASE_ID, input=result, previous_response_id=called.id, tools=[tool], tool_choice="none",
        max_output_tokens=16,
    )  # fmt: skip
    assert after.output_text
    assert sdk.responses.input_items.list(after.id).data[0].type == "function_call_output"


def test_messages_in_anthropics_format(engine_api: ApiServer) -> None:
    client = anthropic.Anthropic(base_url=engine_api.url, api_key=engine_api.key, max_retries=0)
    answer = client.messages.create(model=ALIAS, messages=MESSAGES, max_tokens=4, system="Be brief.")
    assert (answer.type, answer.stop_reason, answer.usage.output_tokens) == ("message", "max_tokens", 4)
    count = client.messages.count_tokens(model=ALIAS, messages=MESSAGES, system="Be brief.")
    assert count.input_tokens == answer.usage.input_tokens
    with client.messages.stream(model=TUNED, messages=MESSAGES, max_tokens=4) as stream:
        assert stream.get_final_message().usage.output_tokens == 4
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as caught:
        client.messages.create(model=BASE_ID, messages=MESSAGES, max_tokens=-1)
    assert isinstance(caught.value.body, dict) and caught.value.body["type"] == "error"


def test_a_base_that_generates_text_refuses_embeddings(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot make embeddings") as caught:
        sdk.embeddings.create(model=TUNED, input="hello")
    assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")


KEPT = f"ft:{BASE_ID}:acme:kept:AbCdEfGh"
SYSTEM = {"role": "system", "content": "Be brief."}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "presence_penalty": 0.5}


@pytest.fixture
def kept(stack: InferenceStack, http: httpx2.Client) -> Callable[..., None]:
    """Publish TUNED's adapter under a second name, and return what changes that one's settings."""
    record = stack.with_registry(lambda registry: registry.get(TUNED))
    assert record is not None
    stack.publish(KEPT, stack.home / record.folder, listed=True)
    empty = dict.fromkeys(
        ("system_prompt", "temperature", "top_p", "seed", "presence_penalty", "max_completion_tokens", "chat_template")
    )

    def change(**settings: Any) -> None:
        http.post(f"/v1/models/{KEPT}/settings", json=empty | settings).raise_for_status()

    return change


def answer_of(http: httpx2.Client, path: str, **body: Any) -> tuple[str, int]:
    """Return an answer's text and the tokens of its prompt."""
    answer = http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    usage = found["usage"]
    if path == "responses":
        return found["output"][-1]["content"][0]["text"], usage["input_tokens"]
    if path == "messages":
        return found["content"][0]["text"], usage["input_tokens"]
    choice = found["choices"][0]
    return choice.get("text") or choice["message"]["content"], usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "written"),
    [
        ("chat/completions", {"messages": MESSAGES}, {"messages": [SYSTEM, *MESSAGES], "max_tokens": 16, **SAMPLED}),
        ("completions", {"prompt": "the quick"}, {"max_tokens": 16, **SAMPLED}),
        (
            "responses",
            {"input": "the quick", "store": False},
            {"instructions": "Be brief.", "max_output_tokens": 16, **SAMPLED},
        ),
        (
            "messages",
            {"messages": MESSAGES},
            {"system": "Be brief.", "max_tokens": 16, "temperature": 1.0, "top_p": 0.9},
        ),
    ],
)
def test_settings_act_as_if_they_were_written_out(
    http: httpx2.Client, kept: Callable[..., None], path: str, body: dict[str, Any], written: dict[str, Any]
) -> None:
    # Anthropic's form has no seed: there the answer is made certain by its first token alone being likely enough.
    certain = {"top_p": 1e-6} if path == "messages" else {}
    kept(system_prompt="Be brief.", max_completion_tokens=16, **SAMPLED | certain)
    explicit = answer_of(http, path, model=TUNED, **body | written | certain)
    assert answer_of(http, path, model=KEPT, **body) == explicit
    bare = answer_of(http, path, model=TUNED, **body | {name: written[name] for name in written if "max" in name})
    assert bare != explicit


def test_a_chat_template_writes_the_prompt_everywhere(
    sdk: openai.OpenAI, http: httpx2.Client, kept: Callable[..., None]
) -> None:
    kept(chat_template="Q: {{ messages[-1].content }}\nA:", temperature=0, max_completion_tokens=16)
    text, n_prompt = answer_of(http, "completions", model=KEPT, prompt="Q: the quick\nA:")
    user: Any = {"role": "user", "content": "the quick"}
    by_chat = answer_of(http, "chat/completions", model=KEPT, messages=[user])
    assert by_chat == (text, n_prompt)
    assert by_chat != answer_of(http, "chat/completions", model=TUNED, messages=[user], temperature=0, max_tokens=16)
    chunks = sdk.chat.completions.create(model=KEPT, messages=[user], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert answer_of(http, "responses", model=KEPT, input="the quick", store=False) == (text, n_prompt)
    assert sdk.responses.input_tokens.count(model=KEPT, input="the quick").input_tokens == n_prompt
    assert answer_of(http, "messages", model=KEPT, messages=[user], max_tokens=16) == (text, n_prompt)
    counted = http.post("/v1/messages/count_tokens", json={"model": KEPT, "messages": [user]}).json()
    assert counted["input_tokens"] == n_prompt


LONG = [{"role": "user", "content": "the quick brown fox " * 300}]


@pytest.mark.parametrize(
    ("path", "body", "param", "code", "words"),
    [
        ("/v1/chat/completions", {"messages": "hello"}, "messages", None, "list"),
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": 9}, "temperature", None, "[0, 2]"),
        ("/v1/chat/completions", {"messages": LONG}, None, "context_length_exceeded", "context length"),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": -4}, "max_tokens", None, "at least 1"),
        ("/v1/completions", {}, "prompt", None, "prompt"),
        ("/v1/responses", {"input": []}, None, None, "empty conversation"),
        ("/v1/responses", {"input": "x", "service_tier": "gold"}, "service_tier", None, "flex"),
    ],
)
def test_the_engines_refusals_name_the_field(
    http: httpx2.Client, path: str, body: dict[str, Any], param: str | None, code: str | None, words: str
) -> None:
    answer = http.post(path, json={"model": BASE_ID, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["code"] == code
    assert words in error["message"] and "parameter=" not in error["message"]


def test_a_model_of_this_stack_is_a_judge(sdk: openai.OpenAI) -> None:
    """A random model judges at random, but in no other form than it is asked for, and what it costs is counted."""
    said = sdk.chat.completions.create(
        model=TUNED, messages=MESSAGES, max_tokens=30, response_format=cast("Any", score_format())
    )
    assert re.match(r'\s*\{\s*("|$)', said.choices[0].message.content or "")
    grader: Any = {
        "type": "score_model", "name": "judged", "model": TUNED, "range": [2, 3], "sampling_params": {
            "temperature": 1, "seed": 1, "max_completions_tokens": 40
        },
        "input": [{"role": "developer", "content": "Rate."}, {"role": "user", "content": "{{ sample.output_text }}"}],
    }  # fmt: skip
    result = sdk.fine_tuning.alpha.graders.run(grader=grader, model_sample="the quick brown fox", item={})
    errors = result.metadata.errors.to_dict()
    assert {name for name, value in errors.items() if value} <= {"model_grader_parse_error"}
    assert 2 <= result.reward <= 3 if not any(errors.values()) else result.reward == 0
    usage: Any = result.api_model_grader_token_usage_per_model[TUNED]
    assert usage["prompt_tokens"] > 0 and 0 < usage["completion_tokens"] <= 40
    assert result.metadata.token_usage == usage["total_tokens"] and result.metadata.sampled_model_name == TUNED


@pytest.mark.parametrize("call", ["chat", "responses", "messages"])
def test_a_deleted_model_stops_at_once(
    stack: InferenceStack, sdk: openai.OpenAI, http: httpx2.Client, call: str
) -> None:
    name = f"ft:{BASE_ID}:acme:short-lived:{call}"
    (known,) = (model for model in sdk.models.list() if model.id == TUNED)
    assert known.owned_by
    record = stack.with_registry(lambda registry: registry.get(TUNED))
    assert record is not None
    stack.publish(name, stack.home / record.folder, listed=True)
    asks: dict[str, Callable[[], httpx2.Response]] = {
        "chat": lambda: http.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES, "max_tokens": 1}),
        "responses": lambda: http.post("/v1/responses", json={"model": name, "input": "x", "max_output_tokens": 16}),
        "messages": lambda: http.post("/v1/messages", json={"model": name, "messages": MESSAGES, "max_tokens": 1}),
    }
    assert asks[call]().status_code == 200
    assert sdk.models.delete(name).deleted
    assert asks[call]().status_code == 404


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def schema(depth: int) -> str:
    return '{"type":"object","properties":{"a":' * depth + '{"type":"string"}' + "}}" * depth


ASK = f'{{"model":"{TUNED}","messages":[{{"role":"user","content":"x"}}],"max_tokens":2,'
IMAGE = '[{"type":"image_url","image_url":{"url":"http://127.0.0.1:1/x.png"}}]'
HOSTILE = {
    "unknown field": f'{ASK}"other":{nested(850)}}}',
    "tool": f'{ASK}"tools":[{{"type":"function","function":{{"name":"f","parameters":{schema(400)}}}}}]}}',
    "schema": f'{ASK}"response_format":{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema(400)}}}}}}}',
    "regex": f'{ASK}"structured_outputs":{{"regex":"{"(a|b)*" * 2000}"}}}}',
    "regex, deep": f'{ASK}"structured_outputs":{{"regex":"{"(" * 5000}a{")" * 5000}"}}}}',
    "template value": f'{ASK}"chat_template_kwargs":{{"a":{nested(850)}}}}}',
    "bias": f'{ASK}"n":128,"logit_bias":{{"1":1e308}}}}',
    "address inside": ASK.replace('"x"', IMAGE) + '"n":1}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_body_is_the_senders_trouble_alone(http: httpx2.Client, body: str) -> None:
    """The engine goes on, whatever it says; a pattern that takes it more than five seconds is a 502."""
    json_type = {"content-type": "application/json"}
    assert http.post("/v1/chat/completions", content=body, headers=json_type).status_code in (200, 400, 502)
    after = http.post("/v1/chat/completions", json={"model": TUNED, "messages": MESSAGES, "max_tokens": 2})
    assert after.status_code == 200, after.text
