"""Finding candidates: in the project's stored completions, or in prompts that the teacher has yet to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.api.distillation.candidates import Candidate, Collection
from services.api.distillation.examples import Unusable, answer_in
from services.api.evals.questions import messages_for
from services.api.evals.rows import Rows
from services.api.evals.sources import Sources
from services.api.flows import FlowFailed
from shared.blobs.interface import Blobs
from shared.distillation_records import KIND, DistillationRecord
from shared.errors import InvalidRequest
from shared.schemas.evals import EvalStoredCompletions, InputMessages, ItemReference
from shared.store.completions import StoredCompletion
from shared.store.files import FileStore

ITEM_INPUT = ItemReference(item_reference="item.input")
_AT_ONCE = 200
_decode_messages = msgspec.json.Decoder(list[dict[str, Any]]).decode


def collected_path(blobs: Blobs, flow_id: str) -> Path:
    return blobs.paths.flow_folder(KIND, flow_id) / "collected.jsonl"


def prompts_path(blobs: Blobs, flow_id: str) -> Path:
    """Return where the prompts lie, as rows of an eval."""
    return blobs.paths.flow_folder(KIND, flow_id) / "prompts.jsonl"


class Collecting:
    """Writes a distillation's file of candidates."""

    def __init__(self, sources: Sources, files: FileStore, blobs: Blobs) -> None:
        self._sources = sources
        self._files = files
        self._blobs = blobs

    async def collect(self, record: DistillationRecord) -> None:
        """Have the file in its place. Raises FlowFailed, RateLimited without room for it, Unavailable, OSError."""
        path = collected_path(self._blobs, record.id)
        try:
            await self._blobs.fetch_file(path)
            return
        except FileNotFoundError:
            pass
        collection = await asyncio.to_thread(Collection, path, record.filter)
        try:
            async for some in self._found(record):
                await asyncio.to_thread(collection.add, some)
            await self._files.check_room(record.project, collection.size_bytes)
            await asyncio.to_thread(collection.finish)
        finally:
            collection.stop()
            await asyncio.to_thread(collection.close)
        await self._blobs.keep_file(path)

    async def _found(self, record: DistillationRecord) -> AsyncIterator[Sequence[Candidate]]:
        if record.source.type == "prompts":
            async for some in self._prompts(record):
                yield some
            return
        source = record.source
        wanted = EvalStoredCompletions(
            metadata=source.metadata,
            model=source.model,
            created_after=source.created_after,
            created_before=source.created_before,
        )
        async for taken in self._sources.completions(wanted, record.project, metadata={}):
            yield await asyncio.to_thread(_of_stored, taken)

    async def _prompts(self, record: DistillationRecord) -> AsyncIterator[Sequence[Candidate]]:
        path = prompts_path(self._blobs, record.id)
        try:
            await self._blobs.fetch_file(path)
            rows = await asyncio.to_thread(Rows, path, config=None, is_ours=False)
        except FileNotFoundError as error:
            raise FlowFailed("prompts_missing", "The prompts are gone from this server's storage.") from error
        except InvalidRequest as error:
            raise FlowFailed(
                "invalid_prompts", error.message.replace("The run's file", "The file of prompts")
            ) from error
        try:
            for start in range(0, len(rows), _AT_ONCE):
                numbers = range(start, min(start + _AT_ONCE, len(rows)))
                yield await asyncio.to_thread(_of_prompts, record, rows, numbers)
        finally:
            rows.close()


def _of_stored(taken: Sequence[tuple[StoredCompletion, bytes]]) -> Sequence[Candidate]:
    return [*map(_of_completion, taken)]


def _of_completion(found: tuple[StoredCompletion, bytes]) -> Candidate:
    completion, asked = found
    plain = Candidate(id=completion.id, model=completion.model, metadata=completion.metadata)
    try:
        answer, tools = answer_in(completion.body)
        messages = _decode_messages(asked)
        candidate = msgspec.structs.replace(plain, input=messages, answer=answer, tools=tools)
        candidate.line()
    except Unusable as error:
        return plain.without(error.reason)
    except msgspec.MsgspecError:
        return plain.without("unreadable")
    return candidate


def _of_prompts(record: DistillationRecord, rows: Rows, numbers: Sequence[int]) -> Sequence[Candidate]:
    wanted = record.source.input_messages or ITEM_INPUT
    return [_of_prompt(number, rows.row(number).item, wanted) for number in numbers]


def _of_prompt(number: int, item: dict[str, Any], wanted: InputMessages) -> Candidate:
    plain = Candidate(id=str(number), row=item)
    try:
        candidate = msgspec.structs.replace(plain, input=messages_for(wanted, item))
        candidate.line()
    except InvalidRequest:
        return plain.without("no_prompt")
    except Unusable as error:
        return plain.without(error.reason)
    return candidate
