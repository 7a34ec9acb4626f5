"""/v1/uploads"""

from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.api.bodies import decode, read_json
from services.api.documents import PART, json_body
from services.api.files.chunked_uploads import ChunkedUploads
from shared.records import KeyRecord
from shared.schemas.uploads import CompleteUpload, CreateUpload, Upload, UploadPart
from shared.settings import Settings

_CREATE = msgspec.json.Decoder(CreateUpload)
_COMPLETE = msgspec.json.Decoder(CompleteUpload)


@post("/v1/uploads", status_code=200, operation_id="createUpload", opt={"request_body": json_body("CreateUpload")})
async def create_upload(
    request: Request[Any, Any, Any],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    chunked: NamedDependency[ChunkedUploads],
) -> Upload:
    """Announce a large file; its parts have an hour to arrive."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _CREATE)
    return await chunked.begin(wanted, project=caller.project)


@post(
    "/v1/uploads/{upload_id:str}/parts",
    status_code=200,
    operation_id="addUploadPart",
    opt={"request_body": PART},
)
async def add_part(
    request: Request[Any, Any, Any],
    upload_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    chunked: NamedDependency[ChunkedUploads],
) -> UploadPart:
    """Send a part of at most 64 MiB; parts may come in any order and at the same time."""
    return (await chunked.add_part(request, upload_id, project=caller.project)).public()


@post(
    "/v1/uploads/{upload_id:str}/complete",
    status_code=200,
    operation_id="completeUpload",
    opt={"request_body": json_body("CompleteUpload")},
)
async def complete_upload(
    request: Request[Any, Any, Any],
    upload_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    settings: NamedDependency[Settings],
    chunked: NamedDependency[ChunkedUploads],
) -> Upload:
    """Make a file of the parts, in the order given; completing twice gives the same file."""
    wanted = decode(await read_json(request, limit=settings.max_body_bytes), _COMPLETE)
    return await chunked.complete(upload_id, wanted, project=caller.project)


@post("/v1/uploads/{upload_id:str}/cancel", status_code=200, operation_id="cancelUpload")
async def cancel_upload(
    upload_id: FromPath[str], caller: NamedDependency[KeyRecord], chunked: NamedDependency[ChunkedUploads]
) -> Upload:
    """Give an upload up and delete its parts."""
    return await chunked.cancel(upload_id, project=caller.project)


ROUTES = [create_upload, add_part, complete_upload, cancel_upload]
