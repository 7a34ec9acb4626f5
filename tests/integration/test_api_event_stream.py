"""A job's events as a stream: all of them, once, in order, to the end, and from wherever a client left off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from msgspec.structs import replace

from services.api.jobs.sse import PING, follow
from shared.records import JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.states import JobState
from shared.store.client import Client
from shared.store.jobs import JobStore, event
from tests.api_server import ApiServer, know_key, with_store

JOB = "ftjob-stream"
URL = f"/v1/fine_tuning/jobs/{JOB}/events"


def make_job(job_id: str = JOB, project: str = "proj_default") -> JobRecord:
    return JobRecord(
        id=job_id, project=project, organization="acme", created_at=1, model="m", training_file="file-x", seed=0,
        requested=SupervisedHyperparameters(), model_name="ft:m:acme::x",
    )  # fmt: skip


def put(redis_url: str, messages: list[str]) -> None:
    """Create the job with a message for each event."""
    with_store(redis_url, lambda client: JobStore(client).create(make_job(), map(event, messages)))


def add(redis_url: str, *messages: str) -> None:
    with_store(redis_url, lambda client: JobStore(client).append_events(JOB, map(event, messages)))


def move(redis_url: str, status: JobState) -> None:
    def change(record: JobRecord) -> JobRecord:
        return replace(record, status=status)

    with_store(redis_url, lambda client: JobStore(client).update(JOB, change, [event(status.value)]))


def frames(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Parse events as a browser does: fields up to a blank line; comments are skipped."""
    fields: dict[str, Any] = {}
    for line in response.iter_lines():
        if not line and fields:
            yield fields
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
    assert not fields, "the stream ended in the middle of an event"


def message(frame: dict[str, Any]) -> str:
    return str(msgspec.json.decode(frame["data"])["message"])


