"""Retraining proposals of an alias: made when something has drifted, approved or dismissed, and then carried out."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from services.api.aliases.retraining import Retraining
from shared import ids
from shared.alias_records import AliasRecord
from shared.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    SelftuneError,
    TransitionRefused,
)
from shared.proposal_records import ProposalRecord
from shared.records import KeyRecord
from shared.schemas.evals import EvalError
from shared.schemas.quality import QualityWindow
from shared.schemas.retraining import ProposalStatus
from shared.store.proposals import ProposalStore

_log = structlog.get_logger()

_MONTH_S = 30 * 86_400
_AGAIN_S = 60.0
"""How often a proposal that has to wait is tried again."""
_LOOK_S = 5.0
"""How often an alias's proposals are looked at."""
_FINAL = (InvalidRequest, NotFound, PermissionDenied, TransitionRefused)


class Proposals:
    """Everything may be called again: ids of file and job are chosen before either is made."""

    def __init__(self, store: ProposalStore, retraining: Retraining) -> None:
        self._store = store
        self._retraining = retraining
        self._tried: dict[str, float] = {}
        """When an alias's proposals were looked at last, and one that has to wait was tried, on the monotonic clock."""
        self._forget_at = -math.inf

    async def propose(self, alias: AliasRecord, window: QualityWindow) -> None:
        """Propose to answer a window's alarms, unless a proposal is open; with `retrain`, and in the budget, do it."""
        monitor = alias.monitor
        assert monitor is not None
        told = hashlib.sha256(f"{alias.uid} {window.id}".encode()).hexdigest()[:24]
        record = ProposalRecord(
            id=f"proposal_{told}",
            project=alias.project,
            alias=alias.name,
            model=alias.target,
            created_at=int(time.time()),
            alarms=window.alarms,
            window_id=window.id,
            plan=(await self._retraining.planned(alias, monitor))[0],
        )
        if await self._store.create(alias, record):
            _log.info("retraining.proposed", alias=alias.name, proposal_id=record.id)
        if "retrain" in monitor.actions and monitor.retrain_without_approval and alias.monitor_set is not None:
            await self._retrain(alias, record.id)

    async def approve(self, alias: AliasRecord, proposal_id: str, *, caller: KeyRecord, reason: str) -> ProposalRecord:
        """Create the job; twice is the same as once.

        Raises NotFound, InvalidRequest when it was dismissed, has failed, or is over the budget, and what creating a
        job raises, after which the proposal has failed.
        """
        record = await self._decided(alias, proposal_id, _approval(caller, reason))
        return await self.carry_out(alias, record)

    async def dismiss(self, alias: AliasRecord, proposal_id: str, *, caller: KeyRecord, reason: str) -> ProposalRecord:
        """Say no; twice is the same as once. Raises NotFound, InvalidRequest when it was approved or has failed."""

        def change(current: ProposalRecord) -> ProposalRecord:
            if current.status == "dismissed":
                return current
            _check_open(current)
            return replace(current, status="dismissed", **_decision(caller, reason))

        return await self._store.update(alias.uid, proposal_id, change)

    async def carry_out(self, alias: AliasRecord, record: ProposalRecord) -> ProposalRecord:
        """Make file and job of an approved proposal; another one is returned as it is. Raises RateLimited, Unavailable,
        and what makes it fail."""
        if record.status != "approved":
            return record
        try:
            if not await self._retraining.is_started(record):
                await self._retraining.start(record, await self._retraining.rows_again(alias, record))
        except _FINAL as error:
            await self._failed(alias, record, error)
            raise
        _log.info("retraining.started", alias=alias.name, proposal_id=record.id, job_id=record.job_id)
        return await self._ended(alias, record, "started", EvalError())

    async def tend(self, alias: AliasRecord, now: float) -> None:
        """Go on with what was approved by a process that died, or had to wait."""
        if time.monotonic() < self._tried.get(alias.uid, -math.inf) + _LOOK_S:
            return
        self._tried[alias.uid] = time.monotonic()
        self._forget_old()
        for record in await self._store.all(alias.uid):
            if record.status == "approved" and time.monotonic() > self._tried.get(record.id, -math.inf) + _AGAIN_S:
                self._tried[record.id] = time.monotonic()
                await self._carry_on(alias, record)

    async def _ended(
        self, alias: AliasRecord, record: ProposalRecord, status: ProposalStatus, error: EvalError
    ) -> ProposalRecord:
        """Say what came of a proposal as it was read, unless somebody else has said so."""

        def change(current: ProposalRecord) -> ProposalRecord:
            return replace(current, status=status, error=error) if current.status == record.status else current

        return await self._store.update(alias.uid, record.id, change)

    async def _failed(self, alias: AliasRecord, record: ProposalRecord, error: SelftuneError) -> None:
        await self._ended(alias, record, "failed", EvalError(code=error.code or "invalid", message=error.message))
        _log.warning("retraining.failed", alias=alias.name, proposal_id=record.id, reason=error.message)

    def _forget_old(self) -> None:
        """Drop now and then the times that nothing waits for any more."""
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + _AGAIN_S
            self._tried = {name: at for name, at in self._tried.items() if now < at + _AGAIN_S}

    async def _carry_on(self, alias: AliasRecord, record: ProposalRecord) -> None:
        try:
            await self.carry_out(alias, record)
        except RateLimited as error:
            _log.info("retraining.waits", alias=alias.name, proposal_id=record.id, reason=error.message)
        except _FINAL:
            pass  # the proposal says so

    async def _retrain(self, alias: AliasRecord, proposal_id: str) -> None:
        assert alias.monitor_set is not None
        key = {"key_id": alias.monitor_set.key_id, "is_admin": alias.monitor_set.is_admin}

        def approve(current: ProposalRecord) -> ProposalRecord:
            if current.status != "open":
                return current
            told = {"decided_at": int(time.time()), "reason": "approved by the monitor", "is_automatic": True}
            return replace(current, status="approved", **_new_ids(), **key, **told)

        try:
            record = await self._decided(alias, proposal_id, approve)
        except (InvalidRequest, NotFound) as error:  # over the budget, or another one is open
            _log.info("retraining.not_approved", alias=alias.name, proposal_id=proposal_id, reason=str(error))
        else:
            await self._carry_on(alias, record)

    async def _decided(
        self, alias: AliasRecord, proposal_id: str, change: Callable[[ProposalRecord], ProposalRecord]
    ) -> ProposalRecord:
        current = await self._store.get(alias.uid, proposal_id)
        if current.status == "open":
            await self._check_budget(alias, await self._planned_again(alias, current))
        return await self._store.update(alias.uid, proposal_id, change)

    async def _planned_again(self, alias: AliasRecord, record: ProposalRecord) -> ProposalRecord:
        """Give an open proposal the plan that there is now, which is then the one that is carried out."""
        try:
            plan = await self._retraining.planned_again(alias, record)
        except _FINAL as error:
            await self._failed(alias, record, error)
            raise

        def change(current: ProposalRecord) -> ProposalRecord:
            return replace(current, plan=plan) if current.status == "open" else current

        return await self._store.update(alias.uid, record.id, change)

    async def _check_budget(self, alias: AliasRecord, record: ProposalRecord) -> None:
        """Raises InvalidRequest with code `retraining_budget_exceeded`."""
        budget = None if alias.monitor is None else alias.monitor.budget
        if budget is None:
            return
        since = time.time() - _MONTH_S
        begun = [one for one in await self._store.all(alias.uid) if one.status in ("approved", "started")]
        spent = [one for one in begun if (one.decided_at or 0) >= since]
        tokens = sum([await self._retraining.tokens_of(one) for one in spent]) + record.plan.estimated_tokens
        reason = ""
        if budget.jobs is not None and len(spent) >= budget.jobs:
            reason = f"{len(spent)} jobs were started in the last 30 days, of {budget.jobs}"
        elif budget.tokens is not None and tokens > budget.tokens:
            estimate = record.plan.estimated_tokens
            reason = f"with an estimated {estimate:,} tokens it would be {tokens:,} of {budget.tokens:,}"
        if reason:
            raise InvalidRequest(
                f"The alias's retraining budget does not allow this: {reason}; raise 'monitor.budget'.",
                code="retraining_budget_exceeded",
            )


def _approval(caller: KeyRecord, reason: str) -> Callable[[ProposalRecord], ProposalRecord]:
    def approve(current: ProposalRecord) -> ProposalRecord:
        if current.status in ("approved", "started"):
            return current
        _check_open(current)
        return replace(current, status="approved", **_new_ids(), **_decision(caller, reason))

    return approve


def _check_open(record: ProposalRecord) -> None:
    if record.status != "open":
        raise InvalidRequest(
            f"The proposal '{record.id}' is {record.status}; only an open one can be decided on.",
            code="invalid_proposal_state",
        )


def _decision(caller: KeyRecord, reason: str) -> dict[str, object]:
    return {
        "decided_at": int(time.time()),
        "key_id": caller.id,
        "key_name": caller.name,
        "is_admin": caller.access.is_admin,
        "reason": reason,
    }


def _new_ids() -> dict[str, str]:
    return {"file_id": ids.new_file_id(), "job_id": ids.new_job_id()}
