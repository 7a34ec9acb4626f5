"""/v1/fine_tuning/alpha/graders: trying a grader out before a job or an eval uses it."""

from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency

from services.api.bodies import decode, read_json
from services.api.documents import json_body
from services.api.gateway.relay import unless_gone
from services.api.graders.running import Graders
from services.api.limits import read_prompt
from shared.records import KeyRecord
from shared.schemas.graders import GraderResult, RunGrader, ValidatedGrader, ValidateGrader
from shared.settings import Settings

_RUN = msgspec.json.Decoder(RunGrader)
_VALIDATE = msgspec.json.Decoder(ValidateGrader)


@post(
    "/v1/fine_tuning/alpha/graders/run",
    status_code=200,
    operation_id="runGrader",
    opt={"request_body": json_body("RunGrader")},
)
async def run_grader(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    graders: NamedDependency[Graders],
) -> GraderResult:
    """Grade one sample; what goes wrong on the way is in `metadata.errors` of an answer that is 200 all the same."""
    asked = decode(await read_prompt(request, limit=settings.max_body_bytes), _RUN)
    return await unless_gone(graders.run(asked, caller.access), request.receive)


@post(
    "/v1/fine_tuning/alpha/graders/validate",
    status_code=200,
    operation_id="validateGrader",
    opt={"request_body": json_body("ValidateGrader")},
)
async def validate_grader(
    request: Request[Any, Any, Any],
    settings: NamedDependency[Settings],
    graders: NamedDependency[Graders],
) -> ValidatedGrader:
    """Say whether a grader is sound: its templates, formula, labels and program; no judge is asked."""
    asked = decode(await read_json(request, limit=settings.max_body_bytes), _VALIDATE)
    await graders.check(asked.grader)
    return ValidatedGrader(grader=asked.grader)


ROUTES = [run_grader, validate_grader]
