"""What a model's name means: a base, a fine-tuned model, or an alias that operator or project have given to these."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from shared.alias_records import AliasRecord, is_alias_name
from shared.errors import NotFound
from shared.model_records import Access, ModelSettingsRecord
from shared.records import AdapterRecord, BaseRecord
from shared.schemas.models import Model
from shared.store.aliases import AliasStore
from shared.store.registry import Known, Registry, unknown_model


class Meaning(Struct, frozen=True):
    """A name that a key may use, looked up."""

    target: str
    """The model's own name; another one than was asked for when that was an alias."""
    model: BaseRecord | AdapterRecord
    settings: ModelSettingsRecord | None = None
    """What its owner has set; None where nothing was set."""
    alias: AliasRecord | None = None
    """The project's alias that was asked for; the other fields are about the model that it points to."""
    canary: Meaning | None = None
    shadow: Meaning | None = None
    """The other models of that alias, as far as the project may use them."""

    @property
    def base(self) -> str:
        return self.model.id if isinstance(self.model, BaseRecord) else self.model.served_on


class ModelNames:
    """Looks names up. The operator's aliases come first, then models, then the project's aliases.

    All are taken as written: upper and lower case differ, and one alias does not lead to another.
    """

    def __init__(
        self, registry: Registry, project_aliases: AliasStore, aliases: Mapping[str, str], *, organization: str
    ) -> None:
        self._registry = registry
        self._project_aliases = project_aliases
        self._aliases = aliases
        self._organization = organization

    def target(self, name: str) -> str:
        """Return the model that a name stands for: that of the operator's alias, else the name itself."""
        return self._aliases.get(name, name)

    def is_alias(self, name: str) -> bool:
        """Whether a name is an alias of the operator's."""
        return name in self._aliases

    async def look_up(self, name: str, access: Access) -> Meaning:
        """Return what a name means to a key, in one round trip. Raises NotFound that has the name as it was given.

        A base comes before a fine-tuned model of the same name.
        """
        target = self.target(name)
        found = await self._registry.find(target, access, alias=not self.is_alias(name) and is_alias_name(name))
        if found.own is not None:
            return _plain(target, found.own)
        if found.alias is None or found.alias.target in found.hidden:
            raise unknown_model(name)
        return _pointed(found.alias, found.named)

    async def shown(self, name: str, access: Access) -> Model:
        """Describe one model under the name that was asked for. Raises NotFound."""
        return self._public(name, (await self.look_up(name, access)).model)

    async def listed(self, access: Access) -> list[Model]:
        """List bases, the fine-tuned models of the project and shared with it that the key may use, their aliases.

        Each name is listed as look_up() takes it: the operator's alias comes before a model of the same name, also
        where the key may not use its target, and a model before the project's alias.
        """
        models: list[BaseRecord | AdapterRecord] = [*await self._registry.bases()]
        models += await self._registry.visible(access)
        by_name = {model.id if isinstance(model, BaseRecord) else model.name: model for model in models}
        aliases = {name: by_name[target] for name, target in self._aliases.items() if target in by_name}
        own = await self._project_aliases.all(access.project)
        theirs = {alias.name: by_name[alias.target] for alias in own if alias.target in by_name}
        shown = {name: model for name, model in by_name.items() if name not in self._aliases} | aliases
        taken = by_name.keys() | self._aliases.keys()
        shown |= {name: model for name, model in theirs.items() if name not in taken}
        return [self._public(name, model) for name, model in shown.items()]

    def _public(self, name: str, model: BaseRecord | AdapterRecord) -> Model:
        return replace(model.public(self._organization), id=name)


def _pointed(alias: AliasRecord, models: Mapping[str, Known]) -> Meaning:
    """Raises NotFound that names alias and model when the model that it points to is gone."""
    target = models.get(alias.target)
    if target is None:
        raise NotFound(
            f"The alias '{alias.name}' points to the model '{alias.target}', which does not exist any more or is not "
            "shared with this project any more; point the alias to another model.",
            code="model_not_found",
            param="model",
        )
    canary = None if alias.canary is None else models.get(alias.canary.model)
    shadow = None if alias.shadow is None else models.get(alias.shadow.model)
    return Meaning(
        alias.target,
        target.model,
        target.settings,
        alias=alias,
        canary=None if canary is None or alias.canary is None else _plain(alias.canary.model, canary),
        shadow=None if shadow is None or alias.shadow is None else _plain(alias.shadow.model, shadow),
    )


def _plain(name: str, known: Known) -> Meaning:
    return Meaning(name, known.model, known.settings)
