"""A project's aliases: create, point elsewhere, canary, shadow, promote, roll back, delete."""

from __future__ import annotations

import time

import structlog
from msgspec import UNSET

from services.api.aliases import changes
from services.api.aliases.audience import warning_of
from services.api.aliases.gates import Gates, check_promote, check_rollback, check_update, overridden
from services.api.aliases.monitors import Monitors
from services.api.aliases.warming import Warming
from services.api.gateway.model_names import ModelNames
from shared import ids
from shared.alias_records import AliasRecord, is_alias_name
from shared.errors import InvalidRequest
from shared.ids import is_fine_tuned
from shared.model_records import Access
from shared.records import AdapterRecord, KeyRecord
from shared.schemas.aliases import (
    Canary,
    ChangedAlias,
    CreateAlias,
    PromoteCanary,
    RollBackAlias,
    Shadow,
    TrafficLimits,
    UpdateAlias,
    Watch,
)
from shared.store.aliases import AliasStore, Change, check_revision
from shared.store.registry import Known, Registry, unknown_model

_log = structlog.get_logger()

_MAX_PAIRS = 2000
"""Sum of `keep_pairs` over the aliases of a project: some 300 MB of the database where all are long."""


class Aliases:
    """Everything about aliases that can be refused is refused here. `caller` is whose key it is, and whose project."""

    def __init__(
        self,
        store: AliasStore,
        registry: Registry,
        names: ModelNames,
        warming: Warming,
        *,
        gates: Gates,
        monitors: Monitors,
    ) -> None:
        self._store = store
        self._registry = registry
        self._names = names
        self._warming = warming
        self._gates = gates
        self._monitors = monitors

    async def create(self, wanted: CreateAlias, *, caller: KeyRecord) -> ChangedAlias:
        """Raises InvalidRequest for a name that is not free or no alias's, NotFound for a model, Conflict."""
        await self._check_name(wanted.name, caller.access)
        _check_watch(wanted.watch)
        model = await self.find_model(wanted.model, "model", caller.access)
        warm = await self._warming.warm(model.model, param="model", wait=wanted.wait_warm)
        now = int(time.time())
        record = AliasRecord(
            uid=ids.new_alias_uid(),
            name=wanted.name,
            project=caller.project,
            target=wanted.model,
            moved_at=now,
            description=wanted.description,
            watch=wanted.watch,
            created_at=now,
            updated_at=now,
        )
        await self._store.create(record, changes.first_entry(record, wanted.reason, caller))
        _log.info("alias.created", alias=record.name, project=record.project, model=record.target)
        return record.changed(warm=warm)

    async def update(self, name: str, wanted: UpdateAlias, *, caller: KeyRecord) -> ChangedAlias:
        """Change what is given. Raises NotFound, InvalidRequest, AdapterRejected, and Conflict (`alias_moved`,
        `model_not_warm`)."""
        current = await self._store.get(name, project=caller.project)
        check_revision(current, wanted.expected_revision)
        seen = await self._gates.seen(current, wanted.canary.model if wanted.canary else None)
        over = check_update(current, wanted, caller, seen)
        await self._gates.check(wanted.gate or None, caller)
        await self._monitors.check(wanted.monitor or None, caller)
        _check_watch(wanted.watch or None)
        _check_canary(wanted.canary or None)
        await self._check_pairs(current, wanted.shadow or None)
        warm, warning = await self._prepare(current, wanted, caller.access)

        def change(record: AliasRecord) -> Change | None:
            nonlocal over
            _check_others(record, wanted)
            over = check_update(record, wanted, caller, seen)
            changed = changes.updated(record, wanted, caller)
            return None if changed is None else overridden(changed, over)

        changed = await self._store.change(
            name, change, project=caller.project, expected_revision=wanted.expected_revision
        )
        await self._gates.note_override(current, over, caller)
        return self._done(changed, warm, warning)

    async def promote(self, name: str, wanted: PromoteCanary, *, caller: KeyRecord) -> ChangedAlias:
        """Point the alias to its canary, which thereby is none any more. Raises InvalidRequest when there is none."""
        current = await self._store.get(name, project=caller.project)
        check_revision(current, wanted.expected_revision)
        planned = _canary_of(current)
        over = check_promote(current, wanted, caller)
        model = await self.find_model(planned.model, None, caller.access)
        warm = await self._warming.warm(model.model, param="alias", wait=wanted.wait_warm)
        warning = warning_of(await self._pointed_to(current, caller.access), [model])

        def change(record: AliasRecord) -> Change:
            nonlocal over
            canary = _canary_of(record)
            if canary.model != planned.model:
                check_revision(record, current.revision)
            over = check_promote(record, wanted, caller)
            return overridden(changes.promoted(record, canary, wanted.reason, caller), over)

        changed = await self._store.change(
            name, change, project=caller.project, expected_revision=wanted.expected_revision
        )
        await self._gates.note_override(current, over, caller)
        return self._done(changed, warm, warning)

    async def roll_back(self, name: str, wanted: RollBackAlias, *, caller: KeyRecord) -> ChangedAlias:
        """Point the alias to the model before, or to that of a revision, and take the canary out.

        Raises InvalidRequest when there is no such revision, nothing to go back to, or the alias went back by itself.
        """
        current = await self._store.get(name, project=caller.project)
        check_revision(current, wanted.expected_revision)
        if wanted.revision is None and wanted.expected_revision is None:
            await self._check_not_taken_back(current)
        target = await self._former(current, wanted.revision)
        over = check_rollback(current, wanted, caller, target, await self._gates.seen(current, target))
        model = await self.find_model(target, None, caller.access)
        warm = await self._warming.warm(model.model, param="alias", wait=wanted.wait_warm)
        warning = warning_of(await self._pointed_to(current, caller.access), [model])
        seen = await self._gates.seen(current, target)

        def change(record: AliasRecord) -> Change:
            nonlocal over
            if wanted.revision is None and record.previous != target:
                check_revision(record, current.revision)
            over = check_rollback(record, wanted, caller, target, seen)
            return overridden(changes.pointed_back(record, target, wanted.reason, caller), over)

        changed = await self._store.change(
            name, change, project=caller.project, expected_revision=wanted.expected_revision
        )
        await self._gates.note_override(current, over, caller)
        return self._done(changed, warm, warning)

    async def delete(self, name: str, *, project: str) -> None:
        """Forget an alias. Raises NotFound."""
        await self._store.delete(name, project=project)
        _log.info("alias.deleted", alias=name, project=project)

    async def check_unused(self, model: str, *, project: str) -> None:
        """Raises InvalidRequest with code `model_in_use` when requests to an alias of the project go to a model."""
        users = [
            alias.name
            for alias in await self._store.all(project)
            if model == alias.target or (alias.canary is not None and model == alias.canary.model)
        ]
        if users:
            raise InvalidRequest(
                f"'{model}' answers for {_listed(users)}; point them to another model first, or delete them.",
                code="model_in_use",
                param="model",
            )

    async def _check_name(self, name: str, access: Access) -> None:
        if is_fine_tuned(name) or not is_alias_name(name):
            raise InvalidRequest(
                f"Invalid value for 'name': '{name}'. An alias has letters, digits, '.', '_' and '-', with a letter or "
                "digit in front; names that begin with 'ft:' are those of fine-tuned models.",
                code="invalid_alias_name",
                param="name",
            )
        if self._names.is_alias(name) or (await self._registry.find(name, access)).own is not None:
            owner = "an alias of the operator's" if self._names.is_alias(name) else "a model"
            raise InvalidRequest(
                f"'{name}' is the name of {owner} already; choose another.", code="name_taken", param="name"
            )

    async def _prepare(self, current: AliasRecord, wanted: UpdateAlias, access: Access) -> tuple[bool, str | None]:
        """Look up and warm what is new; return whether what the change is about is warm, and what to warn of."""
        before, new = await self._pointed_to(current, access), list[Known]()
        name = current.target if wanted.model is UNSET else wanted.model
        moves = name != current.target
        if wanted.shadow:
            new.append(await self.find_model(wanted.shadow.model, "shadow.model", access))
            await self._warming.warm(new[-1].model, param="shadow.model", wait=False)
        if moves:
            new.append(await self.find_model(name, "model", access))
        target = new[-1] if moves else before
        warm = target is not None and await self._warming.warm(
            target.model, param="model", wait=moves and wanted.wait_warm
        )
        if wanted.canary and (current.canary is None or current.canary.model != wanted.canary.model):
            new.append(await self.find_model(wanted.canary.model, "canary.model", access))
            warm = await self._warming.warm(new[-1].model, param="canary.model", wait=wanted.wait_warm)
        return warm, warning_of(before, new)

    async def _pointed_to(self, record: AliasRecord, access: Access) -> Known | None:
        """Look up the alias's model; None when it is gone, or not for the key."""
        return (await self._registry.find(record.target, access)).own

    async def _check_pairs(self, current: AliasRecord, shadow: Shadow | None) -> None:
        """Raises InvalidRequest when a shadow would have the project's aliases keep more than _MAX_PAIRS pairs."""
        if shadow is None or (current.shadow is not None and shadow.keep_pairs <= current.shadow.keep_pairs):
            return
        aliases = await self._store.all(current.project)
        others = sum(one.shadow.keep_pairs for one in aliases if one.shadow is not None and one.uid != current.uid)
        if others + shadow.keep_pairs > _MAX_PAIRS:
            raise InvalidRequest(
                f"The shadows of a project keep {_MAX_PAIRS} pairs together, and those of its other aliases have "
                f"{others} of them; lower keep_pairs, here or there.",
                code="too_many_pairs",
                param="shadow.keep_pairs",
            )

    async def _check_not_taken_back(self, record: AliasRecord) -> None:
        """Raises InvalidRequest when the last change was a rollback by itself, which another would undo."""
        last = next(iter(await self._store.history(record.uid)), None)
        if last is not None and last.automatic and last.action == "rolled_back":
            raise InvalidRequest(
                f"The alias '{record.name}' was taken back to '{record.target}' automatically: {last.reason}. Another "
                f"rollback would point it to '{record.previous}' again; if that is what you want, send "
                f"'expected_revision': {record.revision}.",
                code="nothing_to_roll_back",
            )

    async def find_model(self, name: str, param: str | None, access: Access) -> Known:
        """Look up a model that an alias may name.

        Raises NotFound for unknown ones and for other aliases, InvalidRequest for reward models.
        """
        found = await self._registry.find(name, access, alias=is_alias_name(name))
        if found.own is None:
            is_alias = found.alias is not None or self._names.is_alias(name)
            error = unknown_model(name)
            hint = " It is an alias, and an alias points to a model." if is_alias else ""
            raise type(error)(error.message + hint, code=error.code, param=param)
        model = found.own.model
        if isinstance(model, AdapterRecord) and model.kind == "reward":
            raise InvalidRequest(
                f"'{name}' is a reward model: it scores answers and writes none, so no alias can send requests to it.",
                code="reward_model",
                param=param,
            )
        return found.own

    async def _former(self, record: AliasRecord, revision: int | None) -> str:
        if revision is None:
            target = record.previous
        else:
            entries = await self._store.history(record.uid)
            target = next((entry.model for entry in entries if entry.revision == revision), None)
            if target is None:
                raise InvalidRequest(
                    f"The alias '{record.name}' has no revision {revision} in its history.",
                    code="unknown_revision",
                    param="revision",
                )
        if target is None or (target == record.target and record.canary is None):
            raise InvalidRequest(
                f"The alias '{record.name}' has nothing to go back to"
                + (": it never pointed elsewhere." if target is None else f": it points to '{target}' already."),
                code="nothing_to_roll_back",
                param=None if revision is None else "revision",
            )
        return target

    def _done(self, record: AliasRecord, warm: bool, warning: str | None) -> ChangedAlias:
        _log.info(
            "alias.changed",
            alias=record.name,
            project=record.project,
            revision=record.revision,
            model=record.target,
            canary=None if record.canary is None else record.canary.model,
        )
        return record.changed(warm=warm, warning=warning)


