"""What a model's name means: a base, a fine-tuned model, or an alias that the operator has given to one of these."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from shared.model_records import Access, ModelSettingsRecord
from shared.records import AdapterRecord, BaseRecord
from shared.schemas.models import Model
from shared.store.registry import Registry, unknown_model


class Meaning(Struct, frozen=True):
    """A name that a key may use, looked up."""

    target: str
    """The model's own name; another one than was asked for when that was an alias."""
    model: BaseRecord | AdapterRecord
    settings: ModelSettingsRecord | None = None
    """What its owner has set; None where nothing was set."""

    @property
    def base(self) -> str:
        return self.model.id if isinstance(self.model, BaseRecord) else self.model.base


class ModelNames:
    """Looks names up. Aliases are taken as written: upper and lower case differ, and one does not lead to another."""

    def __init__(self, registry: Registry, aliases: Mapping[str, str], *, organization: str) -> None:
        self._registry = registry
        self._aliases = aliases
        self._organization = organization

    def target(self, name: str) -> str:
        """Return the model that a name stands for: the alias's, else the name itself."""
        return self._aliases.get(name, name)

    def is_alias(self, name: str) -> bool:
        return name in self._aliases

    async def look_up(self, name: str, access: Access) -> Meaning:
        """Return what a name means to a key, in one round trip. Raises NotFound that has the name as it was given.

        A base comes before a fine-tuned model of the same name.
        """
        target = self.target(name)
        found = await self._registry.find(target, access)
        if found is None:
            raise unknown_model(name)
        return Meaning(target, found.model, found.settings)

    async def shown(self, name: str, access: Access) -> Model:
        """Describe one model under the name that was asked for. Raises NotFound."""
        return self._public(name, (await self.look_up(name, access)).model)

    async def listed(self, access: Access) -> list[Model]:
        """List bases, the fine-tuned models of the project and shared with it that the key may use, their aliases."""
        models: list[BaseRecord | AdapterRecord] = [*await self._registry.bases()]
        models += await self._registry.visible(access)
        by_name = {model.id if isinstance(model, BaseRecord) else model.name: model for model in models}
        aliases = {name: by_name[target] for name, target in self._aliases.items() if target in by_name}
        return [self._public(name, model) for name, model in (by_name | aliases).items()]

    def _public(self, name: str, model: BaseRecord | AdapterRecord) -> Model:
        return replace(model.public(self._organization), id=name)
