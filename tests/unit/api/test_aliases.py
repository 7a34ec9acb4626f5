"""Aliases without sockets: who the canary answers, what changes make of an alias, counts, and reading answers."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from services.api.aliases import changes, trip
from services.api.aliases.answer_text import Said, said, shortened
from services.api.aliases.choice import place_of, takes_canary, user_of
from services.api.aliases.tally import Tally, bin_of, percentile, tallies
from services.api.aliases.trip import Outcome, Trip
from services.api.errors import UpstreamError
from shared.alias_records import AliasRecord, is_alias_name
from shared.errors import InvalidRequest, NoReplica
from shared.records import KeyRecord
from shared.schemas.aliases import Canary, Shadow, ShadowToolCall, TrafficLimits, UpdateAlias, Watch
from shared.schemas.errors import ErrorBody
from shared.store.alias_traffic import Count

USERS = [f"user-{number}" for number in range(20_000)]
CALLER = KeyRecord(project="p", name="laptop", created_at=1, id="key_1")
ALIAS = AliasRecord(uid="alias_1", name="bot", project="p", target="v1", created_at=1, updated_at=1)


@pytest.mark.parametrize("percent", [0.5, 5.0, 50.0, 99.5])
def test_a_canary_answers_its_share_of_users(percent: float) -> None:
    canary = Canary(model="v2", percent=percent)
    taken = sum(takes_canary("alias_1", canary, user) for user in USERS)
    expected, deviation = len(USERS) * percent / 100, math.sqrt(len(USERS) * percent * (100 - percent)) / 100
    assert abs(taken - expected) < 4 * deviation


def test_raising_the_share_only_adds_users() -> None:
    small, large = (
        {user for user in USERS if takes_canary("alias_1", Canary(model="v2", percent=percent), user)}
        for percent in (10.0, 25.0)
    )
    assert small < large


def test_another_alias_or_canary_has_other_users() -> None:
    places = [
        [place_of(uid, model, user) < 10 for user in USERS] for uid, model in (("a", "m"), ("b", "m"), ("a", "n"))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = sum(here and there for here, there in zip(places[one], places[other], strict=True))
        assert 100 < both < 300, "as many as by chance: 200 of 20,000"


@pytest.mark.parametrize(
    ("fields", "user"),
    [
        ({}, "key_1"),
        ({"user": "u"}, "u"),
        ({"safety_identifier": "s", "user": "u", "prompt_cache_key": "c"}, "s"),
        ({"user": "", "prompt_cache_key": "c"}, "c"),
        ({"metadata": {"user_id": "a"}}, "a"),
        ({"user": 5, "safety_identifier": None, "metadata": "x"}, "key_1"),
    ],
)
def test_user_of_a_request(fields: dict[str, Any], user: str) -> None:
    assert user_of(json.dumps({"model": "bot", **fields}).encode(), "key_1") == user


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("support-bot", True), ("gpt-4o.v2_x", True), ("A", True), ("a" * 128, True), ("a" * 129, False),
        ("ft:x", False), ("", False), ("..", False), (".a", False), ("a/b", False), ("a b", False), ("a\n", False),
        ("ä", False),
    ],
)  # fmt: skip
def test_names_of_aliases(name: str, valid: bool) -> None:
    assert is_alias_name(name) is valid


def test_percentiles_are_at_most_a_fifth_too_high() -> None:
    rng = random.Random(1)
    times = sorted(rng.lognormvariate(5, 1) for _ in range(5_000))
    bins = Counter(map(bin_of, times))
    for share in (0.5, 0.95, 0.99):
        true = times[math.ceil(share * len(times)) - 1]
        assert true <= percentile(bins, share) + 0.1 <= true * 1.2
    assert (bin_of(0.2), bin_of(1), bin_of(1e12)) == (0, 0, 84)


def test_limits_count_from_their_number_of_requests_on() -> None:
    limits = TrafficLimits(max_error_rate=0.1, max_p95_first_byte_ms=100, min_requests=10, window_s=60)
    few = Tally(Counter(answered=0, failed=9))
    assert few.crossed(limits) is None
    assert Tally(Counter(answered=9, failed=1, first_20=9)).crossed(limits) is None, "a tenth is no more than a tenth"
    failing = Tally(Counter(answered=8, failed=2, refused=50)).crossed(limits)
    assert failing == "2 of 10 requests within 60 s failed, 20.0%, where max_error_rate is 10.0%"
    slow = Tally(Counter({"answered": 10, f"first_{bin_of(400)}": 10})).crossed(limits)
    assert slow is not None and "where max_p95_first_byte_ms is 100" in slow


def test_counts_of_before_are_not_held_against_a_model() -> None:
    counted = {Count(3, "failed", "v2"): 50, Count(7, "answered", "v2"): 1, Count(7, "failed", "v1"): 2}
    assert tallies(counted, since=7)["v2"].errors == 0
    assert tallies(counted)["v2"].errors == 50


def test_what_changes_make_of_an_alias() -> None:
    limits = TrafficLimits(max_error_rate=0.1)
    wanted = UpdateAlias(canary=Canary(model="v2", percent=5, limits=limits), watch=Watch(limits=limits), reason="try")
    change = changes.updated(ALIAS, wanted, CALLER)
    assert change is not None
    tried, entry = change
    assert (tried.revision, tried.canary_since, entry.action, entry.canary_percent) == (2, 2, "canary_set", 5)
    assert (entry.key_id, entry.key_name, entry.automatic, entry.reason) == ("key_1", "laptop", False, "try")
    assert changes.updated(tried, wanted, CALLER) is None, "what is there already is no change"
    change = changes.updated(tried, UpdateAlias(canary=Canary(model="v2", percent=50, limits=limits)), CALLER)
    assert change is not None and (change[0].revision, change[0].canary_since) == (3, 2), "its counts go on"
    promoted, entry = changes.promoted(change[0], Canary(model="v2", percent=50), "", CALLER)
    assert (promoted.target, promoted.previous, promoted.canary, promoted.target_since) == ("v2", "v1", None, 4)
    assert promoted.watches(promoted.moved_at) and not promoted.watches(promoted.moved_at + 3600)
    back, entry = changes.pointed_back(promoted, "v1", "bad")
    assert (back.target, back.previous, entry.action, entry.automatic) == ("v1", "v2", "rolled_back", True)
    assert not back.watches(back.moved_at), "a move back is not undone"


def test_a_canary_or_shadow_that_becomes_the_target_is_none_any_more() -> None:
    record = replace(ALIAS, canary=Canary(model="v2", percent=5), shadow=Shadow(model="v2", percent=5))
    change = changes.updated(record, UpdateAlias(model="v2"), CALLER)
    assert change is not None
    assert (change[0].target, change[0].canary, change[0].shadow) == ("v2", None, None)


class Pieces(httpx2.AsyncByteStream):
    """A stream of given pieces; an exception among them is raised."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def travelled(kind: str, *pieces: bytes | Exception, keep: bool = False, read: int | None = None) -> Outcome:
    """Let an answer go through a trip; with `read` its reader leaves after so many pieces."""
    ended: list[Outcome] = []

    async def run() -> None:
        response = httpx2.Response(200, headers={"content-type": kind}, stream=Pieces(*pieces))
        journey = Trip(ended.append, keep=keep)
        journey.follow(response)
        taken = 0
        try:
            async for _ in response.aiter_raw():
                taken += 1
                if taken == read:
                    break
        except httpx2.TransportError:
            pass
        await response.aclose()
        journey.leave()

    asyncio.run(run())
    (outcome,) = ended
    return outcome


