"""/v1/aliases/{alias}/quality and proposals: what an alias's monitor has seen, and what it proposes"""

from typing import Annotated, Any, TypeAlias

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from services.api.aliases.proposals import Proposals
from services.api.aliases.watching import Watching
from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.listing import cut
from shared.errors import InvalidRequest
from shared.records import KeyRecord
from shared.schemas.paging import Page
from shared.schemas.quality import AliasQuality
from shared.schemas.retraining import DecideProposal, RetrainingProposal
from shared.settings import Settings
from shared.store.aliases import AliasStore
from shared.store.proposals import ProposalStore

_DECIDE = msgspec.json.Decoder(DecideProposal)
_PROPOSALS = "/v1/aliases/{alias:str}/proposals"
_BODY = {"request_body": {**json_body("DecideProposal"), "required": False}}

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=100)]


@get("/v1/aliases/{alias:str}/quality", operation_id="retrieveAliasQuality")
async def retrieve_quality(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    watching: NamedDependency[Watching],
) -> AliasQuality:
    """Tell how an alias has been answering: scores with intervals, drift, alarms."""
    record = await alias_store.get(alias, project=caller.project)
    if record.monitor is None:
        raise InvalidRequest(f"The alias '{alias}' has no monitor; set one first.", code="no_monitor", param="alias")
    return await watching.shown(record)


@get(_PROPOSALS, operation_id="listRetrainingProposals")
async def list_proposals(
    alias: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    proposal_store: NamedDependency[ProposalStore],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
) -> Page[RetrainingProposal]:
    """List proposals to train an alias's model again, newest first."""
    record = await alias_store.get(alias, project=caller.project)
    found = [one.public() for one in await proposal_store.all(record.uid)]
    return cut(found, after=after or None, limit=limit)


@get(f"{_PROPOSALS}/{{proposal_id:str}}", operation_id="retrieveRetrainingProposal")
async def retrieve_proposal(
    alias: FromPath[str],
    proposal_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    alias_store: NamedDependency[AliasStore],
    proposal_store: NamedDependency[ProposalStore],
) -> RetrainingProposal:
    """Look a proposal up."""
    record = await alias_store.get(alias, project=caller.project)
    return (await proposal_store.get(record.uid, proposal_id)).public()


@post(
    f"{_PROPOSALS}/{{proposal_id:str}}/approve",
    status_code=200,
    operation_id="approveRetrainingProposal",
    opt=_BODY,
)
async def approve_proposal(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    proposal_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    alias_store: NamedDependency[AliasStore],
    proposals: NamedDependency[Proposals],
) -> RetrainingProposal:
    """Create the fine-tuning job that is proposed, within the monitor's budget."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes) or b"{}", _DECIDE)
    record = await alias_store.get(alias, project=caller.project)
    return (await proposals.approve(record, proposal_id, caller=caller, reason=wanted.reason)).public()


@post(
    f"{_PROPOSALS}/{{proposal_id:str}}/dismiss",
    status_code=200,
    operation_id="dismissRetrainingProposal",
    opt=_BODY,
)
async def dismiss_proposal(
    request: Request[Any, Any, Any],
    alias: FromPath[str],
    proposal_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    alias_store: NamedDependency[AliasStore],
    proposals: NamedDependency[Proposals],
) -> RetrainingProposal:
    """Say no to a proposal; the next alarm may bring another one."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes) or b"{}", _DECIDE)
    record = await alias_store.get(alias, project=caller.project)
    return (await proposals.dismiss(record, proposal_id, caller=caller, reason=wanted.reason)).public()


ROUTES = [retrieve_quality, list_proposals, retrieve_proposal, approve_proposal, dismiss_proposal]
