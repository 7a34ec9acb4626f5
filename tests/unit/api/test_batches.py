"""Batches without sockets: input that is checked, results that survive, requests that are asked again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec import Raw

from services.api.batches import answering, input_file
from services.api.batches.answering import Answering
from services.api.batches.input_file import Request, read_input
from services.api.batches.results import Result, Results
from services.api.batches.slots import Slots
from services.api.errors import UpstreamError
from services.api.gateway.forwarding import Gateway
from services.api.turns import Turns
from shared.batch_records import BatchRecord
from shared.blobs import local
from shared.errors import NoReplica, ReplicaLost
from shared.model_records import Access
from shared.schemas.batches import BatchUsage
from shared.schemas.errors import ErrorBody

CHAT: Any = "/v1/chat/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}
MIB = 1 << 20


def written(folder: Path, data: bytes) -> Path:
    path = folder / "input.jsonl"
    path.write_bytes(data)
    return path


def codes(path: Path, **options: Any) -> list[tuple[int | None, str]]:
    found = read_input(path, CHAT, **{"max_line_bytes": MIB, **options})
    return [(error.line, error.code) for error in found.errors]


def test_requests_are_found_again_by_their_number(tmp_path: Path) -> None:
    other = GOOD | {"custom_id": "é", "body": {"model": "m", "n": 1}}
    path = written(tmp_path, f"{json.dumps(GOOD)}\r\n\n  \n{json.dumps(other, ensure_ascii=False)}".encode())
    found = read_input(path, CHAT, max_line_bytes=MIB)
    assert (len(found.places), found.models, found.errors) == (2, {"m"}, [])
    assert found.request(1) == Request("é", Raw(b'{"model": "m", "n": 1}'))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe", "invalid_json_line"),
        (json.dumps(GOOD).encode().replace(b'"m"', b'"\xff"'), "invalid_json_line"),
        (b'{"custom_id": "a", "more": ' + b"[" * 100_000, "invalid_json_line"),
        (b"[]", "invalid_value"),
        (json.dumps(GOOD | {"body": "text"}).encode(), "invalid_value"),
        (json.dumps(GOOD | {"custom_id": ""}).encode(), "invalid_value"),
        (b'{"custom_id": "a"}', "missing_required_parameter"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, data: bytes, code: str) -> None:
    assert codes(written(tmp_path, b"\n" + data + b"\n")) == [(2, code)]


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"".join(json.dumps(GOOD | {"custom_id": str(n)}).encode() + b"\n" for n in range(4)))
    assert codes(path, max_line_bytes=20) == [(n, "line_too_long") for n in range(1, 5)]
    monkeypatch.setattr(input_file, "MAX_REQUESTS", 3)
    assert codes(path) == [(None, "too_many_tasks")]
    monkeypatch.setattr(input_file, "_MAX_ERRORS", 2)
    assert codes(path, max_line_bytes=20) == [(1, "line_too_long"), (2, "line_too_long")]


def result(number: int, text: str = "first", *, failed: bool = False) -> Result:
    line = json.dumps({"n": number, "text": text}).encode()
    return Result(number=number, failed=failed, usage=BatchUsage(total_tokens=1), line=Raw(line))


def test_torn_line_of_a_dead_process_is_cut_off(tmp_path: Path) -> None:
    results = Results.load(tmp_path, "one")
    results.append([result(0), result(1, failed=True), result(2)])
    results.close()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-5])
    found = Results.load(tmp_path, "two")
    assert (len(found), found.completed, found.failed, found.usage.total_tokens) == (2, 1, 1, 2)
    found.append([result(2, "second")])
    found.close()
    assert [json.loads(one)["text"] for one in Results.load(tmp_path, "three").lines(failed=False)] == [
        "first", "second",
    ]  # fmt: skip


def test_first_result_counts_whoever_writes_another(tmp_path: Path) -> None:
    old, new = Results.load(tmp_path, "old"), Results.load(tmp_path, "new")
    new.append([result(0), result(0, "again"), result(1)])
    new.append([result(1, "again")])
    old.append([result(1, "late")])
    for one in (old, new):
        one.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    found = Results.load(tmp_path, "reader")
    assert (found.completed, found.usage.total_tokens) == (2, 2)
    assert [json.loads(one)["text"] for one in found.lines(failed=False)] == ["first", "first"]


def test_damaged_lines_are_asked_again(tmp_path: Path) -> None:
    (tmp_path / "000001.x.jsonl").write_bytes(b"\0" * 40 + b"\n")
    assert len(Results.load(tmp_path, "two")) == 0


def test_result_that_the_disk_does_not_take_spoils_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results.load(tmp_path, "one")
    results.append([result(0)])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            results.append([result(1)])
    assert 1 not in results
    results.append([result(1, "again"), result(2)])
    results.close()
    assert [json.loads(one)["n"] for one in Results.load(tmp_path, "two").lines(failed=False)] == [0, 1, 2]


@pytest.mark.parametrize("links", [True, False])
def test_input_is_held_where_there_are_no_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    source, target = written(tmp_path, b"bytes"), tmp_path / "held"
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    local._link(source, target)
    local._link(source, target)
    source.unlink()
    assert target.read_bytes() == b"bytes" and list(tmp_path.iterdir()) == [target]


class Refusing(Gateway):
    """Raises what it is given, once each, then for ever the last."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def open(self, *_: Any, **__: Any) -> httpx2.Response:
        self.calls += 1
        raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]