EVENTS = "text/event-stream"
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
FAULT = b'data: {"error": {"message": "out of memory"}}\n\n'


def test_endings_of_a_trip() -> None:
    whole = travelled("application/json", b'{"usage":{"prompt_tokens":3,"completion', b'_tokens":2}}')
    assert (whole.ending, whole.usage.input_tokens, whole.usage.output_tokens) == ("answered", 3, 2)
    assert whole.first_byte_ms is not None and whole.first_byte_ms <= whole.total_ms
    streamed = travelled(EVENTS, CHUNK, USAGE, DONE)
    assert (streamed.ending, streamed.usage.total_tokens) == ("answered", 5)
    assert travelled(EVENTS, CHUNK, httpx2.ReadError("cut")).ending == "failed"
    assert travelled(EVENTS, CHUNK, FAULT, DONE).ending == "failed"
    assert travelled(EVENTS, CHUNK, CHUNK, read=1).ending == "abandoned"
    assert travelled(EVENTS, CHUNK, USAGE + DONE, b"", read=2).ending == "answered", "the client has had the last event"
    quoted = b'data: {"choices":[{"delta":{"content":"data: {\\"error\\":\\nevent: error"}}]}\n\n'
    assert travelled(EVENTS, quoted, DONE).ending == "answered"


