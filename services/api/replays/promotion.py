"""The aliases of champions, pointed to their challengers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from services.api.aliases.management import Aliases
from shared.alias_records import AliasRecord
from shared.errors import AdapterRejected, Conflict, InvalidRequest, NotFound, TransitionRefused
from shared.flow_states import FlowState
from shared.records import KeyRecord
from shared.replay_records import ReplayRecord, ReplayRowRecord
from shared.schemas.aliases import UpdateAlias
from shared.schemas.replays import MovedAlias, PromoteReplay, ReplayError, ReplayPromotion
from shared.store.aliases import AliasStore

_log = structlog.get_logger()

_AT_ONCE = 16
"""Aliases that wait for their models to be warm beside each other."""


class Promotion:
    """Promotes what a replay has found."""

    def __init__(self, alias_store: AliasStore, aliases: Aliases) -> None:
        self._store = alias_store
        self._aliases = aliases

    async def promote(self, record: ReplayRecord, wanted: PromoteReplay, *, caller: KeyRecord) -> ReplayPromotion:
        """Move every alias of the project whose target is a chosen champion; what fails with one is said with it.

        Twice is the same as once. Raises TransitionRefused for a replay that is not completed, and InvalidRequest for
        models that have no challenger, or a worse one.
        """
        if record.status is not FlowState.COMPLETED:
            raise TransitionRefused(
                f"Replay '{record.id}' has status '{record.status.value}'; only a completed one is promoted.",
                code="invalid_replay_state",
            )
        winners = {row.model: row.challenger for row in _chosen(record, wanted.models)}
        places = asyncio.Semaphore(_AT_ONCE)
        reason = f"Promoted by the replay {record.id}"

        async def move(alias: AliasRecord) -> MovedAlias:
            async with places:
                return await self._move(alias, winners[alias.target], reason, wanted, caller)

        aliases = [alias for alias in await self._store.all(record.project) if alias.target in winners]
        moved = await asyncio.gather(*map(move, aliases))
        return ReplayPromotion(replay_id=record.id, data=moved)

    async def _move(
        self, alias: AliasRecord, challenger: str, reason: str, wanted: PromoteReplay, caller: KeyRecord
    ) -> MovedAlias:
        change = UpdateAlias(
            model=challenger, expected_revision=alias.revision, reason=reason, wait_warm=wanted.wait_warm
        )
        moved = MovedAlias(alias=alias.name, previous_model=alias.target, model=challenger, revision=None, error=None)
        try:
            changed = await self._aliases.update(alias.name, change, caller=caller)
        except (NotFound, InvalidRequest, AdapterRejected, Conflict) as error:
            _log.info("replay.alias_not_moved", alias=alias.name, code=error.code)
            said = ReplayError(code=error.code or "invalid_request", message=error.message)
            return replace(moved, model=alias.target, error=said)
        return replace(moved, revision=changed.revision)


def _chosen(record: ReplayRecord, models: Sequence[str] | None) -> list[ReplayRowRecord]:
    """Return the rows to promote. Raises InvalidRequest that names the model."""
    if models is None:
        return [row for row in record.rows if row.verdict == "better"]
    rows = {row.model: row for row in record.rows}
    for model in models:
        row = rows.get(model)
        if row is None:
            raise _refused("unknown_model", f"'{model}' is none of the replay's models.")
        if row.error is not None:
            raise _refused("no_challenger", f"'{model}' has no challenger: {row.error.message}")
        if row.verdict == "worse":
            raise _refused("challenger_worse", f"The challenger of '{model}' is worse than it in the eval.")
    return [rows[model] for model in models]


def _refused(code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code=code, param="models")
