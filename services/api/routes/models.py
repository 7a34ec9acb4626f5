"""/v1/models. Ids hold colons and slashes, so the rest of the path is the id."""

import structlog
from litestar import delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.models import Model, ModelList
from shared.schemas.paging import Deleted
from shared.settings import Settings
from shared.store.registry import Registry, unknown_model

_log = structlog.get_logger()


@get("/v1/models", operation_id="listModels")
async def list_models(
    caller: NamedDependency[KeyRecord], registry: NamedDependency[Registry], settings: NamedDependency[Settings]
) -> ModelList:
    """List base models and the project's fine-tuned ones."""
    bases = [base.public() for base in await registry.bases()]
    tuned = [adapter.public(settings.organization) for adapter in await registry.listed(caller.project)]
    return ModelList(data=[*bases, *tuned])


@get("/v1/models/{model:path}", operation_id="retrieveModel")
async def retrieve_model(
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    registry: NamedDependency[Registry],
    settings: NamedDependency[Settings],
) -> Model:
    """Look a model up."""
    name = model.removeprefix("/")
    base = await registry.base(name)
    if base is not None:
        return base.public()
    adapter = await registry.usable(name, caller.project)
    if adapter is None:
        raise unknown_model(name)
    return adapter.public(settings.organization)


@delete("/v1/models/{model:path}", status_code=200, operation_id="deleteModel")
async def delete_model(
    model: FromPath[str], caller: NamedDependency[KeyRecord], registry: NamedDependency[Registry]
) -> Deleted:
    """Delete a fine-tuned model; it stops answering at once."""
    name = model.removeprefix("/")
    if await registry.base(name) is not None:
        raise InvalidRequest(
            f"'{name}' is a base model; only fine-tuned models can be deleted.", code="base_model", param="model"
        )
    await registry.owned(name, caller.project)
    await registry.retire(name)
    _log.info("model.deleted", model=name)
    return Deleted(id=name, object="model")


ROUTES = [list_models, retrieve_model, delete_model]