def _canary_of(record: AliasRecord) -> Canary:
    if record.canary is None:
        raise InvalidRequest(f"The alias '{record.name}' has no canary to promote.", code="no_canary", param="alias")
    return record.canary


def _check_canary(canary: Canary | None) -> None:
    if canary is not None and canary.limits is not None:
        _check_limits(canary.limits, "canary.limits")


def _check_watch(watch: Watch | None) -> None:
    if watch is not None:
        _check_limits(watch.limits, "watch.limits")


def _check_limits(limits: TrafficLimits, param: str) -> None:
    if (limits.max_error_rate, limits.max_p95_first_byte_ms, limits.max_p95_total_ms) == (None, None, None):
        raise InvalidRequest(
            f"'{param}' limits nothing; give max_error_rate, max_p95_first_byte_ms or max_p95_total_ms.",
            code="invalid_value",
            param=param,
        )


def _check_others(record: AliasRecord, wanted: UpdateAlias) -> None:
    """Raises InvalidRequest for a canary or shadow that is given and would be the target itself."""
    target = record.target if wanted.model is UNSET else wanted.model
    for name, other in (("canary", wanted.canary), ("shadow", wanted.shadow)):
        if other and other.model == target:
            raise InvalidRequest(
                f"Invalid value for '{name}.model': the alias points to '{target}' itself; name another model.",
                code="invalid_value",
                param=f"{name}.model",
            )


def _listed(users: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in users[:5])
    more = f" and {len(users) - 5} more" if len(users) > 5 else ""
    return f"the alias{'es' if len(users) > 1 else ''} {shown}{more}"
