"""/v1/models. Ids hold colons and slashes, so the rest of the path is the id."""

import structlog
from litestar import delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.api.gateway.model_names import ModelNames
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.models import Model, ModelList
from shared.schemas.paging import Deleted
from shared.store.registry import Registry

_log = structlog.get_logger()


@get("/v1/models", operation_id="listModels")
async def list_models(caller: NamedDependency[KeyRecord], names: NamedDependency[ModelNames]) -> ModelList:
    """List base models, the project's fine-tuned ones, those shared with it, and their aliases."""
    return ModelList(data=await names.listed(caller.project))


@get("/v1/models/{model:path}", operation_id="retrieveModel")
async def retrieve_model(
    model: FromPath[str], caller: NamedDependency[KeyRecord], names: NamedDependency[ModelNames]
) -> Model:
    """Look a model up."""
    return await names.shown(model.removeprefix("/"), caller.project)


@delete("/v1/models/{model:path}", status_code=200, operation_id="deleteModel")
async def delete_model(
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    registry: NamedDependency[Registry],
    names: NamedDependency[ModelNames],
) -> Deleted:
    """Delete a fine-tuned model; it stops answering at once."""
    name = model.removeprefix("/")
    if names.is_alias(name):
        await names.look_up(name, caller.project)  # what it stands for is for those alone who may use it
        raise InvalidRequest(
            f"'{name}' is an alias of '{names.target(name)}'; aliases are the operator's setting and are not deleted.",
            code="model_alias",
            param="model",
        )
    if await registry.base(name) is not None:
        raise InvalidRequest(
            f"'{name}' is a base model; only fine-tuned models can be deleted.", code="base_model", param="model"
        )
    await registry.owned(name, caller.project)
    await registry.retire(name)
    _log.info("model.deleted", model=name)
    return Deleted(id=name, object="model")


ROUTES = [list_models, retrieve_model, delete_model]
