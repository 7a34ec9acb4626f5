"""Stored responses and the items they answer. A response knows the one it goes on from. Redis is the record."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from shared import keys
from shared.errors import InvalidRequest, NotFound
from shared.store.client import Argument, Client
from shared.store.storage import Storage

_MAX_CHAIN = 1000
_FIELDS = ("project", "previous", "body", "items")


class StoredResponse(Struct, frozen=True, kw_only=True):
    """A response and what was new in its request."""

    id: str
    project: str
    previous: str = ""
    """The response that this one goes on from; empty at the beginning."""
    body: bytes
    """The response as JSON."""
    items: bytes
    """The input items of this turn as a JSON list, each with an id."""


class ResponseStore:
    """Responses by id. They count towards their project's storage; `project_bytes` is the default limit of that."""

    def __init__(
        self, client: Client, *, keep_days: int, max_conversation_bytes: int, project_bytes: int | None = None
    ) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)
        self._max_conversation_bytes = max_conversation_bytes
        self._keep_s = keep_days * 86_400

    async def check_room(self, project: str, size_bytes: int) -> None:
        """Raises RateLimited when a project's storage has no room for `size_bytes` more."""
        await self._storage.check_room(project, size_bytes, param="store")

    async def keep(self, response: StoredResponse) -> None:
        """Store a response, be there room or not. Raises StoreUnavailable."""
        fields: list[Argument] = [
            *("project", response.project, "previous", response.previous),
            *("body", response.body, "items", response.items),
        ]
        places = _places(response.id, response.project)
        await self._client.script("keep_response", places, [response.id, self._keep_s, *fields])

    async def get(self, response_id: str, *, project: str) -> StoredResponse:
        """Raises NotFound when it is unknown, has expired, or belongs to another project."""
        owner, previous, body, items = await self._client.call("HMGET", keys.response(response_id), *_FIELDS)
        if owner is None or owner.decode() != project:
            raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")
        return StoredResponse(id=response_id, project=project, previous=previous.decode(), body=body, items=items)

    async def chain(self, response_id: str, *, project: str) -> Sequence[StoredResponse]:
        """Return a response and those that it goes on from, oldest first.

        Raises InvalidRequest when one of them is not there any more, or when they are too large together.
        """
        found: list[StoredResponse] = []
        wanted, size = response_id, 0
        while wanted and len(found) < _MAX_CHAIN:
            try:
                found.append(await self.get(wanted, project=project))
            except NotFound as error:
                raise InvalidRequest(
                    f"Previous response with id '{wanted}' not found.",
                    code="previous_response_not_found",
                    param="previous_response_id",
                ) from error
            wanted = found[-1].previous
            size += len(found[-1].body) + len(found[-1].items)
            if size > self._max_conversation_bytes:
                raise InvalidRequest(
                    f"The conversation has more than the {self._max_conversation_bytes:,} bytes of a request.",
                    code="context_length_exceeded",
                    param="previous_response_id",
                )
        return found[::-1]

    async def remove(self, response_id: str, *, project: str) -> None:
        """Raises NotFound, also when it was removed before."""
        if not await self._client.script("forget_answer", _places(response_id, project), [project, response_id]):
            raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")


def _places(response_id: str, project: str) -> list[str]:
    return [keys.response(response_id), keys.answers(project), keys.project_bytes(project)]
