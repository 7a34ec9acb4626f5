"""The gateway: which replica, what goes through, and how each way of failing looks to a client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from shared.records import ReplicaRecord
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, free_port, make_adapter, make_base, make_replica, with_store
from tests.fakes.upstream import Upstream

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def announce(redis_url: str, *replicas: ReplicaRecord) -> None:
    """Make models known and replicas alive for a minute."""

    async def fill(client: Client) -> None:
        registry, presence = Registry(client), Presence(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(MINE))
        await registry.publish(make_adapter("ft:foreign", project="proj_other", sha256="b" * 64))
        await registry.publish(make_adapter("ft:unlisted", listed=False, sha256="c" * 64))
        for replica in replicas:
            await presence.beat_replica(replica, ttl_s=60)

    with_store(redis_url, fill)


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, upstream: Upstream) -> openai.OpenAI:
    announce(redis_url, make_replica(upstream.url))
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


@pytest.mark.parametrize("model", [BASE, MINE])
def test_request_and_answer_go_through_untouched(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream, model: str
) -> None:
    body = b'{ "model":"%s",  "messages":[{"role":"user","content":"\xc3\xbc"}], "odd": [1.0, null] }' % model.encode()
    with api.client() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["model"] == model
    (received,) = upstream.received
    assert (received.path, received.body) == ("/v1/chat/completions", body)
    assert received.headers["x-request-id"] == answer.headers["x-request-id"]
    assert received.headers["authorization"] == f"Bearer {api.paths.internal_key.read_text().strip()}"
    assert api.key not in str(received.headers)


def test_sdk_completes_and_streams(sdk: openai.OpenAI, upstream: Upstream) -> None:
    whole = sdk.chat.completions.create(model=MINE, messages=MESSAGES)
    assert whole.choices[0].message.content == "Hello!"
    started = time.monotonic()
    stream = sdk.chat.completions.create(model=MINE, messages=MESSAGES, stream=True)
    arrivals = [(chunk.choices[0].delta.content, time.monotonic() - started) for chunk in stream]
    assert [piece for piece, _ in arrivals] == ["Hel", "lo", "!"]
    assert arrivals[0][1] < arrivals[2][1] - 0.3, "pieces arrive as they are made, 0.2 s apart"
    assert sdk.completions.create(model=BASE, prompt="Once").choices[0].text == "Hello!"
    assert upstream.received[-1].path == "/v1/completions"


def test_streams_of_many_clients_do_not_wait_for_each_other(sdk: openai.OpenAI, api: ApiServer) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(model=MINE, messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(20)))

    started = time.monotonic()
    assert asyncio.run(run()) == ["Hello!"] * 20
    assert time.monotonic() - started < 6, "each takes 0.6 s alone"


@pytest.mark.parametrize("model", ["ft:nobody", "ft:foreign", "ft:unlisted", "../secrets"])
def test_unknown_foreign_and_unlisted_models_are_404(sdk: openai.OpenAI, upstream: Upstream, model: str) -> None:
    for call in (
        lambda: sdk.chat.completions.create(model=model, messages=MESSAGES),
        lambda: sdk.completions.create(model=model, prompt="x", stream=True),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert upstream.received == []


@pytest.mark.parametrize("body", [{}, {"model": 5}, {"model": BASE, "stream": "yes"}, {"model": None}])
def test_wrong_model_or_stream_is_400(sdk: openai.OpenAI, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == ("stream" if "stream" in body else "model")


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ([], "no inference server"),
        ([make_replica("", state="starting", reason="loading weights")], "starting (loading weights)"),
        ([make_replica("http://127.0.0.1:1", state="draining")], "draining"),
        ([make_replica("http://127.0.0.1:1", base="another")], "no inference server"),
    ],
)
def test_model_without_a_ready_replica_is_503_with_the_reason(
    api: ApiServer, redis_url: str, replicas: list[ReplicaRecord], words: str
) -> None:
    announce(redis_url, *replicas)
    with api.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": MINE, "messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert words in answer.json()["error"]["message"]
    assert 0 < int(answer.headers["retry-after"]) <= 120


def test_dead_replica_is_passed_over(api: ApiServer, redis_url: str, upstream: Upstream) -> None:
    dead = make_replica(f"http://127.0.0.1:{free_port()}", id="dead", resident=[MINE])
    announce(redis_url, dead, make_replica(upstream.url, id="alive", running=9))
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
    assert client.chat.completions.create(model=MINE, messages=MESSAGES).choices[0].message.content == "Hello!"


@pytest.mark.parametrize("status", [500, 503, 422])
def test_what_one_replica_cannot_answer_another_does(
    api: ApiServer, redis_url: str, upstream: Upstream, status: int
) -> None:
    with Upstream(status=status, error=NAMED) as unable:
        announce(redis_url, make_replica(unable.url, id="unable"), make_replica(upstream.url, id="able", running=9))
        with api.client() as http:
            answer = http.post("/v1/chat/completions", json={"model": MINE, "messages": MESSAGES})
        assert answer.json()["choices"][0]["message"]["content"] == "Hello!"
        assert len(unable.received) == len(upstream.received) == 1


def test_a_wrong_request_is_not_sent_to_every_replica(api: ApiServer, redis_url: str, upstream: Upstream) -> None:
    with Upstream(status=400, error=VLLM_400) as refusing:
        announce(redis_url, make_replica(refusing.url, id="first"), make_replica(upstream.url, id="second", running=9))
        with api.client() as http:
            assert http.post("/v1/completions", json={"model": BASE, "prompt": "x"}).status_code == 400
        assert not upstream.received


def test_what_the_last_replica_says_is_passed_on(api: ApiServer, redis_url: str, upstream: Upstream) -> None:
    upstream.status, upstream.error = 503, NAMED
    with Upstream(status=503, error=NAMED) as other:
        announce(redis_url, make_replica(other.url, id="first"), make_replica(upstream.url, id="second"))
        with api.client() as http:
            answer = http.post("/v1/completions", json={"model": BASE, "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "not loaded")
        assert len(other.received) == len(upstream.received) == 1


def test_stream_that_dies_before_its_first_event_begins_again_elsewhere(
    api: ApiServer, redis_url: str, upstream: Upstream
) -> None:
    with Upstream(behaviour="cut before the first event") as dying:
        announce(redis_url, make_replica(dying.url, id="dying"), make_replica(upstream.url, id="alive", running=9))
        client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)
        stream = client.chat.completions.create(model=MINE, messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello!"
        assert len(dying.received) == 1


def test_only_replica_dead_is_503(api: ApiServer, redis_url: str) -> None:
    announce(redis_url, make_replica(f"http://127.0.0.1:{free_port()}"))
    with api.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": BASE, "messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert answer.headers["retry-after"]


VLLM_400 = (
    b'{"error": {"message": "max_tokens is too large", "type": "BadRequestError", "param": "max_tokens", "code": 400}}'
)
NAMED = b'{"error": {"message": "not loaded", "type": "x", "param": null, "code": "adapter_unavailable"}}'
FASTAPI = b'{"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}'


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, VLLM_400, (400, "invalid_request_error", None, "max_tokens", "max_tokens is too large")),
        (422, NAMED, (422, "invalid_request_error", "adapter_unavailable", None, "not loaded")),
        (422, FASTAPI, (422, "invalid_request_error", None, None, "Invalid value for 'messages': Field required")),
        (404, b'{"detail": "Not Found"}', (404, "invalid_request_error", None, None, "Not Found")),
        (400, b"<html>oops</html>", (400, "invalid_request_error", None, None, "The request was refused.")),
        (400, b"[1]", (400, "invalid_request_error", None, None, "The request was refused.")),
        (503, NAMED, (503, "server_error", "adapter_unavailable", None, "not loaded")),
        (500, b"Traceback: secret", (502, "server_error", "upstream_error", None, "failed on this request")),
        (401, b'{"error": "Unauthorized"}', (502, "server_error", "upstream_error", None, "failed on this request")),
        (302, b"moved", (502, "server_error", "upstream_error", None, "failed on this request")),
    ],
)
def test_upstream_errors_get_openais_envelope(
    sdk: openai.OpenAI,
    api_process: ApiServer,
    upstream: Upstream,
    status: int,
    body: bytes,
    expected: tuple[int, str, str | None, str | None, str],
) -> None:
    upstream.status, upstream.error = status, body
    with api_process.client() as http:
        answer = http.post("/v1/chat/completions", json={"model": BASE, "messages": MESSAGES, "stream": True})
    error = answer.json()["error"]
    shown = (answer.status_code, error["type"], error["code"], error["param"])
    assert shown == expected[:4]
    assert expected[4] in error["message"] and "secret" not in answer.text


def test_upstream_back_pressure_is_passed_on(sdk: openai.OpenAI, api: ApiServer, upstream: Upstream) -> None:
    upstream.status, upstream.error, upstream.headers = 503, NAMED, {"retry-after": "7"}
    with api.client() as http:
        answer = http.post("/v1/completions", json={"model": BASE, "prompt": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


def test_stream_cut_between_events_raises_in_the_sdk(sdk: openai.OpenAI, upstream: Upstream) -> None:
    upstream.behaviour = "cut"
    stream = sdk.chat.completions.create(model=BASE, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="went away in the middle"):
        list(stream)


def test_stream_cut_inside_an_event_cuts_the_connection(
    sdk: openai.OpenAI, api_process: ApiServer, upstream: Upstream
) -> None:
    upstream.behaviour = "cut inside an event"
    with (
        api_process.client() as http,
        pytest.raises(httpx2.RemoteProtocolError),
        http.stream("POST", "/v1/completions", json={"model": BASE, "prompt": "x", "stream": True}) as answer,
    ):
        list(answer.iter_raw())


def test_client_that_leaves_a_stream_stops_the_upstream(sdk: openai.OpenAI, upstream: Upstream) -> None:
    upstream.behaviour = "hang"
    stream = sdk.chat.completions.create(model=BASE, messages=MESSAGES, stream=True)
    assert next(iter(stream)).choices[0].delta.content == "Hel"
    stream.close()
    assert upstream.left.wait(10)


def test_client_that_leaves_before_the_first_byte_stops_the_upstream(
    sdk: openai.OpenAI, api: ApiServer, upstream: Upstream
) -> None:
    upstream.behaviour = "silent"
    with api.client() as http, pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/chat/completions", json={"model": BASE, "messages": MESSAGES}, timeout=0.5)
    assert upstream.left.wait(10)


def test_stopping_server_lets_streams_end(redis_url: str, upstream: Upstream, tmp_path: Any) -> None:
    server = ApiServer(tmp_path, redis_url)
    announce(redis_url, make_replica(upstream.url))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    stream = client.chat.completions.create(model=BASE, messages=MESSAGES, stream=True)
    pieces = [next(iter(stream)).choices[0].delta.content]
    server.process.terminate()
    pieces += [chunk.choices[0].delta.content for chunk in stream]
    assert pieces == ["Hel", "lo", "!"]
    assert server.stop() == 0
