"""Settings of fine-tuned models; Registry.find reads them with the model, Registry.retire forgets them with it."""

from __future__ import annotations

from collections.abc import Callable

from shared import keys
from shared.model_records import STORED, ModelSettingsRecord, read_settings, written_settings
from shared.store.client import Client
from shared.store.registry import unknown_model


class ModelSettingsStore:
    """Settings by model; one that has none has those of revision 0."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, model: str) -> ModelSettingsRecord:
        stored = await self._client.call("HMGET", keys.model_settings(model), *STORED)
        return read_settings(stored) or ModelSettingsRecord()

    async def update(
        self, model: str, change: Callable[[ModelSettingsRecord], ModelSettingsRecord]
    ) -> ModelSettingsRecord:
        """Apply `change`, which raises the revision, to the newest settings, again whenever somebody else wrote first.

        Settings that it gives back as they are stay as they are. Raises NotFound when the model is gone.
        """
        while True:
            current = await self.get(model)
            changed = change(current)
            if changed == current:
                return current
            outcome = await self._client.script(
                "save_model_settings",
                [keys.model_settings(model), keys.adapter(model)],
                [current.revision, changed.revision, *written_settings(changed)],
            )
            if outcome == -1:
                raise unknown_model(model)
            if outcome:
                return changed
