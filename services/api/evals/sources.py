"""Where the rows of a run come from: each source is made into the run's own file of rows when the run is created.

Whatever happens to files and stored completions afterwards, the run has its rows.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from services.api.evals.questions import output_text
from services.api.evals.rows import Row, encoded, fault_in
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, NotFound, Unavailable
from shared.eval_records import EvalRecord
from shared.paths import fsync_folder
from shared.records import FileRecord
from shared.schemas.evals import (
    MAX_ROWS,
    CustomDataSource,
    EvalFileContent,
    EvalFileId,
    EvalStoredCompletions,
)
from shared.store.completions import CompletionStore, StoredCompletion
from shared.store.files import FileStore

MAX_FILE_BYTES = 200 << 20
_AT_ONCE = 50
_LONGEST_ANSWER_S = 86_400
"""Completions are listed by when they were stored, and say when they were begun: so much earlier at most."""

Source = EvalFileContent | EvalFileId | EvalStoredCompletions


class _Created(Struct, frozen=True):
    created: int = 0


_decode_created = msgspec.json.Decoder(_Created).decode
_decode_messages = msgspec.json.decode


class Taken(NamedTuple):
    """What a run's rows are: an uploaded file's, or so many bytes of its own."""

    file: FileRecord | None
    rows_bytes: int


class Sources:
    """Writes files of rows."""

    def __init__(self, files: FileStore, completions: CompletionStore, blobs: Blobs) -> None:
        self._files = files
        self._completions = completions
        self._blobs = blobs

    async def take(self, source: Source, eval_: EvalRecord, run_id: str, *, source_bytes: int) -> Taken:
        """Give a run its rows. Raises InvalidRequest that names the field, NotFound, Unavailable.

        Raises RateLimited, too, when the project's storage has no room for them and for `source_bytes` more.
        """
        path = self._blobs.paths.eval_rows(run_id)

        async def check_room(size: int) -> None:
            await self._files.check_room(eval_.project, source_bytes + size)

        await check_room(0)
        try:
            if isinstance(source, EvalFileId):
                file = await self.take_file(source, eval_.project, path, where="data_source.source.id")
                return Taken(file, 0)
            lines = _given(source, eval_) if isinstance(source, EvalFileContent) else self._stored(source, eval_)
            size = await _write(path, lines, check_room)
            await self._blobs.keep_file(path)
            return Taken(None, size)
        except OSError as error:
            raise Unavailable("The server's storage does not take the run.", code="storage_unavailable") from error

    async def take_file(self, source: EvalFileId, project: str, path: Path, *, where: str) -> FileRecord:
        """Give the bytes of a file of rows a second name; its lines are read by whoever works on them.

        Raises NotFound and InvalidRequest that have `where` for the field, OSError.
        """
        try:
            record = await self._files.get(source.id, project=project)
            if record.purpose != "evals":
                raise InvalidRequest(
                    f"File {source.id} was uploaded with purpose '{record.purpose}'; upload it with purpose 'evals'.",
                    code="invalid_file_purpose",
                    param=where,
                )
            if record.size_bytes > MAX_FILE_BYTES:
                raise InvalidRequest(
                    f"File {source.id} has {record.size_bytes:,} bytes; a run takes at most {MAX_FILE_BYTES:,}.",
                    code="file_too_large",
                    param=where,
                )
            await self._blobs.copy_file(self._blobs.paths.file_content(source.id), path)
            return record
        except (NotFound, FileNotFoundError) as error:
            raise NotFound(f"No such File object: {source.id}", param=where) from error

    async def _stored(self, source: EvalStoredCompletions, eval_: EvalRecord) -> AsyncIterator[bytes]:
        """Form lines of the completions that both the eval and the run ask for, newest first, a few at a time."""
        config = eval_.data_source_config
        if isinstance(config, CustomDataSource):
            raise InvalidRequest(
                "This eval's rows are its own ('custom'); stored completions need a data_source_config of type 'logs'.",
                code="invalid_value",
                param="data_source.source.type",
            )
        metadata, is_empty = config.metadata or {}, True
        async for taken in self.completions(source, eval_.project, metadata=metadata):
            is_empty = is_empty and not taken
            yield await asyncio.to_thread(_lines, taken)
        if is_empty:
            raise InvalidRequest(
                "No stored chat completion is as this run wants them; store some with 'store': true, or ask for less.",
                code="no_stored_completions",
                param="data_source.source",
            )

    async def completions(
        self, source: EvalStoredCompletions, project: str, *, metadata: dict[str, str]
    ) -> AsyncIterator[Sequence[tuple[StoredCompletion, bytes]]]:
        """Read a project's completions with the messages that they answer, newest first, a few at a time.

        They are as `source` wants them, carry these metadata besides, and are MAX_ROWS at most.
        """
        left = source.limit or MAX_ROWS
        async for page in self._pages(source, project, metadata):
            wanted = {one.id: one for one in page if _is_between(one, source)}
            async for messages in self._completions.messages_of([*wanted]):
                taken = [(wanted[one], asked) for one, asked in messages.items()][:left]
                left -= len(taken)
                yield taken
                if not left:
                    return

    async def _pages(
        self, source: EvalStoredCompletions, project: str, metadata: dict[str, str]
    ) -> AsyncIterator[Sequence[StoredCompletion]]:
        after, more = None, True
        wanted = {**metadata, **(source.metadata or {})}
        if not metadata.items() <= wanted.items():
            return  # they contradict each other
        while more:
            found, more = await self._completions.list(
                project, model=source.model, metadata=wanted, after=after, limit=_AT_ONCE, newest_first=True
            )
            if not found:
                return
            after = found[-1].id
            yield found
            if _is_too_old(found[-1], source):
                return


async def _given(source: EvalFileContent, eval_: EvalRecord) -> AsyncIterator[bytes]:
    """Form lines of the rows that were posted."""
    for place, row in enumerate(source.content):
        if fault := fault_in(row.item, eval_.data_source_config):
            raise InvalidRequest(
                f"Invalid value for 'data_source.source.content[{place}].item': {fault}.",
                code="invalid_value",
                param=f"data_source.source.content[{place}].item",
            )
    yield await asyncio.to_thread(encoded, source.content)


def _is_between(completion: StoredCompletion, source: EvalStoredCompletions) -> bool:
    if source.created_after is None and source.created_before is None:
        return True
    created = _decode_created(completion.body).created
    is_late_enough = source.created_after is None or created >= source.created_after
    return is_late_enough and (source.created_before is None or created <= source.created_before)


def _is_too_old(completion: StoredCompletion, source: EvalStoredCompletions) -> bool:
    """Tell whether this one, and so every one that was stored before it, is older than the run wants."""
    if source.created_after is None:
        return False
    return _decode_created(completion.body).created < source.created_after - _LONGEST_ANSWER_S


def _lines(completions: Sequence[tuple[StoredCompletion, bytes]]) -> bytes:
    return encoded([_row(completion, messages) for completion, messages in completions])


def _row(completion: StoredCompletion, messages: bytes) -> Row:
    item = {
        "id": completion.id,
        "model": completion.model,
        "metadata": completion.metadata,
        "input": _decode_messages(messages),
        "output": output_text(completion.body),
    }
    return Row(item=item, answer=Raw(completion.body))


async def _write(path: Path, lines: AsyncIterator[bytes], check_room: Callable[[int], Awaitable[None]]) -> int:
    """Write a run's rows unless it has some: whoever works on it may have read those already. Return their bytes.

    Raises InvalidRequest when they have more than MAX_FILE_BYTES, and what `check_room` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as handle:
            size = 0
            async for some in lines:
                size += len(some)
                if size > MAX_FILE_BYTES:
                    raise _too_large()
                await asyncio.to_thread(handle.write, some)
            await check_room(size)
            handle.flush()
            await asyncio.to_thread(os.fsync, handle.fileno())
        await asyncio.to_thread(_link, draft, path)
        return size
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return
    fsync_folder(path.parent)


def _too_large() -> InvalidRequest:
    return InvalidRequest(
        f"The run's rows have more than {MAX_FILE_BYTES:,} bytes together; ask for fewer.",
        code="file_too_large",
        param="data_source.source",
    )
