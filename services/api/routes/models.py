"""/v1/models. Ids hold colons and slashes."""

from typing import Any

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.api.adapters.importing import AdapterImports, read_import
from services.api.bodies import read_json
from services.api.documents import json_body
from services.api.gateway.model_names import ModelNames
from services.api.idempotency import object_id_for
from services.api.model_deletion import ModelDeletion
from services.api.model_paths import model_id
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.models import ImportedModel, Model, ModelList
from shared.schemas.paging import Deleted
from shared.settings import Settings
from shared.store.aliases import AliasStore
from shared.store.idempotency import IdempotencyStore
from shared.store.registry import Registry


@post("/v1/models", status_code=200, operation_id="importModel", opt={"request_body": json_body("ImportModel")})
async def import_model(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    adapter_imports: NamedDependency[AdapterImports],
    registry: NamedDependency[Registry],
) -> ImportedModel:
    """Make a fine-tuned model of an uploaded PEFT adapter; with an `Idempotency-Key`, asking twice gives the same.

    The files are not needed any more afterwards.
    """
    project = caller.project
    body = await read_json(request, limit=settings.max_body_bytes)
    wanted = read_import(body)
    new_name = await adapter_imports.new_name(wanted, access=caller.access)
    name = await object_id_for(
        request, idempotency, project=project, kind="model", body=body, new_id=new_name, look=registry.get
    )
    return await adapter_imports.create(wanted, name=name, access=caller.access)


@get("/v1/models", operation_id="listModels")
async def list_models(caller: NamedDependency[KeyRecord], names: NamedDependency[ModelNames]) -> ModelList:
    """List base models, the project's fine-tuned ones, those shared with it, their aliases: what the key may use."""
    return ModelList(data=await names.listed(caller.access))


@get("/v1/models/{model:str}", operation_id="retrieveModel")
async def retrieve_model(
    model: FromPath[str], caller: NamedDependency[KeyRecord], names: NamedDependency[ModelNames]
) -> Model:
    """Look a model up."""
    return await names.shown(model_id(model), caller.access)


@delete("/v1/models/{model:str}", status_code=200, operation_id="deleteModel")
async def delete_model(
    model: FromPath[str],
    caller: NamedDependency[KeyRecord],
    registry: NamedDependency[Registry],
    names: NamedDependency[ModelNames],
    alias_store: NamedDependency[AliasStore],
    model_deletion: NamedDependency[ModelDeletion],
) -> Deleted:
    """Delete a fine-tuned model; it stops answering at once.

    The weights of a whole model go with it; refused while there are adapters on it, and for the server's own base, and
    while an alias of the project points to it or has it as its canary.
    """
    name = model_id(model)
    if names.is_alias(name):
        await names.look_up(name, caller.access)  # what it stands for is for those alone who may use it
        raise InvalidRequest(
            f"'{name}' is an alias of '{names.target(name)}'; aliases are the operator's setting and are not deleted.",
            code="model_alias",
            param="model",
        )
    base = await registry.base(name)
    if base is not None and not base.origin:
        raise InvalidRequest(
            f"'{name}' is a base model; only fine-tuned models can be deleted.", code="base_model", param="model"
        )
    if (await registry.get(name)) is None and await alias_store.find(name, project=caller.project) is not None:
        raise InvalidRequest(
            f"'{name}' is an alias; delete it at /v1/aliases/{name}.", code="model_alias", param="model"
        )
    await model_deletion.delete(await registry.owned(name, caller.access))
    return Deleted(id=name, object="model")


ROUTES = [import_model, list_models, retrieve_model, delete_model]
