"""What the gateway counts of a request to a model, once, whichever way it ends."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

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
