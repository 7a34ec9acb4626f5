"""Deleting a fine-tuned model: refused while something stands on it, else it stops answering at once."""

from __future__ import annotations

from contextlib import suppress

import structlog

from services.api.aliases.management import Aliases
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, StorageUnavailable
from shared.records import AdapterRecord
from shared.settings import Settings
from shared.store.registry import Registry

_log = structlog.get_logger()


class ModelDeletion:
    """Deletes models of projects."""

    def __init__(self, settings: Settings, registry: Registry, aliases: Aliases, blobs: Blobs) -> None:
        self._settings = settings
        self._registry = registry
        self._aliases = aliases
        self._blobs = blobs

    async def delete(self, record: AdapterRecord) -> None:
        """Delete a model; twice is the same as once. The weights of a whole model go with it.

        Raises InvalidRequest with code `model_in_use` while an alias of its project goes to it, there are adapters on
        it, or it is the server's own base.
        """
        await self._aliases.check_unused(record.name, project=record.project)
        if record.whole:
            await self._check_unused_base(record.name)
        await self._registry.retire(record.name)
        if record.whole:
            with suppress(StorageUnavailable):  # the trainer looks every hour for what is left
                await self._blobs.remove(self._blobs.paths.whole_model_folder(record.job_id))
        _log.info("model.deleted", model=record.name)

    async def _check_unused_base(self, name: str) -> None:
        """Raise InvalidRequest for a whole model that others stand on: without it they could never be served again."""
        adapters = await self._registry.on_base(name)
        if adapters:
            raise InvalidRequest(
                f"'{name}' is the base of {len(adapters)} fine-tuned model(s), which could not be served without it; "
                "delete them first.",
                code="model_in_use",
                param="model",
            )
        if name == self._settings.public_base_id:
            raise InvalidRequest(
                f"'{name}' is the base that this server serves; the operator sets another base_model first.",
                code="model_in_use",
                param="model",
            )