@pytest.mark.parametrize(("timeout_s", "ending"), [(30.0, "abandoned"), (0.0, "failed")])
def test_a_client_that_waits_in_vain_is_the_models_failure(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, ending: str
) -> None:
    monkeypatch.setattr(trip, "TIMEOUT_S", timeout_s)
    ended: list[Outcome] = []
    one = Trip(ended.append, keep=False)
    one.leave()
    one.end("answered")
    assert [outcome.ending for outcome in ended] == [ending], "there is one end"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (UpstreamError(502, ErrorBody(message="", type="x")), "failed"),
        (UpstreamError(422, ErrorBody(message="", type="x", code="adapter_unavailable")), "failed"),
        (UpstreamError(422, ErrorBody(message="", type="x")), "refused"),
        (NoReplica("none"), "failed"),
        (InvalidRequest("wrong"), "refused"),
    ],
)
def test_what_an_error_says_of_the_model(error: Exception, ending: str) -> None:
    ended: list[Outcome] = []
    Trip(ended.append, keep=False).refuse(error)
    assert [outcome.ending for outcome in ended] == [ending]


def test_a_trip_keeps_no_more_than_it_should() -> None:
    long = travelled(EVENTS, *[CHUNK] * 30_000, keep=True)
    assert (long.truncated, len(long.kept)) == (True, 1 << 20)
    assert len(travelled(EVENTS, *[CHUNK] * 3_000).kept) == 16 << 10


CALL = {"function": {"name": "look", "arguments": "{}"}}
OUTPUT = [
    {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
    {"type": "function_call", "name": "look", "arguments": "{}"},
]
CONTENT = [{"type": "text", "text": "Hi"}, {"type": "tool_use", "name": "look", "input": {}}]


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("/v1/chat/completions", {"choices": [{"message": {"content": "Hi", "tool_calls": [CALL]}}]}),
        ("/v1/responses", {"output": OUTPUT}),
        ("/v1/messages", {"content": CONTENT}),
    ],
)
def test_whole_answers_are_read(endpoint: str, answer: dict[str, Any]) -> None:
    found = said(endpoint, json.dumps(answer).encode(), is_stream=False)
    assert (found.text, [(call.name, call.arguments) for call in found.tool_calls]) == ("Hi", [("look", "{}")])


@pytest.mark.parametrize(
    ("endpoint", "events"),
    [
        ("/v1/chat/completions", CHUNK + CHUNK.replace(b"Hi", b" there") + USAGE + DONE),
        ("/v1/chat/completions", CHUNK + CHUNK.replace(b"Hi", b" there") + CHUNK[:20]),
        ("/v1/completions", b'data: {"choices":[{"text":"Hi"}]}\n\ndata: {"choices":[{"text":" there"}]}\n\n' + DONE),
        (
            "/v1/messages",
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hi there"}}\n\n',
        ),
        (
            "/v1/responses",
            (
                b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
                b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[{"type":'
                b'"message","content":[{"type":"output_text","text":"Hi there"}]}]}}\n\n'
            ),
        ),
    ],
)
def test_streams_are_read(endpoint: str, events: bytes) -> None:
    assert said(endpoint, events, is_stream=True).text == "Hi there"


def test_text_and_tool_calls_are_cut_together() -> None:
    def calls(*arguments: str) -> list[ShadowToolCall]:
        return [ShadowToolCall(name="look", arguments=text) for text in arguments]

    short = Said("Hi", calls("{}"))
    assert shortened(short, 100) == short
    assert shortened(Said("a" * 90, calls("{}")), 100) == Said("a" * 90)
    assert shortened(Said("a" * 150, calls("{}")), 100) == Said("a" * 100)
    assert shortened(Said("", calls("b" * 200, "{}")), 100) == Said("", calls("b" * 64))
    assert len(shortened(Said("", calls(*[""] * 1000)), 1000).tool_calls) == 27


def test_what_cannot_be_read_says_nothing() -> None:
    assert said("/v1/completions", b"<html>", is_stream=False).text == ""
    assert said("/v1/completions", b'{"choices":[{"text":"Once"}]}', is_stream=False).text == "Once"
