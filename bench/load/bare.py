"""A bare Litestar handler under the same server: what the framework gives before anything of ours is done."""

from __future__ import annotations

import sys

import uvicorn
from litestar import Litestar, Response, get, post
from litestar.params import FromPath

_JOB = b'{"object":"fine_tuning.job","id":"ftjob-AAAAAAAAAAAAAAAAAAAAAAAA"}' + b" " * 1400
"""As long as a real one."""


@get("/v1/fine_tuning/jobs/{job_id:str}")
async def read(job_id: FromPath[str]) -> Response[bytes]:
    return Response(_JOB, media_type="application/json")


@get("/healthz")
async def healthz() -> Response[bytes]:
    return Response(b"{}", media_type="application/json")


@post("/v1/fine_tuning/jobs", status_code=200)
async def create(data: dict[str, object]) -> Response[bytes]:
    return Response(_JOB, media_type="application/json")


def main() -> None:
    app = Litestar([read, create, healthz], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, ws="none")


if __name__ == "__main__":
    main()
