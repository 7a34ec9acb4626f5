"""/v1/preferences: what was said of answers, and training files of it."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.bodies import decode, read_json
from services.api.documents import METADATA, json_body
from services.api.idempotency import object_id_for
from services.api.listing import metadata_filter, page
from services.api.preferences.creation import MAX_BYTES, Preferences
from services.api.preferences.export import Exports
from shared import ids
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.preferences import ExportPreferences, Preference, PreferenceDeleted, PreferenceExport
from shared.settings import Settings
from shared.store.idempotency import IdempotencyStore
from shared.store.preferences import PreferenceStore, Wanted

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]
Order: TypeAlias = FromQuery[Literal["asc", "desc"]]

_EXPORT = msgspec.json.Decoder(ExportPreferences)


@post(
    "/v1/preferences",
    status_code=201,
    operation_id="createPreference",
    opt={"request_body": json_body("CreatePreference")},
)
async def create_preference(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    idempotency: NamedDependency[IdempotencyStore],
    preferences: NamedDependency[Preferences],
    preference_store: NamedDependency[PreferenceStore],
) -> Preference:
    """Keep what somebody said of answers; with an `Idempotency-Key`, asking twice gives the same preference."""
    body = await read_json(request, limit=min(settings.max_body_bytes, MAX_BYTES))
    wanted = preferences.check(body)
    preference_id = await object_id_for(
        request,
        idempotency,
        project=caller.project,
        kind="preference",
        body=body,
        new_id=ids.new_preference_id(),
        look=preference_store.find,
    )
    return (await preferences.create(wanted, body, project=caller.project, preference_id=preference_id)).public()


@get("/v1/preferences", operation_id="listPreferences", opt={"query": [METADATA]})
async def list_preferences(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    preference_store: NamedDependency[PreferenceStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    order: Order = "asc",
    source: FromQuery[str | None] = None,
    voter: FromQuery[str | None] = None,
) -> Page[Preference]:
    """List preferences, oldest first unless `order` is `desc`; `source`, `voter`, `metadata[key]=value` keep some."""
    wanted = Wanted(source=source or None, voter=voter or None, metadata=metadata_filter(request.query_params) or {})
    records, more = await preference_store.list(
        caller.project, wanted, after=after or None, limit=limit, newest_first=order == "desc"
    )
    return page([record.public() for record in records], has_more=more)


@get("/v1/preferences/{preference_id:str}", operation_id="getPreference")
async def retrieve_preference(
    preference_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    preference_store: NamedDependency[PreferenceStore],
) -> Preference:
    """Look a preference up."""
    return (await preference_store.get(preference_id, project=caller.project)).public()


@delete("/v1/preferences/{preference_id:str}", status_code=200, operation_id="deletePreference")
async def delete_preference(
    preference_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    preference_store: NamedDependency[PreferenceStore],
) -> PreferenceDeleted:
    """Delete a preference; files that were made of it stay."""
    await preference_store.remove(preference_id, project=caller.project)
    return PreferenceDeleted(id=preference_id)


@post(
    "/v1/preferences/export",
    status_code=201,
    operation_id="exportPreferences",
    opt={"request_body": json_body("ExportPreferences")},
)
async def export_preferences(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    preference_exports: NamedDependency[Exports],
) -> PreferenceExport:
    """Make a training file of stored preferences, or of what was said in an A/B run."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _EXPORT)
    return await preference_exports.export(wanted, project=caller.project)


ROUTES = [create_preference, list_preferences, retrieve_preference, delete_preference, export_preferences]
