"""What a job would take, from its file and from the speed of earlier jobs on its base. Nothing is created."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.api.jobs.requests import Asked
from services.api.jobs.submission import Submission
from shared.auto_hyperparameters import resolve
from shared.blobs.interface import Blobs
from shared.errors import InvalidRequest, InvalidTrainingData, NotFound
from shared.model_records import Access
from shared.records import FileRecord
from shared.schemas.costs import JobEstimate
from shared.schemas.jobs import CreateJob
from shared.settings import Settings
from shared.store.files import FileStore
from shared.store.jobs import JobStore
from shared.store.usage import Pace, UsageStore, pace_kind
from shared.token_cache import read_meta
from shared.training_data import Census, validate

BYTES_PER_TOKEN = 4
"""Of a file on a base of which nothing is known yet; English text and JSON have about so many."""
_RECENT_JOBS = 100


@dataclass(frozen=True)
class _Tokens:
    count: int
    source: Literal["tokenised", "measured", "assumed"]


class Estimates:
    """Estimates jobs."""

    def __init__(
        self,
        settings: Settings,
        submission: Submission,
        files: FileStore,
        jobs: JobStore,
        usage: UsageStore,
        blobs: Blobs,
    ) -> None:
        self._settings = settings
        self._submission = submission
        self._files = files
        self._jobs = jobs
        self._usage = usage
        self._blobs = blobs

    async def estimate(self, request: CreateJob, *, access: Access) -> JobEstimate:
        """Raises InvalidRequest for what could be no job, bad lines of its file included; NotFound, PermissionDenied.

        Reinforcement is refused: what it takes is decided by the answers that it samples.
        """
        if request.method is not None and request.method.type == "reinforcement":
            raise InvalidRequest(
                "What a reinforcement job takes is decided by the answers that it samples; it cannot be estimated.",
                code="unsupported_method",
                param="method.type",
            )
        wanted, start = await self._submission.check(request, access=access)
        file = await self._files.get(request.training_file, project=access.project)
        census = await self._census(file, wanted)
        pace = await self._usage.pace(start.base, pace_kind(wanted.method, request.options))
        tokens = await self._tokens(file, start.base, pace)
        return self._estimated(request, wanted, start.base, census, tokens, pace)

    async def _census(self, file: FileRecord, wanted: Asked) -> Census:
        path = self._blobs.paths.file_content(file.id)
        try:
            await self._blobs.fetch(path.parent)
            return await asyncio.to_thread(validate, path, file_id=file.id, method=wanted.method)
        except InvalidTrainingData as error:
            raise InvalidRequest(error.message, code=error.code, param=error.param) from error
        except FileNotFoundError as error:
            raise NotFound(f"The content of {file.id} is gone.", param="training_file") from error

    async def _tokens(self, file: FileRecord, base: str, pace: Pace) -> _Tokens:
        """Count the file's tokens, as well as that is possible without the base's tokenizer."""
        counted = await self._counted(file, base)
        if counted is not None:
            return _Tokens(counted, "tokenised")
        if pace.file_bytes and pace.file_tokens:
            return _Tokens(math.ceil(file.size_bytes * pace.file_tokens / pace.file_bytes), "measured")
        return _Tokens(math.ceil(file.size_bytes / BYTES_PER_TOKEN), "assumed")

    async def _counted(self, file: FileRecord, base: str) -> int | None:
        """Look for a job of the project that had this file on this base lately, and for its tokens."""
        recent, _ = await self._jobs.list(file.project, after=None, limit=_RECENT_JOBS)
        for job in recent:
            if job.training_file == file.id and job.model == base and job.training_tokens:
                folder = self._blobs.paths.token_folder(job.training_tokens)
                return await asyncio.to_thread(_tokens_in, folder)
        return None

    def _estimated(
        self, request: CreateJob, wanted: Asked, base: str, census: Census, tokens: _Tokens, pace: Pace
    ) -> JobEstimate:
        chosen = resolve(wanted.hyperparameters, census.examples, wanted.method)
        assert chosen.n_epochs != "auto" and chosen.batch_size != "auto"
        total = tokens.count * chosen.n_epochs
        speed = pace.tokens / pace.device_ms * 1000 if pace.tokens and pace.device_ms else None
        seconds = None if speed is None else total / speed
        hourly = self._settings.device_hour_price
        return JobEstimate(
            model=base,
            method=wanted.method,
            examples=census.examples,
            n_epochs=chosen.n_epochs,
            batch_size=chosen.batch_size,
            steps=math.ceil(census.examples / chosen.batch_size) * chosen.n_epochs,
            tokens=total,
            tokens_source=tokens.source,
            tokens_per_device_second=None if speed is None else round(speed, 3),
            device_seconds=None if seconds is None else round(seconds, 3),
            measured_jobs=pace.jobs,
            memory_bytes=pace.memory_bytes or None,
            price=round(seconds / 3600 * hourly, 6) if seconds is not None and hourly else None,
            currency=self._settings.currency,
            remarks=list(_remarks(request, pace, hourly)),
        )


def _tokens_in(folder: Path) -> int | None:
    try:
        return read_meta(folder).tokens
    except (OSError, ValueError):
        return None


def _remarks(request: CreateJob, pace: Pace, hourly: float) -> list[str]:
    """Say what is not known, and why."""
    said = []
    if not pace.jobs:
        said.append("No job like this has succeeded on this base here, so neither its time nor its memory is known.")
    if not hourly:
        said.append("The operator has set no device_hour_price, so there is no price.")
    if request.options.early_stopping is not None:
        said.append("With early stopping it may take less.")
    return said
