"""/v1/files"""

import asyncio
import base64
from typing import Annotated, Any, Literal

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import File as FileResponse
from litestar.response import Stream

from services.api.documents import BINARY, UPLOAD
from services.api.files.names import attachment
from services.api.files.uploads import Uploads
from services.api.listing import page
from shared.blobs.interface import Blobs, read_whole
from shared.errors import NotFound
from shared.records import KeyRecord
from shared.schemas.files import File
from shared.schemas.paging import Deleted, Page
from shared.settings import Settings
from shared.store.files import FileStore

_BYTES = "application/octet-stream"


@post("/v1/files", status_code=200, operation_id="createFile", opt={"request_body": UPLOAD})
async def create_file(
    request: Request[Any, Any, Any], caller: NamedDependency[KeyRecord], uploads: NamedDependency[Uploads]
) -> File:
    """Upload a file; it becomes visible when it is whole and on disk."""
    return (await uploads.receive(request, project=caller.project)).public()


@get("/v1/files", operation_id="listFiles")
async def list_files(
    caller: NamedDependency[KeyRecord],
    files: NamedDependency[FileStore],
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 10_000,
    after: FromQuery[str | None] = None,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
    purpose: FromQuery[str | None] = None,
) -> Page[File]:
    """List files, newest first unless `order` is `asc`."""
    records, more = await files.list(
        caller.project, after=after or None, limit=limit, purpose=purpose or None, newest_first=order == "desc"
    )
    return page([record.public() for record in records], has_more=more)


@get("/v1/files/{file_id:str}", operation_id="retrieveFile")
async def retrieve_file(
    file_id: FromPath[str], caller: NamedDependency[KeyRecord], files: NamedDependency[FileStore]
) -> File:
    """Look a file up."""
    return (await files.get(file_id, project=caller.project)).public()


@get("/v1/files/{file_id:str}/content", operation_id="downloadFile", opt={"response_body": BINARY})
async def download_file(
    file_id: FromPath[str],
    caller: NamedDependency[KeyRecord],
    files: NamedDependency[FileStore],
    blobs: NamedDependency[Blobs],
    settings: NamedDependency[Settings],
) -> FileResponse | Stream | Response[bytes]:
    """Download a file's bytes as they came in; a job's result file as base64 text, unless that is switched off."""
    record = await files.get(file_id, project=caller.project)
    content = blobs.paths.file_content(record.id)
    headers = {"content-disposition": attachment(record.filename)}
    try:
        if record.purpose == "fine-tune-results" and settings.result_files_base64:
            text = base64.b64encode(await read_whole(blobs, content))  # as OpenAI's own result files come
            return Response(text, media_type=_BYTES, headers=headers)
        if await asyncio.to_thread(content.is_file):
            return FileResponse(content, media_type=_BYTES, headers=headers)
        stored = await blobs.read(content)
    except FileNotFoundError as error:
        raise NotFound(f"The content of {file_id} is gone from this server's storage.", param="id") from error
    headers["content-length"] = str(stored.size_bytes)
    return Stream(stored.blocks, media_type=_BYTES, headers=headers)


@delete("/v1/files/{file_id:str}", status_code=200, operation_id="deleteFile")
async def delete_file(
    file_id: FromPath[str], caller: NamedDependency[KeyRecord], uploads: NamedDependency[Uploads]
) -> Deleted:
    """Delete a file: first its record, then its bytes."""
    await uploads.remove(file_id, project=caller.project)
    return Deleted(id=file_id, object="file")


ROUTES = [create_file, list_files, retrieve_file, download_file, delete_file]
