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

from services.api.flow_tries import ended, tried, tried_anew, without_tries
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

_FIRST_LOOK_S = 0.2
_LONGEST_LOOK_S = 3.0
"""While nothing changes a flow is looked at less and less often."""
_BEAT_S = 2.0
"""How often the lease is renewed and the record looked at: in the middle of a step a cancellation is seen so soon."""

_LONGEST_LEAVE_S = 3.0
"""What another process works on is let alone for so long, or for half a lease where that is shorter."""

_NO_ROOM = "storage_limit_exceeded"
_BROKEN = FlowError(code="server_error", message="An internal error occurred; the server's log has it.")


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
        self._uncounted: set[str] = set()
        """Flows that this process has put down alive, without being able to store that."""
        self._left: dict[str, float] = {}
        """By flow until when, on the monotonic clock, it is left to the process that holds its lease."""

    @abstractmethod
    async def advance(self, record: F) -> F:
        """Take the next step and return the record with what has changed; the same record if there is only to wait.

        A flow that is queued is in progress when it is given here. What is returned is stored, unless somebody else has
        changed the record meanwhile; then it is called again with the new one. To end the flow, return it with a status
        that is an end. Raises FlowFailed, or InvalidRequest, NotFound, PermissionDenied or TransitionRefused, to have
        the flow fail with that error; RateLimited, to be called again later, but where storage has no room; Unavailable
        and OSError to have the flow put down for a while.
        """

    async def clean_up(self, record: F) -> None:
        """Stop what an ended flow has begun, and remove what it needs no more. May be called again and again.

        `record` is the newest that is known, of a flow that may be deleted meanwhile.
        """

    async def _active(self) -> Sequence[str]:
        return await self._flows.active()

    async def _begin(self, idle: Sequence[str]) -> None:
        """Read only what nobody works on: records may be large, and most of them are other processes' work."""
        now = time.monotonic()
        self._uncounted &= {*idle, *self._running}
        self._left = {one: until for one in idle if (until := self._left.get(one, 0.0)) > now}
        free = []
        for one in idle:
            if one in self._left or self._turns.rests(one, now):
                continue
            if await self._leases.held(one):
                self._left[one] = now + min(_LONGEST_LEAVE_S, self._leases.ttl_s / 2)
            else:
                free.append(one)
        await self._fill_places(await self._flows.read(free))

    def _is_suspect(self, record: F) -> bool:
        return record.tries - (record.id in self._uncounted) >= 2

    async def _is_away(self, record: F) -> bool | None:
        """That is for the step to find out."""
        return None

    async def _work(self, piece_id: str, token: str) -> None:
        try:
            record = await self._change(piece_id, token, tried_anew if piece_id in self._uncounted else tried)
        except NotFound:  # deleted since it was listed
            return
        self._uncounted.discard(piece_id)
        try:
            await self._step_and_beat(record, token)
        except LeaseLost:
            await self._clean_up_late(self._newest[piece_id])
            raise
        else:
            await self._finish(self._newest[piece_id])
        finally:
            del self._newest[piece_id]

    async def _step_and_beat(self, record: F, token: str) -> None:
        """Return when the flow has ended or is gone, and no step is under way."""
        work = asyncio.create_task(self._step_to_end(record, token))
        beat = asyncio.create_task(self._beat(record.id, token))
        try:
            done, _ = await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)

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
                changed = await self._stepped(record, token, has_waited=idle > 0)
                idle = idle + 1 if replace(changed, tries=record.tries) == record else 0
                record = changed
                if idle:
                    await asyncio.sleep(_look_s(idle))
                    record = await self._flows.get(record.id)

    async def _finish(self, newest: F) -> None:
        """Clean up after a flow that has ended or is gone."""
        with suppress(NotFound):
            newest = await self._flows.get(newest.id)
        await self.clean_up(newest)
        await self._flows.close(newest.id)
        _log.info(f"{self.one}.ended", **{self.one_id: newest.id}, status=newest.status.value)

    async def _clean_up_late(self, newest: F) -> None:
        """Clean up after a flow that others may have cleaned up after while a step was under way here."""
        with suppress(NotFound):
            newest = await self._flows.get(newest.id)
            if newest.status not in ENDED:
                return
        await self.clean_up(newest)

    async def _stepped(self, record: F, token: str, *, has_waited: bool) -> F:
        """Take a step, and return the record as it is stored then. Raises NotFound when the flow is gone."""
        try:
            changed = await self.advance(record)
        except RateLimited as error:
            if error.code != _NO_ROOM:
                if not has_waited:
                    _log.info(f"{self.one}.waits", reason=error.message)
                return await self._lived_through(record, token)
            changed = ended(record, FlowState.FAILED, FlowError(code=_NO_ROOM, message=error.message))
        except FlowFailed as error:
            changed = ended(record, FlowState.FAILED, error.error)
        except (InvalidRequest, NotFound, PermissionDenied, TransitionRefused) as error:
            changed = ended(record, FlowState.FAILED, FlowError(code=error.code or "invalid", message=error.message))
        if changed == record:
            return await self._lived_through(record, token)
        self._suspects.discard(record.id)
        if changed.status in ENDED and changed.ended_at is None:
            changed = replace(changed, ended_at=int(time.time()))
        changed = replace(changed, tries=1)
        return await self._change(record.id, token, lambda current: changed if current == record else current)

    async def _lived_through(self, record: F, token: str) -> F:
        """Count no tries of a flow that has only to wait: waiting kills nobody."""
        self._suspects.discard(record.id)
        return await self._change(record.id, token, without_tries) if record.tries else record

    async def _change(self, flow_id: str, token: str, change: Callable[[F], F]) -> F:
        self._newest[flow_id] = changed = await self._flows.update(flow_id, change, fence=token)
        return changed

    async def _survived(self, piece_id: str, token: str) -> None:
        with suppress(LeaseLost, TransitionRefused, NotFound):
            try:
                await self._flows.update(piece_id, without_tries, fence=token)
            except StoreUnavailable:
                self._uncounted.add(piece_id)

    async def _fail(self, piece_id: str, token: str) -> None:
        def fail(current: F) -> F:
            return current if current.status in ENDED else ended(current, FlowState.FAILED, _BROKEN)

        with suppress(StoreUnavailable, LeaseLost, TransitionRefused, NotFound):
            await self._flows.update(piece_id, fail, fence=token)


def _look_s(idle: int) -> float:
    """Return after how many seconds a flow is looked at again that has not changed so many times."""
    return min(_FIRST_LOOK_S * 1.2 ** min(idle, 100), _LONGEST_LOOK_S)


def canceled(record: F) -> F:
    """Return a flow as its owner stops it; one that is stopped already as it is.

    Raises TransitionRefused for one that has ended otherwise.
    """
    if record.status is FlowState.CANCELED:
        return record
    if record.status in ENDED:
        raise TransitionRefused(f"Cannot cancel what has status '{record.status.value}'.", code="invalid_state")
    return ended(record, FlowState.CANCELED, None)
