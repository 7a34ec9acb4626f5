"""Where a model is in memory: what the inference servers say, brought together."""

from __future__ import annotations

from services.api.gateway.model_names import Meaning, ModelNames
from shared.errors import InvalidRequest
from shared.model_records import Access
from shared.placement import owners
from shared.records import AdapterRecord, ReplicaRecord, Residency
from shared.schemas.residency import ModelResidency, ReplicaResidency
from shared.store.presence import Presence
from shared.store.registry import Registry

_TOLD = frozenset({"loading", "draining", "failed", "quarantined"})
"""What a server tells of an adapter that it does not hold; of any other that it is staged."""


class Residencies:
    """Looks at the servers that are alive. Methods raise NotFound for a model that the key does not see."""

    def __init__(self, names: ModelNames, registry: Registry, presence: Presence) -> None:
        self._names = names
        self._registry = registry
        self._presence = presence

    async def show(self, name: str, access: Access) -> ModelResidency:
        """Tell how a model, or the one that an alias points to, stands on each server."""
        meaning = await self._names.look_up(name, access)
        alive = [one for one in await self._presence.replicas() if _may_answer(one, meaning)]
        told = await self._registry.residency(meaning.target)
        sharing = [one for one in alive if one.state == "ready" and one.url and not one.merged]
        own = {one.id for one in owners(sharing, meaning.target)}
        found = [_standing(one, meaning, told.get(one.id), owner=bool(one.merged) or one.id in own) for one in alive]
        return ModelResidency(
            model=meaning.target,
            base=meaning.base,
            pinned=meaning.target in await self._registry.pinned(),
            warm=sum(one.state == "warm" and one.replica_state == "ready" for one in found),
            replicas=found,
        )

    async def bring_into_memory(self, name: str, access: Access) -> ModelResidency:
        """Ask the owners to load a model, also one that is quarantined. Raises InvalidRequest for a base."""
        meaning = await self._names.look_up(name, access)
        if not isinstance(meaning.model, AdapterRecord):
            raise InvalidRequest(
                f"'{name}' is a base model; it is in memory as long as its inference server runs.",
                code="base_model",
                param="model",
            )
        await self._registry.ask_to_warm(meaning.model)
        return await self.show(name, access)


def _may_answer(replica: ReplicaRecord, meaning: Meaning) -> bool:
    return replica.base == meaning.base and replica.merged in ("", meaning.target)


def _standing(replica: ReplicaRecord, meaning: Meaning, told: Residency | None, *, owner: bool) -> ReplicaResidency:
    holds = meaning.target in replica.resident or (meaning.target == meaning.base and replica.state == "ready")
    state = "warm" if holds else told.state if told is not None and told.state in _TOLD else "staged"
    fits = told is not None and (told.state == state)
    return ReplicaResidency(
        replica=replica.id,
        replica_state=replica.state,
        state=state,  # type: ignore[arg-type]
        reason=(told.reason or None) if told is not None and fits else None,
        owner=owner,
        load_ms=told.load_ms if told is not None and fits else None,
        since=int(told.at) if told is not None and fits else None,
        running=replica.running,
    )
