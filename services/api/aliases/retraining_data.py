"""The rows that an alias's model is trained on again: those of its job, and answers that graders found good."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.api.files.partial import PartialFile
from shared.blobs.interface import Blobs, read_whole
from shared.chat_data import ChatExample, check_example
from shared.errors import NotFound
from shared.json_lines import read_blocks
from shared.monitor_records import Sample
from shared.proposal_records import ProposalRecord
from shared.records import FileRecord
from shared.schemas.monitors import Recipe
from shared.store.completions import CompletionStore
from shared.store.files import FileStore


class _Message(Struct, frozen=True):
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Answer(Struct, frozen=True):
    choices: list[_Choice]
    tools: list[dict[str, Any]] | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_messages = msgspec.json.Decoder(list[Any]).decode
_decode_file = msgspec.json.Decoder(FileRecord).decode


class RetrainingData:
    """Finds the rows, and makes a file of them."""

    def __init__(self, completions: CompletionStore, files: FileStore, blobs: Blobs) -> None:
        self._completions = completions
        self._files = files
        self._blobs = blobs

    async def rows(self, samples: Sequence[Sample], recipe: Recipe, project: str) -> Sequence[bytes]:
        """Form lines of the answers that are good enough and still stored, of `samples` the first that will do."""
        lines: list[bytes] = []
        for sample in samples:
            if len(lines) == recipe.max_answers:
                break
            if is_good(sample, recipe) and (line := await self._row(sample.id, project)) is not None:
                lines.append(line)
        return lines

    async def size_of(self, file_id: str | None, project: str) -> int | None:
        """Return the bytes of a training file; None where it is not there."""
        if file_id is None:
            return None
        try:
            return (await self._files.get(file_id, project=project)).size_bytes
        except NotFound:
            return None

    async def publish(self, record: ProposalRecord, lines: Sequence[bytes]) -> None:
        """Make the proposal's file, once: the rows of the former file, then these.

        Raises NotFound, Unavailable, and RateLimited where the project has no room for it.
        """
        folder = self._blobs.paths.file_folder(record.file_id)
        if not await self._blobs.exists(folder):
            await self._write(record, lines, folder)
        # Read back: if an earlier attempt has come so far, its file is the one that counts.
        await self._files.add(_decode_file(await read_whole(self._blobs, folder / "manifest.json")))

    async def _row(self, completion_id: str, project: str) -> bytes | None:
        try:
            completion = await self._completions.get(completion_id, project=project)
            messages = _decode_messages(await self._completions.messages(completion_id, project=project))
            return row_of(messages, completion.body)
        except NotFound:
            return None

    async def _write(self, record: ProposalRecord, lines: Sequence[bytes], folder: Path) -> None:
        paths = self._blobs.paths
        partial = PartialFile(paths.partial / f"{record.file_id}.{secrets.token_hex(4)}", limit=sys.maxsize)
        try:
            async for block in self._former(record.plan.training_file):
                await partial.write(block)
            await partial.write(b"".join(lines))
            await partial.finish()
            file = FileRecord(
                id=record.file_id,
                project=record.project,
                filename=f"{record.alias}_{record.id}.jsonl",
                purpose="fine-tune",
                size_bytes=partial.size_bytes,
                sha256=partial.sha256,
                created_at=int(time.time()),
            )
            await partial.publish(self._blobs, folder, msgspec.json.format(msgspec.json.encode(file)))
        finally:
            await asyncio.to_thread(partial.discard)

    async def _former(self, file_id: str | None) -> AsyncIterator[bytes]:
        if file_id is None:
            return
        path = self._blobs.paths.file_content(file_id)
        try:
            await self._blobs.fetch_file(path)
        except FileNotFoundError as error:
            raise NotFound(f"No such File object: {file_id}", param="training_file") from error
        blocks = _blocks(path)
        while block := await asyncio.to_thread(next, blocks, b""):
            yield block


def is_good(sample: Sample, recipe: Recipe) -> bool:
    """Tell whether every grader gave enough; where a least score is asked for, one must have graded."""
    if recipe.min_score is None:
        return True
    return bool(sample.scores) and min(sample.scores.values()) >= recipe.min_score


def row_of(messages: list[Any], body: bytes) -> bytes | None:
    """Form a line of a conversation and its answer; None where it is no row for supervised training."""
    try:
        answer = _decode_answer(body)
        said = answer.choices[0]
        last: dict[str, Any] = {"role": "assistant", "content": said.message.content}
        if said.message.tool_calls:
            last["tool_calls"] = said.message.tool_calls
        row: dict[str, Any] = {"messages": [*messages, last]}
        if answer.tools:
            row["tools"] = answer.tools
        check_example(msgspec.convert(row, ChatExample))
    except (msgspec.MsgspecError, ValueError, IndexError):
        return None
    # What stands before the answer was not written by the model now, and is not trained on.
    for message in row["messages"][:-1]:
        if message.get("role") == "assistant":
            message["weight"] = 0
    return None if said.finish_reason not in ("stop", "tool_calls") else msgspec.json.encode(row) + b"\n"


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's blocks of whole lines, the last with a line's end."""
    for _, block in read_blocks(path):
        yield block if block.endswith(b"\n") else block + b"\n"