def refusals(gateway: Refusing) -> dict[str, Any]:
    """Return the response of the line for a request that the gateway refuses."""
    missing: Any = None
    work = Answering(gateway, missing, missing, Slots(1))
    found = asyncio.run(work.result(0, Request("a", Raw(b'{"model":"m"}')), CHAT, access=Access(project="p")))
    assert found.failed
    answer: dict[str, Any] = json.loads(bytes(found.line))["response"]
    return answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_FIRST_WAIT_S", 0.0)


def upstream_error(status: int) -> UpstreamError:
    return UpstreamError(status, ErrorBody(message="no", type="server_error", code="upstream_error"))


@pytest.mark.parametrize("error", [ReplicaLost("gone"), upstream_error(502)])
def test_request_that_breaks_the_server_is_given_up(error: Exception, impatient: None) -> None:
    gateway = Refusing(error)
    assert refusals(gateway)["status_code"] in (502, 503)
    assert gateway.calls == 8


def test_fault_of_the_server_concerns_one_request_alone() -> None:
    gateway = Refusing(KeyError("secret"))
    answer = refusals(gateway)
    assert (answer["status_code"], gateway.calls) == (500, 1)
    assert answer["body"]["error"]["type"] == "server_error" and "secret" not in json.dumps(answer)


def test_model_that_is_away_is_waited_for(impatient: None) -> None:
    gateway = Refusing(ReplicaLost("gone"), *[NoReplica("none"), upstream_error(429)] * 30, upstream_error(400))
    answer = refusals(gateway)
    assert (answer["status_code"], answer["body"]["error"]["code"]) == (400, "upstream_error")
    assert gateway.calls == 62


def test_model_without_a_server_is_not_waited_for() -> None:
    gateway = Refusing(upstream_error(429), NoReplica("none"))
    with pytest.raises(NoReplica):
        refusals(gateway)
    assert gateway.calls == 2


def a_batch(name: str, project: str) -> BatchRecord:
    return BatchRecord(
        id=name, project=project, endpoint=CHAT, input_file_id="file-x", created_at=1, expires_at=2**31,
        planned_output="file-o", planned_error="file-e",
    )  # fmt: skip


def test_projects_take_turns() -> None:
    turns = Turns()
    waiting = [*(a_batch(f"a{n}", "a") for n in range(3)), a_batch("b0", "b"), a_batch("c0", "c"), a_batch("c1", "c")]
    assert [one.id for one in turns.order(waiting, {})] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    turns.served("a")
    assert [one.id for one in turns.order(waiting, {"c": 1})] == ["b0", "a0", "c0", "a1", "c1", "a2"]


def test_rests_grow_to_half_a_minute_and_are_forgotten_with_the_batch() -> None:
    turns = Turns()
    for length_s in (2, 4, 8, 16, 30, 30):
        turns.rest("a", 100.0)
        assert turns.rests("a", 100.0 + length_s - 0.1) and not turns.rests("a", 100.0 + length_s)
    turns.keep_only(frozenset({"b"}))
    assert not turns.has_rested("a")


def test_waits_grow_to_a_minute() -> None:
    waits = [answering._wait_s(tries) for tries in range(1, 40)]
    assert 0.37 < waits[0] <= 0.5 and 45 <= min(waits[10:]) <= max(waits) <= 60


def test_line_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    path = written(tmp_path, good + b"\n" + b"x" * (32 * MIB) + b"\n" + good.replace(b'"a"', b'"b"') + b"\n")
    tracemalloc.start()
    try:
        found = read_input(path, CHAT, max_line_bytes=MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(error.line, error.code) for error in found.errors] == [(2, "line_too_long")]
    assert [length for _, length in found.places] == [len(good) + 1, 32 * MIB + 1, len(good) + 1]
    assert found.request(2).custom_id == "b"
    assert peak < 8 * MIB


def test_batch_that_was_taken_in_is_read_again_without_a_limit(tmp_path: Path) -> None:
    assert codes(written(tmp_path, json.dumps(GOOD).encode()), max_line_bytes=sys.maxsize) == []
