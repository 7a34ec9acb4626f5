"""/docs: the API's document as a page to read and try, from this server alone."""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from litestar import Request, Response, get
from litestar.params import FromPath

from services.api.auth import PUBLIC
from services.api.documents import PAGE, PART_OF_PAGE
from shared.errors import NotFound

_OURS = files("services.api") / "static"

# Swagger UI sets styles on elements, and draws its icons as SVG in data: URLs.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def _swagger(name: str) -> Callable[[], Traversable]:
    return lambda: files("swagger_ui") / "static" / name


_PARTS: dict[str, tuple[Callable[[], Traversable], str]] = {
    "start.js": (lambda: _OURS / "docs.js", "text/javascript"),
    "swagger-ui.css": (_swagger("swagger-ui.css"), "text/css"),
    "swagger-ui-bundle.js": (_swagger("swagger-ui-bundle.js"), "text/javascript"),
}
"""Name under /docs/ → where it lies and its type. Swagger UI comes with the Python package swagger-ui-py."""


@get("/docs", operation_id="readingPage", opt={PUBLIC: True, "response_body": PAGE}, sync_to_thread=True)
def reading_page() -> Response[bytes]:
    """Show this document as a page to read and try."""
    page = (_OURS / "docs.html").read_bytes()
    return Response(page, media_type="text/html", headers={**_HEADERS, "cache-control": "no-cache"})


@get(
    "/docs/{part:str}",
    operation_id="partOfReadingPage",
    opt={PUBLIC: True, "response_body": PART_OF_PAGE},
    sync_to_thread=True,
)
def part_of_page(request: Request[Any, Any, Any], part: FromPath[str]) -> Response[bytes]:
    """Return a script or style of the reading page; browsers keep it for a day and ask whether it has changed."""
    if part not in _PARTS:
        raise NotFound(f"There is no /docs/{part[:100]}.", code="unknown_url")
    content, tag = _content(part)
    headers = {**_HEADERS, "cache-control": "public, max-age=86400", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(b"", status_code=304, headers=headers)
    return Response(content, media_type=_PARTS[part][1], headers=headers)


@cache
def _content(part: str) -> tuple[bytes, str]:
    content = _PARTS[part][0]().read_bytes()
    return content, f'"{sha256(content).hexdigest()[:32]}"'


ROUTES = [reading_page, part_of_page]