def test_finished_job_streams_its_whole_story_and_ends(api: ApiServer, redis_url: str) -> None:
    put(redis_url, [f"event {n}" for n in range(450)])
    move(redis_url, JobState.CANCELLED)
    with api.client() as http:
        listed = http.get(URL, params={"limit": 1000}).json()["data"]
        with http.stream("GET", URL, params={"stream": "true"}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            *events, last = frames(response)
    assert last == {"data": "[DONE]"}
    assert [msgspec.json.decode(frame["data"]) for frame in events] == listed[::-1]
    assert [frame["id"] for frame in events] == [item["id"] for item in listed[::-1]]


def test_events_arrive_while_they_happen_and_a_pause_keeps_the_stream_open(api: ApiServer, redis_url: str) -> None:
    put(redis_url, ["created"])
    with api.client() as http, http.stream("GET", URL, params={"stream": "true"}) as response:
        arriving = frames(response)
        assert message(next(arriving)) == "created"
        move(redis_url, JobState.PAUSED)
        assert message(next(arriving)) == "paused"
        move(redis_url, JobState.QUEUED)
        add(redis_url, "one", "two")
        assert [message(next(arriving)) for _ in range(3)] == ["queued", "one", "two"]
        move(redis_url, JobState.FAILED)
        assert message(next(arriving)) == "failed"
        assert [frame["data"] for frame in arriving] == ["[DONE]"]


@pytest.mark.parametrize("by", ["header", "query", "both"])
def test_reconnecting_client_misses_nothing_and_sees_nothing_twice(api: ApiServer, redis_url: str, by: str) -> None:
    put(redis_url, ["a", "b"])
    with api.client() as http:
        with http.stream("GET", URL, params={"stream": "true"}) as response:
            arriving = frames(response)
            first, seen = next(arriving), next(arriving)
        add(redis_url, "c")
        move(redis_url, JobState.CANCELLED)
        headers = {"last-event-id": seen["id"]} if by != "query" else {}
        after = {"query": {"after": seen["id"]}, "both": {"after": first["id"]}}.get(by, {})
        with http.stream("GET", URL, params={"stream": "true", **after}, headers=headers) as response:
            *events, last = frames(response)
    assert [message(frame) for frame in events] == ["c", "cancelled"]
    assert last == {"data": "[DONE]"}


@pytest.mark.parametrize("after", ["nonsense", "ftevent-", "ftevent-0-0", "ftevent-1-1", "ftevent-9" + "9" * 40])
@pytest.mark.parametrize("by", ["after", "last-event-id"])
def test_unknown_place_is_refused_before_the_first_byte(api: ApiServer, redis_url: str, after: str, by: str) -> None:
    put(redis_url, ["a"])
    query, headers = ({"after": after}, {}) if by == "after" else ({}, {by: after})
    with api.client() as http:
        answer = http.get(URL, params={"stream": "true", **query}, headers=headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "after"


def test_bad_flag_unknown_and_foreign_jobs_are_refused(api: ApiServer, redis_url: str) -> None:
    put(redis_url, ["a"])
    stranger = know_key(redis_url, "sk-selftune-stranger", project="proj_other")
    with api.client() as http, api.client(stranger) as foreign:
        garbage = http.get(URL, params={"stream": "perhaps"})
        unknown = http.get(URL.replace(JOB, "ftjob-none"), params={"stream": "true"})
        hidden = foreign.get(URL, params={"stream": "true"})
        listed = http.get(URL, params={"stream": "false"})
    assert (garbage.status_code, garbage.json()["error"]["param"]) == (400, "stream")
    assert unknown.status_code == hidden.status_code == 404
    assert unknown.json()["error"]["code"] == hidden.json()["error"]["code"] == "fine_tune_not_found"
    assert [item["message"] for item in listed.json()["data"]] == ["a"]


def test_many_watchers_leave_room_for_others(api: ApiServer, redis_url: str) -> None:
    put(redis_url, ["a"])

    async def watch(http: httpx2.AsyncClient, ready: asyncio.Semaphore) -> list[str]:
        seen = []
        async with http.stream("GET", URL, params={"stream": "true"}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data"):
                    seen.append(line)
                    ready.release()
        return seen

    async def run() -> tuple[list[list[str]], float]:
        ready = asyncio.Semaphore(0)
        limits = httpx2.Limits(max_connections=300)
        headers = {"authorization": f"Bearer {api.key}"}
        async with httpx2.AsyncClient(base_url=api.url, headers=headers, limits=limits, timeout=60) as http:
            watching = [asyncio.create_task(watch(http, ready)) for _ in range(200)]
            for _ in watching:
                await ready.acquire()
            begun = time.monotonic()
            (await http.get("/v1/models")).raise_for_status()
            taken_s = time.monotonic() - begun
            await asyncio.to_thread(move, redis_url, JobState.CANCELLED)
            return await asyncio.gather(*watching), taken_s

    seen, taken_s = asyncio.run(run())
    assert {len(lines) for lines in seen} == {3}
    assert taken_s < 3.0


def test_stream_ends_whole_and_at_once_when_the_server_stops(tmp_path: Path, redis_url: str) -> None:
    server = ApiServer(tmp_path / "home", redis_url)
    put(redis_url, ["a"])
    with server.client() as http, http.stream("GET", URL, params={"stream": "true"}) as response:
        arriving = frames(response)
        assert message(next(arriving)) == "a"
        begun = time.monotonic()
        server.process.terminate()
        assert list(arriving) == []
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 5
    assert "request.cut" not in server.log.read_text()


async def _always() -> bool:
    return True


async def _first(stream: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await anext(stream) for _ in range(count)]


def test_silence_is_filled_with_comments(redis_url: str) -> None:
    put(redis_url, ["a"])

    async def run(client: Client) -> list[bytes]:
        stream = follow(
            JobStore(client), JOB, after=None, drain=asyncio.Event(), allowed=_always, poll_s=0.01, ping_s=0.05
        )
        return await _first(stream, 3)

    first, *pings = with_store(redis_url, run)
    assert b'"message":"a"' in first
    assert pings == [PING, PING]
