"""What the gateway counts of a request to a model, once, whichever way it ends."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from msgspec.structs import replace

from services.api import metrics
from services.api.errors import UpstreamError
from services.api.gateway.outgoing import Asking
from services.api.gateway.watching import Watch, watched
from shared.errors import InvalidRequest, NoReplica, ReplicaLost, Unavailable
from shared.schemas.errors import ErrorBody

ASKING = Asking(
    endpoint="/v1/completions", body=b"{}", model="m", request_id="r", priority=0, sticky="", project="proj_watch"
)
BODY = ErrorBody(message="no", type="server_error")


def counted(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value(
        "selftune_gateway_requests_total", {"project": "proj_watch", "model": "m", "outcome": outcome}
    ) or 0.0  # fmt: skip


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "gone"),
        (NoReplica("none"), "no_replica"),
        (ReplicaLost("lost"), "lost"),
        (UpstreamError(422, BODY), "refused"),
        (UpstreamError(502, BODY), "failed"),
        (Unavailable("full"), "busy"),
        (InvalidRequest("bad"), "refused"),
        (RuntimeError("ours"), "failed"),
    ],
)
def test_a_request_without_an_answer_counts_by_its_reason(error: BaseException, outcome: str) -> None:
    before = counted(outcome)
    watch = Watch(ASKING, "m")
    watch.failed(error)
    watch.end()
    assert counted(outcome) == before + 1
    assert outcome in metrics.OUTCOMES


def test_each_outcome_has_a_series_before_the_first_request_ends() -> None:
    watch = Watch(replace(ASKING, project="proj_first"), "m")
    found = {
        sample.labels["outcome"]: sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "selftune_gateway_requests_total" and sample.labels["project"] == "proj_first"
    }
    assert found == dict.fromkeys(metrics.OUTCOMES, 0.0)
    watch.end()


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_counts_when_it_is_closed(whole: bool) -> None:
    class Pieces(httpx2.AsyncByteStream):
        def __init__(self) -> None:
            self.closed = False

        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"a"
            yield b"b"

        async def aclose(self) -> None:
            self.closed = True

    async def story() -> None:
        before, pieces = counted("answered"), Pieces()
        response = watched(httpx2.Response(200, stream=pieces), Watch(ASKING, "m"))
        if whole:
            assert await response.aread() == b"ab"
        else:
            assert counted("answered") == before
        await response.aclose()
        await response.aclose()
        assert pieces.closed and counted("answered") == before + 1

    asyncio.run(story())


def test_an_answer_that_was_read_before_it_is_watched_counts() -> None:
    before = counted("answered")
    assert watched(httpx2.Response(200, content=b"{}"), Watch(ASKING, "m")).content == b"{}"
    assert counted("answered") == before + 1


def test_an_answer_whose_server_goes_away_in_its_middle_counts_as_cut() -> None:
    class Pieces(httpx2.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"a"
            raise httpx2.ReadError("gone")

    async def story() -> None:
        before = counted("cut"), counted("answered")
        response = watched(httpx2.Response(200, stream=Pieces()), Watch(ASKING, "m"))
        with pytest.raises(httpx2.ReadError):
            await response.aread()
        await response.aclose()
        assert (counted("cut"), counted("answered")) == (before[0] + 1, before[1])

    asyncio.run(story())
