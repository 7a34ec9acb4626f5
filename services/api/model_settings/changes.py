"""Changing a model's settings: everything that can be refused is refused here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import structlog
from msgspec import UNSET
from msgspec.structs import asdict, replace

from services.api.gateway.model_names import ModelNames
from services.api.model_settings.template_check import TemplateCheck
from shared.alias_records import is_alias_name
from shared.errors import InvalidRequest
from shared.model_records import Access, ModelSettingsRecord
from shared.records import AdapterRecord
from shared.schemas.model_settings import MAX_TEXT, ModelSettings, UpdateModelSettings
from shared.settings import Settings
from shared.store.api_keys import KeyStore
from shared.store.model_settings import ModelSettingsStore
from shared.store.permissions import PermissionStore
from shared.store.registry import Registry

_log = structlog.get_logger()


class ModelSettingsAdmin:
    """Shows and changes the settings of the fine-tuned models of a caller's own project.

    Every method raises NotFound for models that are unknown, another project's (shared ones, too) or not for the
    caller's key, and InvalidRequest for bases and aliases.
    """

    def __init__(
        self,
        settings: Settings,
        names: ModelNames,
        registry: Registry,
        store: ModelSettingsStore,
        keys: KeyStore,
        permissions: PermissionStore,
    ) -> None:
        self._pins_per_base = settings.max_cpu_loras // 4
        self._names = names
        self._registry = registry
        self._store = store
        self._keys = keys
        self._permissions = permissions
        self._templates = TemplateCheck()

    async def show(self, name: str, access: Access) -> ModelSettings:
        model = await self._own(name, access)
        return await self._shown(model, await self._store.get(name))

    async def update(self, name: str, wanted: UpdateModelSettings, access: Access) -> ModelSettings:
        """Change what is given; a change to what is there already is none.

        Pinning and the rest are two steps: an error between them is mended by sending the request again. Raises
        InvalidRequest that names the field, and Conflict when too many models of the base are pinned.
        """
        model = await self._own(name, access)
        current = await self._store.get(name)
        changed = _changed(current, wanted)
        _check_sizes(wanted)
        await self._check_keys(model, changed, known=current.allowed_keys or [])
        await self._check_template(changed, current)
        pinned = wanted.pinned is not UNSET and await self._pin(model, pinned=bool(wanted.pinned))
        record = await self._store.update(name, _change(wanted, always=pinned))
        _log.info("model_settings.changed", model=name, revision=record.revision, fields=_named(wanted))
        return await self._shown(model, record)

    async def _shown(self, model: AdapterRecord, record: ModelSettingsRecord) -> ModelSettings:
        return record.public(model.name, pinned=model.name in await self._registry.pinned())

    async def _own(self, name: str, access: Access) -> AdapterRecord:
        if self._names.is_alias(name):
            raise _is_alias(name, (await self._names.look_up(name, access)).target)
        base = await self._registry.base(name)
        if base is not None and not base.origin:
            raise InvalidRequest(
                f"'{name}' is a base model, which every project shares; only fine-tuned models have settings.",
                code="base_model",
                param="model",
            )
        if is_alias_name(name):
            found = await self._registry.find(name, access, alias=True)
            if found.own is None and found.alias is not None and found.alias.target not in found.hidden:
                raise _is_alias(name, found.alias.target)
        return await self._registry.owned(name, access)

    async def _pin(self, model: AdapterRecord, *, pinned: bool) -> bool:
        """Pin an adapter, or let go of it; tells whether that is a change."""
        if pinned and model.whole:
            raise _invalid("pinned", f"'{model.name}' is a base of its own, and in memory wherever it is served")
        if pinned and model.kind == "reward":
            raise _invalid("pinned", f"'{model.name}' is a reward model, which no inference server has in memory")
        return await self._registry.pin(model, pinned=pinned, limit=self._pins_per_base)

    async def _check_keys(self, model: AdapterRecord, changed: ModelSettingsRecord, *, known: Collection[str]) -> None:
        """Refuse keys that could not use the model anyway; those that were on the list may have been revoked since."""
        new = [key_id for key_id in changed.allowed_keys or [] if key_id not in known]
        if not new:
            return
        projects = {model.project, *(granted.project for granted in await self._permissions.list(model.name))}
        found = await self._keys.projects_of(new)
        for key_id in new:
            if found.get(key_id) not in projects:
                raise _invalid(
                    "allowed_keys",
                    f"there is no API key '{key_id}' in {model.project}, or in a project that the model is shared with",
                )

    async def _check_template(self, changed: ModelSettingsRecord, current: ModelSettingsRecord) -> None:
        """Try a template out, also when there is now a system prompt that it has to take."""
        template, has_system = changed.chat_template, changed.system_prompt is not None
        is_known = template == current.chat_template and has_system == (current.system_prompt is not None)
        if template is None or is_known:
            return
        fault = await self._templates.fault(template, with_system=has_system)
        if fault is not None:
            raise _invalid("chat_template", fault)


def _change(wanted: UpdateModelSettings, *, always: bool) -> Callable[[ModelSettingsRecord], ModelSettingsRecord]:
    """Return what raises the revision where `wanted` changes something, or `always`."""

    def change(current: ModelSettingsRecord) -> ModelSettingsRecord:
        changed = _changed(current, wanted)
        if changed == current and not always:
            return current
        return replace(changed, revision=current.revision + 1, updated_at=int(time.time()))

    return change


def _changed(current: ModelSettingsRecord, wanted: UpdateModelSettings) -> ModelSettingsRecord:
    given: dict[str, Any] = {name: value for name, value in asdict(wanted).items() if value is not UNSET}
    given.pop("pinned", None)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if given.get("allowed_keys") is not None:
        given["allowed_keys"] = list(dict.fromkeys(given["allowed_keys"]))
    return replace(current, **given)


def _named(wanted: UpdateModelSettings) -> list[str]:
    return [name for name, value in asdict(wanted).items() if value is not UNSET]


def _check_sizes(wanted: UpdateModelSettings) -> None:
    template = wanted.chat_template
    if isinstance(template, str) and (size := len(template.encode())) > MAX_TEXT:
        raise _invalid("chat_template", f"it has {size:,} bytes, and may have {MAX_TEXT:,}")


def _is_alias(name: str, target: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' is an alias of '{target}'; settings belong to the model itself.", code="model_alias", param="model"
    )


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{field}': {reason}.", code="invalid_value", param=field)
