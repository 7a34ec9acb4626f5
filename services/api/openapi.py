"""The OpenAPI document: `python -m services.api.openapi > openapi.yaml`.

Litestar supplies paths and parameters. Schemas come from msgspec itself, since Litestar's lose the constraints inside
unions, the ban on unknown fields and the discriminators.
"""

import re
import sys
from functools import cache
from typing import Any

import msgspec
import yaml
from litestar import Litestar, MediaType, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from services.api.auth import PUBLIC
from services.api.deps import providers
from services.api.documents import DOCUMENT
from services.api.gateway.anthropic_errors import AnthropicErrorResponse
from services.api.gateway.stored_chat import UpdateCompletion
from services.api.readiness import Health, Report
from services.api.routes import GROUPS
from shared.schemas import organization
from shared.schemas.ab_runs import (
    AbItem,
    AbNext,
    AbReport,
    AbRun,
    AbRunDeleted,
    AbVote,
    CreateAbRun,
    CreateAbVote,
)
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
from shared.schemas.batches import Batch, CreateBatch
from shared.schemas.checkpoints import Checkpoint, CheckpointPermission, GrantPermissions
from shared.schemas.costs import BreakEven, Costs, JobEstimate
from shared.schemas.distillations import CreateDistillation, Distillation, DistillationDeleted
from shared.schemas.errors import ErrorResponse
from shared.schemas.evals import (
    CreateEval,
    CreateEvalRun,
    Eval,
    EvalDeleted,
    EvalRun,
    EvalRunComparison,
    EvalRunDeleted,
    OutputItem,
    UpdateEval,
)
from shared.schemas.events import Event
from shared.schemas.files import File
from shared.schemas.graders import GraderResult, RunGrader, ValidatedGrader, ValidateGrader
from shared.schemas.jobs import CreateJob, Job
from shared.schemas.model_settings import ModelSettings, UpdateModelSettings
from shared.schemas.models import ImportedModel, ImportModel, Model, ModelList
from shared.schemas.paging import CompletionDeleted, Deleted, Page, ResponseDeleted
from shared.schemas.preferences import (
    CreatePreference,
    ExportPreferences,
    Preference,
    PreferenceDeleted,
    PreferenceExport,
)
from shared.schemas.preview import Preview
from shared.schemas.promotions import CreatePromotion, Promotion
from shared.schemas.quality import AliasQuality
from shared.schemas.replays import CreateReplay, PromoteReplay, Replay, ReplayDeleted, ReplayPromotion
from shared.schemas.residency import BringIntoMemory, ModelResidency
from shared.schemas.responses import TokenCount
from shared.schemas.retraining import DecideProposal, RetrainingProposal
from shared.schemas.rollouts import RegradeRollouts, Rollout, RolloutRegrade, RolloutSummary
from shared.schemas.sweeps import CreateSweep, Sweep, SweepDeleted
from shared.schemas.uploads import CompleteUpload, CreateUpload, Upload, UploadPart
from shared.schemas.webhooks import (
    CreateWebhookEndpoint,
    DeletedWebhookEndpoint,
    RotateWebhookSecret,
    TestWebhookEndpoint,
    UpdateWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
    WebhookTestResult,
)

VERSION = "0.1.0"

