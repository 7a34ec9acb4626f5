"""/v1/aliases: names that point to models, with canary, shadow, history and live statistics"""

import time
from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.aliases.audience import readable_pairs
from services.api.aliases.management import Aliases
from services.api.aliases.promotions import Promotions
from services.api.aliases.statistics import statistics
from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import cut, page
from shared.records import KeyRecord
from shared.schemas.aliases import (
    Alias,
    AliasRevision,
    AliasTraffic,
    ChangedAlias,
    CreateAlias,
    DeletedAlias,
    DeletedShadowPairs,
    PromoteCanary,
    RollBackAlias,
    ShadowPair,
    UpdateAlias,
)
from shared.schemas.paging import Page
from shared.settings import Settings
from shared.store.alias_traffic import TrafficStore
from shared.store.aliases import AliasStore
from shared.store.registry import Registry
from shared.store.shadow_pairs import PairStore

_CREATE = msgspec.json.Decoder(CreateAlias)
_UPDATE = msgspec.json.Decoder(UpdateAlias)
_ROLL_BACK = msgspec.json.Decoder(RollBackAlias)
_PROMOTE = msgspec.json.Decoder(PromoteCanary)

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@post("/v1/aliases", status_code=200, operation_id="createAlias", opt={"request_body": json_body("CreateAlias")})
async def create_alias(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    aliases: NamedDependency[Aliases],
) -> ChangedAlias:
    """Give a model a name of the project's own; requests may name that instead of the model."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await aliases.create(wanted, caller=caller)


@get("/v1/aliases", operation_id="listAliases")
async def list_aliases(
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[Alias]:
    """List the project's aliases, newest first."""
    records, more = await alias_store.list(caller.project, after=after or None, limit=limit)
    return page([record.public() for record in records], has_more=more)


@get("/v1/aliases/{alias:str}", operation_id="retrieveAlias")
async def retrieve_alias(
    alias: FromPath[str], caller: NamedDependency[KeyRecord], alias_store: NamedDependency[AliasStore]
) -> Alias:
    """Look an alias up."""
    return (await alias_store.get(alias, project=caller.project)).public()


@post(
    "/v1/aliases/{alias:str}",
    status_code=200,
    operation_id="updateAlias",
    opt={"request_body": json_body("UpdateAlias")},
)
async def update_alias(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    aliases: NamedDependency[Aliases],
) -> ChangedAlias:
    """Point an alias to another model, or change its canary, shadow, watch or description; what is left out stays."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _UPDATE)
    return await aliases.update(alias, wanted, caller=caller)


@delete("/v1/aliases/{alias:str}", status_code=200, operation_id="deleteAlias")
async def delete_alias(
    alias: FromPath[str], caller: NamedDependency[KeyRecord], promotions: NamedDependency[Promotions]
) -> DeletedAlias:
    """Delete an alias with its history, its promotions, and what was kept of its traffic; the models stay."""
    await promotions.delete_alias(alias, project=caller.project)
    return DeletedAlias(id=alias)


@post(
    "/v1/aliases/{alias:str}/promote",
    status_code=200,
    operation_id="promoteCanary",
    opt={"request_body": {**json_body("PromoteCanary"), "required": False}},
)
async def promote_canary(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    aliases: NamedDependency[Aliases],
) -> ChangedAlias:
    """Point an alias to its canary."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes) or b"{}", _PROMOTE)
    return await aliases.promote(alias, wanted, caller=caller)


@post(
    "/v1/aliases/{alias:str}/rollback",
    status_code=200,
    operation_id="rollBackAlias",
    opt={"request_body": {**json_body("RollBackAlias"), "required": False}},
)
async def roll_back_alias(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    aliases: NamedDependency[Aliases],
) -> ChangedAlias:
    """Point an alias to the model before, or to that of a revision, and take its canary out."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes) or b"{}", _ROLL_BACK)
    return await aliases.roll_back(alias, wanted, caller=caller)


@get("/v1/aliases/{alias:str}/history", operation_id="listAliasHistory")
async def list_history(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[AliasRevision]:
    """List the last 200 changes of an alias, newest first: who, when, from which model to which, and why."""
    record = await alias_store.get(alias, project=caller.project)
    return cut(await alias_store.history(record.uid), after=after or None, limit=limit)


@get("/v1/aliases/{alias:str}/traffic", operation_id="retrieveAliasTraffic")
async def retrieve_traffic(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    alias_traffic: NamedDependency[TrafficStore],
    window_s: Annotated[int, QueryParameter(ge=10, le=3600)] = 300,
) -> AliasTraffic:
    """Tell how each model of an alias did in the last `window_s` seconds."""
    record = await alias_store.get(alias, project=caller.project)
    return await statistics(record, alias_traffic, window_s=window_s)


@get("/v1/aliases/{alias:str}/shadow_pairs", operation_id="listShadowPairs")
async def list_shadow_pairs(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    shadow_pairs: NamedDependency[PairStore],
    registry: NamedDependency[Registry],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[ShadowPair]:
    """List what clients got and what the shadow answered to the same requests, newest first.

    Those of models that the key may not use are left out.
    """
    record = await alias_store.get(alias, project=caller.project)
    pairs, more = await readable_pairs(
        shadow_pairs, registry, record.uid, caller.access, after=after or None, limit=limit, now=time.time()
    )
    return page(pairs, has_more=more)


@delete("/v1/aliases/{alias:str}/shadow_pairs", status_code=200, operation_id="deleteShadowPairs")
async def delete_shadow_pairs(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    shadow_pairs: NamedDependency[PairStore],
) -> DeletedShadowPairs:
    """Forget all of them."""
    await shadow_pairs.clear((await alias_store.get(alias, project=caller.project)).uid)
    return DeletedShadowPairs(id=alias)


ROUTES = [
    create_alias, list_aliases, retrieve_alias, update_alias, delete_alias, promote_canary, roll_back_alias,
    list_history, retrieve_traffic, list_shadow_pairs, delete_shadow_pairs,
]  # fmt: skip
