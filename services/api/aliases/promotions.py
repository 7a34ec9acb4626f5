"""Promotions of an alias: taking one in, showing, cancelling."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from services.api.aliases.gates import check_may_ask
from services.api.aliases.management import Aliases
from services.api.aliases.rechecks import Rechecks
from services.api.flows import canceled
from shared.alias_records import AliasRecord
from shared.errors import InvalidRequest, NotFound
from shared.promotion_records import PromotionRecord
from shared.records import KeyRecord
from shared.schemas.promotions import CreatePromotion
from shared.store.aliases import AliasStore, check_revision
from shared.store.flows import FlowStore

_log = structlog.get_logger()


class Promotions:
    """What owners of aliases do with promotions; the runners follow."""

    def __init__(
        self, flows: FlowStore[PromotionRecord], store: AliasStore, aliases: Aliases, rechecks: Rechecks
    ) -> None:
        self._flows = flows
        self._store = store
        self._aliases = aliases
        self._rechecks = rechecks

    async def create(
        self, name: str, wanted: CreatePromotion, *, caller: KeyRecord, promotion_id: str
    ) -> PromotionRecord:
        """Begin to evaluate a model; a promotion that has this id already is returned as it is.

        Raises NotFound for alias or model, InvalidRequest where there is no gate or nothing to promote, Conflict
        (`alias_moved`), PermissionDenied, RateLimited.
        """
        check_may_ask(caller, None)
        alias = await self._store.get(name, project=caller.project)
        try:
            return await self.get(name, promotion_id, project=caller.project)
        except NotFound:
            pass
        check_revision(alias, wanted.expected_revision)
        if alias.gate is None:
            raise InvalidRequest(
                f"The alias '{name}' has no gate to go through; set one, or point it to the model directly.",
                code="no_gate",
                param="alias",
            )
        if wanted.model == alias.target:
            raise InvalidRequest(
                f"The alias '{name}' points to '{wanted.model}' already.", code="invalid_value", param="model"
            )
        await self._aliases.find_model(wanted.model, "model", caller.access)
        record = _record(alias, wanted, caller, promotion_id)
        _log.info("promotion.created", promotion_id=promotion_id, alias=name, model=wanted.model)
        return await self._flows.create(record)

    async def get(self, name: str, promotion_id: str, *, project: str) -> PromotionRecord:
        """Raises NotFound, also for a promotion of another alias."""
        alias = await self._store.get(name, project=project)
        record = await self._flows.get(promotion_id, project=project)
        if record.alias_uid != alias.uid:
            raise NotFound(f"No promotion found with id '{promotion_id[:100]}'.", param="promotion_id")
        return record

    async def all(self, name: str, *, project: str) -> Sequence[PromotionRecord]:
        """List those of an alias, newest first. Raises NotFound."""
        alias = await self._store.get(name, project=project)
        return [record async for record in self._rechecks.of_alias(alias.uid, project)]

    async def cancel(self, name: str, promotion_id: str, *, project: str) -> PromotionRecord:
        """Stop one; twice is the same as once. Raises NotFound, TransitionRefused for one that has ended otherwise."""
        await self.get(name, promotion_id, project=project)
        record = await self._flows.update(promotion_id, canceled)
        _log.info("promotion.cancelled", promotion_id=promotion_id)
        return record

    async def delete_alias(self, name: str, *, project: str) -> None:
        """Delete an alias, after its promotions; what begins in between goes at its end. Raises NotFound."""
        alias = await self._store.get(name, project=project)
        for record in [one async for one in self._rechecks.of_alias(alias.uid, project)]:
            await self._flows.remove(record)
        await self._aliases.delete(name, project=project)


def _record(alias: AliasRecord, wanted: CreatePromotion, caller: KeyRecord, promotion_id: str) -> PromotionRecord:
    assert alias.gate is not None
    return PromotionRecord(
        id=promotion_id,
        project=alias.project,
        created_at=int(time.time()),
        key_id=caller.id,
        key_name=caller.name,
        is_admin=caller.access.is_admin,
        alias=alias.name,
        alias_uid=alias.uid,
        model=wanted.model,
        current=alias.target,
        gate=alias.gate,
        reason=wanted.reason,
        wait_warm=wanted.wait_warm,
    )