_TYPES = [
    CreateJob, Job, Event, Checkpoint, File, Model, ModelList, Deleted, ErrorResponse, Health, Report,
    Page[File], Page[Job], Page[Event], Page[Checkpoint], GrantPermissions, CheckpointPermission,
    Page[CheckpointPermission], CreateUpload, CompleteUpload, Upload, UploadPart,
    Page[CheckpointPermission],
    CreateWebhookEndpoint, UpdateWebhookEndpoint, RotateWebhookSecret, TestWebhookEndpoint, WebhookEndpoint,
    WebhookEndpointWithSecret, DeletedWebhookEndpoint, WebhookTestResult, WebhookEventTypeList, Page[WebhookEndpoint],
    UpdateModelSettings, ModelSettings, BringIntoMemory, ModelResidency,
    CreateBatch, Batch, Page[Batch], ImportModel, ImportedModel,
    CreateAlias, UpdateAlias, RollBackAlias, PromoteCanary, Alias, ChangedAlias, DeletedAlias, Page[Alias],
    Page[AliasRevision], AliasTraffic, Page[ShadowPair], DeletedShadowPairs,
    CreatePromotion, Promotion, Page[Promotion], AliasQuality, DecideProposal, RetrainingProposal,
    Page[RetrainingProposal],
    CreateEval, UpdateEval, Eval, Page[Eval], EvalDeleted, CreateEvalRun, EvalRun, EvalRunDeleted, OutputItem,
    EvalRunComparison,
    CreateDistillation, Distillation, Page[Distillation], DistillationDeleted,
    CreateAbRun, AbRun, Page[AbRun], AbRunDeleted, AbItem, AbReport, AbNext, CreateAbVote, AbVote,
    CreatePreference, Preference, Page[Preference], PreferenceDeleted, ExportPreferences, PreferenceExport,
    JobEstimate, BreakEven, Costs, CreateSweep, Sweep, CreateReplay, Replay, PromoteReplay,
    ReplayPromotion, Page[Replay], ReplayDeleted, Page[Sweep], SweepDeleted,
    *organization.TYPES,
    RunGrader, GraderResult, ValidateGrader, ValidatedGrader, Page[Rollout], RolloutSummary,
    RegradeRollouts, RolloutRegrade,
    Preview, UpdateCompletion, CompletionDeleted, ResponseDeleted, TokenCount, AnthropicErrorResponse,
]  # fmt: skip
_REF = "#/components/schemas/{name}"
_QUALIFIED = re.compile(r"(?<=#/components/schemas/)(\w+)_[\w.]+\.(\w+)_\Z")
"""Litestar's name for Page[File] is Page_shared.schemas.files.File_."""
_OURS = "This server"
_SENTENCE_END = re.compile(r"[.;:](?:\s|\Z)")
_NOISE = [("headers", {}), ("allowEmptyValue", False), ("allowReserved", False), ("deprecated", False)]
_ERROR = {
    "description": "Any error",
    "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorResponse")}}},
}


@get("/openapi.json", operation_id="openapi", opt={PUBLIC: True, "response_body": DOCUMENT}, sync_to_thread=True)
def serve_document() -> Response[bytes]:
    """Return this document."""
    return Response(_as_json(), media_type=MediaType.JSON)


def document() -> dict[str, Any]:
    """Build the document; the same code gives the same one."""
    groups: dict[str, list[HTTPRouteHandler]] = {**GROUPS, _OURS: [*GROUPS[_OURS], serve_document]}
    handlers = [handler for group in groups.values() for handler in group]
    config = OpenAPIConfig(
        title="selftune",
        version=VERSION,
        description="OpenAI's fine-tuning API on your own hardware.",
        render_plugins=[JsonRenderPlugin()],
        use_handler_docstrings=True,
    )
    app = Litestar(handlers, dependencies=providers(), openapi_config=config, logging_config=None)
    schema: dict[str, Any] = app.openapi_schema.to_schema()
    by_id = {str(handler.operation_id): (tag, handler) for tag, group in groups.items() for handler in group}
    for operations in schema["paths"].values():
        for operation in operations.values():
            tag, handler = by_id[operation["operationId"]]
            operation |= {"tags": [tag], "summary": _SENTENCE_END.split(operation["description"])[0]}
            _complete(operation, handler)
    schema["tags"] = [{"name": tag} for tag in groups]
    schema["components"] = {
        "schemas": msgspec.json.schema_components(_TYPES, ref_template=_REF)[1],
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    schema["security"] = [{"key": []}]
    completed: dict[str, Any] = _plain(schema)
    return completed


def _complete(operation: dict[str, Any], handler: HTTPRouteHandler) -> None:
    """Add what only the handler's options say: bodies, errors, and whether a key is needed."""
    opt = handler.opt
    if "query" in opt:
        operation["parameters"] = [*operation.get("parameters", []), *opt["query"]]
    if "request_body" in opt:
        operation["requestBody"] = opt["request_body"]
    operation["responses"] = {
        # without headers: Litestar gives a file's last-modified the format of a JSON date
        status: {name: part for name, part in response.items() if name != "headers"}
        for status, response in operation["responses"].items()
        if status.startswith("2")
    }
    if "response_body" in opt:
        answered = next(status for status in operation["responses"] if status.startswith("2"))
        operation["responses"][answered].update({"content": opt["response_body"]["content"]})
    operation["responses"].update(opt.get("more_responses", {}))
    operation["responses"]["default"] = opt.get("error_body", _ERROR)
    if opt.get(PUBLIC):
        operation["security"] = []


def _plain(value: Any) -> Any:
    """Copy, so that YAML writes no anchors, without Litestar's empty extras and with msgspec's names for generics."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if (key, item) not in _NOISE}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _QUALIFIED.sub(r"\1_\2_", value)
    return value


@cache
def _as_json() -> bytes:
    return msgspec.json.encode(document())


def main() -> None:
    yaml.safe_dump(document(), sys.stdout, sort_keys=True, allow_unicode=True, width=120)


if __name__ == "__main__":
    main()
