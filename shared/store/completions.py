"""Stored chat completions: what was asked, what was answered, and the client's metadata. Redis is the record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from shared import keys
from shared.errors import NotFound
from shared.store import index
from shared.store.client import Argument, Client
from shared.store.portions import MAX_PORTION_BYTES, portions
from shared.store.storage import Storage

_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.encode

_SCAN = 50
_FIELDS = ("project", "model", "metadata", "body")


class StoredCompletion(Struct, frozen=True, kw_only=True):
    """A completion as it is listed."""

    id: str
    project: str
    model: str
    metadata: dict[str, str]
    body: bytes
    """The completion as JSON, without its metadata."""


class CompletionStore:
    """Completions by id and by project. They count towards its storage, whose default limit is `project_bytes`."""

    def __init__(self, client: Client, *, keep_days: int, project_bytes: int | None = None) -> None:
        self._client = client
        self._storage = Storage(client, project_bytes=project_bytes)
        self._keep_s = keep_days * 86_400

    async def check_room(self, project: str, size_bytes: int) -> None:
        """Raises RateLimited when a project's storage has no room for `size_bytes` more."""
        await self._storage.check_room(project, size_bytes, param="store")

    async def keep(self, completion: StoredCompletion, *, messages: bytes) -> None:
        """Store a completion with the messages that it answers, a JSON list, be there room or not.

        Raises StoreUnavailable.
        """
        fields: list[Argument] = [
            *("project", completion.project, "model", completion.model),
            *("metadata", _encode(completion.metadata), "body", completion.body, "messages", messages),
        ]
        await self._client.script(
            "keep_completion",
            [
                *(keys.completion(completion.id), keys.completions(completion.project), keys.SEQUENCE),
                *(keys.answers(completion.project), keys.project_bytes(completion.project)),
            ],
            [completion.id, self._keep_s, keys.completion(""), _places(completion.project), *fields],
        )

    async def get(self, completion_id: str, *, project: str) -> StoredCompletion:
        """Raises NotFound when it is unknown, has expired, or belongs to another project."""
        found = await self._client.call("HMGET", keys.completion(completion_id), *_FIELDS)
        completion = _completion(completion_id, found)
        if completion is None or completion.project != project:
            raise _unknown(completion_id)
        return completion

    async def messages(self, completion_id: str, *, project: str) -> bytes:
        """Return the request's messages, a JSON list. Raises NotFound."""
        owner, messages = await self._client.call("HMGET", keys.completion(completion_id), "project", "messages")
        if owner is None or owner.decode() != project:
            raise _unknown(completion_id)
        return bytes(messages)

    async def messages_of(self, completion_ids: Sequence[str]) -> AsyncIterator[Mapping[str, bytes]]:
        """Read the messages of these requests, each a JSON list, by id and in the same order.

        They come a few at a time, so that they are no more than MAX_PORTION_BYTES together; those gone are left out.
        """
        if not completion_ids:
            return
        sizes = await self._client.together([("HSTRLEN", keys.completion(one), "messages") for one in completion_ids])
        for some in portions(completion_ids, sizes, most_bytes=MAX_PORTION_BYTES):
            found = await self._client.together([("HGET", keys.completion(one), "messages") for one in some])
            yield {one: bytes(text) for one, text in zip(some, found, strict=True) if text is not None}

    async def describe(self, completion_id: str, metadata: Mapping[str, str], *, project: str) -> None:
        """Replace its metadata. Raises NotFound."""
        arguments: list[Argument] = [project, _encode(metadata)]
        if not await self._client.script("describe_completion", [keys.completion(completion_id)], arguments):
            raise _unknown(completion_id)

    async def remove(self, completion_id: str, *, project: str) -> None:
        """Raises NotFound, also when it was removed before."""
        found = [keys.completion(completion_id), keys.answers(project), keys.project_bytes(project)]
        places = [*found, keys.completions(project)]
        if not await self._client.script("forget_answer", places, [project, completion_id, _places(project)]):
            raise _unknown(completion_id)

    async def list(
        self,
        project: str,
        *,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int,
        newest_first: bool = False,
    ) -> tuple[Sequence[StoredCompletion], bool]:
        """Return a page of those of a model that carry every pair of `metadata`, and whether there are more.

        Entries whose completions have expired are dropped from the list on the way. Raises NotFound for an unknown
        `after`.
        """
        wanted = (metadata or {}).items()
        found: list[StoredCompletion] = []
        more = True
        while more and len(found) <= limit:
            ids, more = await index.page(
                self._client, keys.completions(project), after=after, limit=_SCAN, newest_first=newest_first
            )
            after = ids[-1] if ids else after
            records = await self._records(ids, project)
            found += [one for one in records if model in (None, one.model) and wanted <= one.metadata.items()]
        return found[:limit], len(found) > limit

    async def _records(self, ids: Sequence[str], project: str) -> Sequence[StoredCompletion]:
        if not ids:
            return []
        raws = await self._client.together([("HMGET", keys.completion(one), *_FIELDS) for one in ids])
        records = [_completion(one, raw) for one, raw in zip(ids, raws, strict=True)]
        gone = [one for one, record in zip(ids, records, strict=True) if record is None]
        if gone:
            await index.leave(self._client, keys.completions(project), gone)
        return [record for record in records if record is not None]


def _completion(completion_id: str, found: Sequence[bytes | None]) -> StoredCompletion | None:
    project, model, metadata, body = found
    if project is None or model is None or metadata is None or body is None:
        return None
    return StoredCompletion(
        id=completion_id, project=project.decode(), model=model.decode(), metadata=_decode_metadata(metadata), body=body
    )


def _places(project: str) -> str:
    return keys.place(keys.completions(project), "")


def _unknown(completion_id: str) -> NotFound:
    return NotFound(f"Chat completion with id '{completion_id}' not found.", param="completion_id")
