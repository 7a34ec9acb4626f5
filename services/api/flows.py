"""Which api process brings which flow forward, step by step; between the steps it waits and looks again.

A step may be cut off between any two lines and is taken again then, by this process or another: so each is to find what
an earlier try has done. The ids of what a step makes are in the record before the step.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, TypeVar

import structlog
from msgspec.structs import replace

from services.api.leftovers import Leftovers
from services.api.long_work import LongWork
from shared.errors import (
    InvalidRequest,
    LeaseLost,
    NotFound,
    PermissionDenied,
    RateLimited,
    StoreUnavailable,
    TransitionRefused,
)
from shared.flow_records import FlowError, FlowRecord
from shared.flow_states import ENDED, FlowState
from shared.store.flows import FlowStore
from shared.store.leases import LeaseStore

_log = structlog.get_logger()

F = TypeVar("F", bound=FlowRecord)

MAX_TRIES = 5
"""So often may a process die over a step, before the flow is taken for the reason."""
_FIRST_LOOK_S = 0.2
_LONGEST_LOOK_S = 3.0
"""While nothing changes a flow is looked at less and less often."""
_BEAT_S = 2.0
"""How often the lease is renewed and the record looked at: in the middle of a step a cancellation is seen so soon."""

_BROKEN = FlowError(code="server_error", message="An internal error occurred; the server's log has it.")
_DEADLY = FlowError(code="server_error", message=f"The server broke down {MAX_TRIES} times over this, at one step.")


class FlowFailed(Exception):
    """The flow cannot go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = FlowError(code=code, message=message)


class FlowRunner(LongWork[F]):
    """Works on the flows of one kind, most of which only wait."""

    at_once: ClassVar[int] = 1000

    def __init__(self, flows: FlowStore[F], leases: LeaseStore, leftovers: Leftovers, drain: asyncio.Event) -> None:
        super().__init__(leases, leftovers, drain)
        self._flows = flows
        self._newest: dict[str, F] = {}
        """Flows that are worked on, as they were stored last."""

    @abstractmethod
    async def advance(self, record: F) -> F:
        """Take the next step and return the record with what has changed; the same record if there is only to wait.

        A flow that is queued is in progress when it is given here. What is returned is stored, unless somebody else has
        changed the record meanwhile; then it is called again with the new one. To end the flow, return it with a status
        that is an end. Raises FlowFailed, or InvalidRequest, NotFound, PermissionDenied or TransitionRefused, to have
        the flow fail with that error; RateLimited, to be called again later; Unavailable and OSError to have the flow
        put down for a while.
        """

    async def clean_up(self, record: F) -> None:
        """Stop what an ended flow has begun, and remove what it needs no more. May be called again and again.

        `record` is the newest that is known, of a flow that may be deleted meanwhile.
        """

    async def _active(self) -> Sequence[str]:
        return await self._flows.active()

    async def _begin(self, idle: Sequence[str]) -> None:
        now = time.monotonic()
        await self._fill_places(await self._flows.read([one for one in idle if not self._turns.rests(one, now)]))

    async def _is_away(self, record: F) -> bool | None:
        """That is for the step to find out."""
        return None

    async def _work(self, piece_id: str, token: str) -> None:
        record = await self._change(piece_id, token, _tried)
        work = asyncio.create_task(self._step_to_end(record, token))
        beat = asyncio.create_task(self._beat(piece_id, token))
        try:
            done, _ = await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)
            newest = self._newest.pop(piece_id, record)
        await self._finish(newest)

    async def _beat(self, flow_id: str, token: str) -> None:
        """Keep the lease until the flow has ended or is gone, whatever step is under way. Raises LeaseLost."""
        while True:
            await asyncio.sleep(min(_BEAT_S, self._leases.ttl_s / 4))
            try:
                await self._leases.renew(flow_id, token)
                if (await self._flows.get(flow_id)).status in ENDED:
                    return
            except StoreUnavailable:
                _log.warning(f"{self.one}.store_away")
            except NotFound:
                return

    async def _step_to_end(self, record: F, token: str) -> None:
        """Return when the flow has ended or is gone."""
        idle = 0
        with suppress(NotFound):
            while record.status not in ENDED:
                changed = await self._stepped(record, token)
                idle = 0 if changed != record else idle + 1
                record = changed
                if idle:
                    await asyncio.sleep(min(_FIRST_LOOK_S * 1.2**idle, _LONGEST_LOOK_S))
                    record = await self._flows.get(record.id)

    async def _finish(self, newest: F) -> None:
        """Clean up after a flow that has ended or is gone."""
        with suppress(NotFound):
            newest = await self._flows.get(newest.id)
        await self.clean_up(newest)
        await self._flows.close(newest.id)
        _log.info(f"{self.one}.ended", **{self.one_id: newest.id}, status=newest.status.value)

    async def _stepped(self, record: F, token: str) -> F:
        """Take a step, and return the record as it is stored then. Raises NotFound when the flow is gone."""
        try:
            changed = await self.advance(record)
        except RateLimited as error:
            _log.info(f"{self.one}.waits", reason=error.message)
            return record
        except FlowFailed as error:
            changed = _ended(record, FlowState.FAILED, error.error)
        except (InvalidRequest, NotFound, PermissionDenied, TransitionRefused) as error:
            changed = _ended(record, FlowState.FAILED, FlowError(code=error.code or "invalid", message=error.message))
        if changed == record:
            return record
        if changed.status in ENDED and changed.ended_at is None:
            changed = replace(changed, ended_at=int(time.time()))
        changed = replace(changed, tries=1)
        return await self._change(record.id, token, lambda current: changed if current == record else current)

    async def _change(self, flow_id: str, token: str, change: Callable[[F], F]) -> F:
        self._newest[flow_id] = changed = await self._flows.update(flow_id, change, fence=token)
        return changed

    async def _survived(self, piece_id: str, token: str) -> None:
        def clear(current: F) -> F:
            return current if current.status in ENDED else replace(current, tries=0)

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._change(piece_id, token, clear)

    async def _fail(self, piece_id: str, token: str) -> None:
        def fail(current: F) -> F:
            return current if current.status in ENDED else _ended(current, FlowState.FAILED, _BROKEN)

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._change(piece_id, token, fail)


def canceled(record: F) -> F:
    """Return a flow as its owner stops it; one that is stopped already as it is.

    Raises TransitionRefused for one that has ended otherwise.
    """
    if record.status is FlowState.CANCELED:
        return record
    if record.status in ENDED:
        raise TransitionRefused(f"Cannot cancel what has status '{record.status.value}'.", code="invalid_state")
    return _ended(record, FlowState.CANCELED, None)


def _tried(current: F) -> F:
    """Count a try, and begin a flow that has waited."""
    if current.status in ENDED:
        return current
    if current.tries >= MAX_TRIES:
        return _ended(current, FlowState.FAILED, _DEADLY)
    started_at = current.started_at or int(time.time())
    return replace(current, status=FlowState.IN_PROGRESS, started_at=started_at, tries=current.tries + 1)


def _ended(record: F, status: FlowState, error: FlowError | None) -> F:
    return replace(record, status=status, error=error, ended_at=int(time.time()))
