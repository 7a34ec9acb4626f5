"""What the training file of a model's job asks, for comparison with what the model is asked now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from shared.blobs.interface import Blobs
from shared.drift.traits import Traits, asked_text, traits_of
from shared.errors import NotFound
from shared.json_lines import read_lines
from shared.model_records import Access
from shared.monitor_records import TrainingTraits
from shared.records import AdapterRecord, JobRecord
from shared.store.files import FileStore
from shared.store.jobs import JobStore
from shared.store.registry import Registry

MOST_ROWS = 1000


class _Input(Struct, frozen=True):
    messages: list[Any] | None = None


class _Row(Struct, frozen=True):
    """A row of any format; those that are no conversations ask nothing."""

    messages: list[Any] | None = None
    input: _Input | None = None
    prompt: Any = None


_decode = msgspec.json.Decoder(_Row).decode


class TrainingInputs:
    """Reads training files."""

    def __init__(self, registry: Registry, jobs: JobStore, files: FileStore, blobs: Blobs) -> None:
        self._registry = registry
        self._jobs = jobs
        self._files = files
        self._blobs = blobs

    async def job_of(self, model: str, project: str) -> JobRecord | None:
        """Return the job that has made a model, if it was one of this project."""
        known = (await self._registry.find(model, Access(project=project, is_admin=True))).own
        if known is None or not isinstance(known.model, AdapterRecord):
            return None
        try:
            return await self._jobs.get(known.model.job_id, project=project)
        except NotFound:
            return None

    async def read(self, model: str, project: str) -> TrainingTraits:
        """Note what is asked in up to MOST_ROWS rows, evenly spread over the file; a note says why there are none."""
        job = await self.job_of(model, project)
        if job is None:
            return TrainingTraits(model=model, note="The model is of no job of this project.")
        path = self._blobs.paths.file_content(job.training_file)
        try:
            await self._files.get(job.training_file, project=project)
            await self._blobs.fetch_file(path)
            traits = await asyncio.to_thread(_read, path)
        except (NotFound, FileNotFoundError):
            note = f"The training file {job.training_file} is not there any more."
            return TrainingTraits(model=model, file_id=job.training_file, note=note)
        note = "" if traits else f"The training file {job.training_file} asks nothing in messages."
        return TrainingTraits(model=model, file_id=job.training_file, traits=traits, note=note)


def _read(path: Path) -> list[Traits]:
    asked = [text for text in _asked(path) if text]
    step = max(1, -(-len(asked) // MOST_ROWS))
    return [traits_of(text) for text in asked[::step]]


def _asked(path: Path) -> Iterator[str]:
    for _, line in read_lines(path):
        try:
            row = _decode(line)
        except (msgspec.DecodeError, RecursionError):
            continue
        messages = row.messages if row.input is None else row.input.messages
        if messages is not None:
            yield asked_text(messages)
        elif isinstance(row.prompt, str):
            yield row.prompt
