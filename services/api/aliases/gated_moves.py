"""What follows when a gate has decided: the alias points to the model that passed, or goes back to one that did."""

from __future__ import annotations

import time

import structlog

from services.api.aliases import changes
from services.api.aliases.management import Aliases
from services.api.aliases.warming import Warming
from services.api.flows import FlowFailed
from shared.alias_records import AliasRecord
from shared.audit_records import AuditRecord
from shared.errors import AdapterRejected, Conflict
from shared.promotion_records import PromotionRecord, asked_of
from shared.schemas.aliases import AliasRevision
from shared.schemas.promotions import PromotionOutcome
from shared.store.aliases import AliasStore, Change
from shared.store.audit import AuditStore, Span
from shared.store.gate_runs import GateRunStore
from shared.store.registry import Registry

_log = structlog.get_logger()


class GatedMoves:
    """Each move is made once: the history names the promotion, which is looked for first."""

    def __init__(
        self,
        store: AliasStore,
        aliases: Aliases,
        warming: Warming,
        registry: Registry,
        runs: GateRunStore,
        audit: AuditStore,
    ) -> None:
        self._store = store
        self._aliases = aliases
        self._warming = warming
        self._registry = registry
        self._runs = runs
        self._audit = audit

    async def promote(self, promotion: PromotionRecord) -> PromotionOutcome:
        """Point the alias to the model that has passed, once a server has it in memory.

        Raises FlowFailed when alias or gate have changed meanwhile or no server can have the model, NotFound.
        """
        current = await self.alias_of(promotion)
        if await self._made(promotion) is not None:
            return "promoted"
        _check_unmoved(current, promotion)
        model = await self._aliases.find_model(promotion.model, "model", promotion.access)
        try:
            await self._warming.warm(model.model, param="model", wait=promotion.wait_warm)
        except (Conflict, AdapterRejected) as error:
            raise FlowFailed(error.code or "model_not_warm", error.message) from error

        def change(record: AliasRecord) -> Change:
            _check_unmoved(record, promotion)
            return changes.gate_passed(record, promotion)

        await self._store.change(promotion.alias, change, project=promotion.project)
        _log.info("alias.promoted", alias=promotion.alias, model=promotion.model, promotion_id=promotion.id)
        return "promoted"

    async def roll_back(self, promotion: PromotionRecord) -> tuple[PromotionOutcome, str]:
        """Point the alias back to the last model of its history that passed; return what came of it, and the words."""
        current = await self.alias_of(promotion)
        made = await self._made(promotion)
        if made is not None:
            if not await self._is_told(promotion):
                await self._tell(promotion, made.model)
            return "rolled_back", f"{promotion.message}; the alias points to '{made.model}' again"
        if current.target != promotion.model:
            return "stays", f"{promotion.message}; the alias points to '{current.target}' by now"
        former = await self._last_passed(current)
        if former is None:
            _log.warning("alias.gate_lost", alias=current.name, model=current.target, promotion_id=promotion.id)
            return "stays", f"{promotion.message}; no model before it has passed, so the alias stays"
        found = await self._store.change(
            promotion.alias,
            lambda record: changes.gate_lost(record, promotion, former) if record.target == promotion.model else None,
            project=promotion.project,
        )
        if found.target != former:
            return "stays", f"{promotion.message}; the alias points to '{found.target}' by now"
        await self._tell(promotion, former)
        return "rolled_back", f"{promotion.message}; the alias points to '{former}' again"

    async def alias_of(self, promotion: PromotionRecord) -> AliasRecord:
        """Raises FlowFailed when the alias is gone, or is another one of its name."""
        found = await self._store.find(promotion.alias, project=promotion.project)
        if found is None or found.uid != promotion.alias_uid:
            raise FlowFailed("alias_not_found", f"The alias '{promotion.alias}' was deleted meanwhile.")
        return found

    async def _made(self, promotion: PromotionRecord) -> AliasRevision | None:
        """Return the move that the promotion has made already."""
        history = await self._store.history(promotion.alias_uid)
        return next((entry for entry in history if entry.promotion_id == promotion.id), None)

    async def _last_passed(self, record: AliasRecord) -> str | None:
        """Return the last model of its history that passed what the gate asks now, and can be had."""
        if record.gate is None:
            return None
        seen, asked = await self._runs.all(record.uid), asked_of(record.gate)
        for entry in await self._store.history(record.uid):
            run = seen.get(entry.model)
            if entry.model == record.target or run is None or run.asked != asked or not run.has_passed:
                continue
            access = record.gate_set.access(record.project) if record.gate_set is not None else None
            if access is not None and (await self._registry.find(entry.model, access)).own is not None:
                return entry.model
        return None

    async def _is_told(self, promotion: PromotionRecord) -> bool:
        """Tell whether the audit log has the move, which may have been made by a process that died then."""
        told, _ = await self._audit.page(
            lambda entry: (
                (entry.type, entry.project, entry.resources, entry.reason)
                == ("alias.gate_lost", promotion.project, (promotion.alias,), _reason(promotion))
            ),
            span=Span(first_ms=promotion.created_at * 1000),
            limit=1,
        )
        return bool(told)

    async def _tell(self, promotion: PromotionRecord, former: str) -> None:
        reason = _reason(promotion)
        await self._audit.add(
            AuditRecord(
                type="alias.gate_lost",
                at=time.time(),
                project=promotion.project,
                resources=(promotion.alias,),
                reason=reason,
            )
        )
        _log.warning("alias.gate_lost", alias=promotion.alias, model=former, reason=reason)


def _reason(promotion: PromotionRecord) -> str:
    return f"'{promotion.model}' does not pass its gate: {promotion.message}"


def _check_unmoved(record: AliasRecord, promotion: PromotionRecord) -> None:
    if record.uid != promotion.alias_uid or record.target != promotion.current or record.gate != promotion.gate:
        raise FlowFailed(
            "alias_moved",
            f"The alias '{promotion.alias}' or its gate was changed while '{promotion.model}' was evaluated; "
            "promote it again.",
        )
