"""Where a model is in memory: what the inference servers say, brought together."""

from __future__ import annotations

from services.api.gateway.model_names import Meaning, ModelNames
from shared.errors import InvalidRequest
from shared.model_records import Access
from shared.placement import may_answer, owners
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
        replicas = await self._presence.replicas()
        alive = [one for one in replicas if may_answer(one, base=meaning.base, model=meaning.target)]
        told = await self._registry.residency(meaning.target)
        ready = [one for one in alive if one.state == "ready" and one.url]
        own = {one.id for one in owners(ready, meaning.target)}
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
        if meaning.model.kind == "reward":
            raise InvalidRequest(
                f"'{name}' is a reward model, which no inference server has in memory.",
                code="reward_model",
                param="model",
            )
        await self._registry.ask_to_warm(meaning.model)
        return await self.show(name, access)


def _standing(replica: ReplicaRecord, meaning: Meaning, told: Residency | None, *, owner: bool) -> ReplicaResidency:
    holds = meaning.target in replica.resident or (meaning.target == meaning.base and replica.state == "ready")
    state = "warm" if holds else told.state if told is not None and told.state in _TOLD else "staged"
    word = told if told is not None and told.state == state else Residency(state="staged")
    return ReplicaResidency(
        replica=replica.id,
        replica_state=replica.state,
        state=state,  # type: ignore[arg-type]
        reason=word.reason or None,
        owner=owner,
        load_ms=word.load_ms,
        since=int(word.at) or None,
        running=replica.running,
    )
