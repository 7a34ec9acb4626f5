"""Lists of objects that are kept as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import MediaType, Response

from shared.errors import NotFound
from shared.schemas.paging import Page


def json_response(body: bytes) -> Response[bytes]:
    return Response(body, media_type=MediaType.JSON)


def page_of(ids: Sequence[str], items: Sequence[Any], *, has_more: bool) -> Response[bytes]:
    """Form a page of objects whose ids are given beside them."""
    first, last = (ids[0], ids[-1]) if ids else ("", "")
    page = Page(data=list(items), first_id=first, last_id=last, has_more=has_more)
    return json_response(msgspec.json.encode(page))


def cut_items(items: Sequence[dict[str, Any]], *, after: str | None, limit: int, newest_first: bool) -> Response[bytes]:
    """Cut a page out of a whole list, oldest first as given. Raises NotFound when `after` is not in it."""
    ordered = list(items[::-1] if newest_first else items)
    ids = [str(item["id"]) for item in ordered]
    if after is not None and after not in ids:
        raise NotFound(f"No such object to list after: {after}", param="after")
    start = 0 if after is None else ids.index(after) + 1
    end = start + limit
    return page_of(ids[start:end], ordered[start:end], has_more=len(ids) > end)
