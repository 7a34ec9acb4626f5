"""Judges: models that graders ask, of this stack through the gateway, or of a configured server outside."""

from __future__ import annotations

from services.api.errors import UpstreamError
from services.api.gateway.forwarding import Gateway
from services.api.gateway.relay import read_whole
from shared import ids
from shared.errors import SelftuneError, Unavailable
from shared.grading.asking import ModelJudge
from shared.grading.means import Judge, JudgeFailed
from shared.grading.outside import Busy, OutsideJudges
from shared.model_records import Access

_BUSY = frozenset({429, 502, 503})


class Judges:
    """Gives each project judges of its own: what its keys may use, and the servers outside that all share."""

    def __init__(self, gateway: Gateway, outside: OutsideJudges, *, timeout_s: float) -> None:
        self._gateway = gateway
        self._outside = outside
        self._timeout_s = timeout_s

    def of(self, access: Access, *, priority: int = 0) -> Judge:
        """Return the judges for a key; of the requests that wait for an engine the smallest `priority` comes first."""

        async def inside(model: str, body: bytes) -> bytes:
            return await self._ask_inside(model, body, access, priority)

        return ModelJudge(inside, self._outside, timeout_s=self._timeout_s)

    def is_outside(self, model: str) -> bool:
        """Tell whether a name such as `openai/gpt-5` is one of a configured endpoint."""
        endpoint, _, name = model.partition("/")
        return bool(name) and endpoint in self._outside

    async def close(self) -> None:
        await self._outside.close()

    async def _ask_inside(self, model: str, body: bytes, access: Access, priority: int) -> bytes:
        """Return the body of a completion. Raises Busy where asking again may help, else JudgeFailed."""
        try:
            upstream = await self._gateway.open(
                "/v1/chat/completions",
                body,
                model=model,
                access=access,
                request_id=ids.new_request_id(),
                priority=priority,
            )
            return await read_whole(upstream)
        except UpstreamError as error:
            raise (Busy if error.status in _BUSY else JudgeFailed)(error.body.message) from error
        except SelftuneError as error:
            raise (Busy if isinstance(error, Unavailable) else JudgeFailed)(error.message) from error
