"""The files of a distillation: candidates for a run to answer and grade, then data set, held-out rows and manifest."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import to_builtins
from msgspec.structs import replace

from services.api.distillation.candidates import Candidate, read_candidates
from services.api.distillation.collecting import collected_path
from services.api.distillation.selecting import Selection, Word, candidate_lines, word_of
from services.api.files.produced import ProducedFiles
from services.api.flows import FlowFailed
from shared.blobs.interface import Blobs
from shared.distillation_records import DistillationRecord
from shared.schemas.distillations import DistillationCounts
from shared.schemas.evals import OutputItem
from shared.schemas.files import FilePurpose
from shared.store.eval_runs import EvalRunStore
from shared.store.files import FileStore
from shared.training_data import MIN_EXAMPLES

_AT_ONCE = 500
_decode_item = msgspec.json.Decoder(OutputItem).decode


class DataSets:
    """Writes files; each step may be taken again, and gives the same."""

    def __init__(self, files: FileStore, runs: EvalRunStore, blobs: Blobs) -> None:
        self._files = files
        self._runs = runs
        self._blobs = blobs
        self._produced = ProducedFiles(files, blobs)

    async def publish_candidates(self, record: DistillationRecord) -> None:
        """Make the file of those that were not dropped. Raises FlowFailed, RateLimited, Unavailable, OSError."""
        path = await self._collected(record)
        counts = await asyncio.to_thread(_counted, path)
        if not counts.found - sum(counts.dropped.values()):
            raise _too_few(counts)
        await self._files.check_room(record.project, path.stat().st_size)
        await self._publish(record, record.ids.candidates, candidate_lines(path), "candidates", "evals")

    async def select(self, record: DistillationRecord) -> DistillationCounts:
        """Make data set, held-out rows and manifest, and count. Raises as publish_candidates() does."""
        path = await self._collected(record)
        draft = path.with_name(f".selected.{secrets.token_hex(4)}")
        seed = record.student.seed or 0
        selection = await asyncio.to_thread(Selection, draft, record.filter, record.evaluation, seed)
        try:
            async for some, words in self._judged(record, path):
                await asyncio.to_thread(_add_all, selection, some, words)
            counts = await asyncio.to_thread(selection.split)
            if counts.training < MIN_EXAMPLES or not counts.held_out:
                raise _too_few(counts)
            await self._files.check_room(record.project, draft.stat().st_size)
            ids = record.ids
            await self._publish(record, ids.training, selection.training(), "training", "fine-tune")
            await self._publish(record, ids.held_out, selection.held_out(), "held_out", "evals")
            head = _head(record, counts)
            await self._publish(record, ids.manifest, selection.manifest(head), "manifest", "user_data")
        finally:
            await asyncio.to_thread(selection.close)
        return counts

    async def _collected(self, record: DistillationRecord) -> Path:
        path = collected_path(self._blobs, record.id)
        try:
            await self._blobs.fetch_file(path)
        except FileNotFoundError as error:
            raise FlowFailed("candidates_missing", "The rows are gone from this server's storage.") from error
        return path

    async def _judged(
        self, record: DistillationRecord, path: Path
    ) -> AsyncIterator[tuple[Sequence[Candidate], dict[int, Word]]]:
        """Read candidates with what the run says of them, by their place among those given."""
        candidates, row = await asyncio.to_thread(read_candidates, path), 0
        while some := await asyncio.to_thread(_next_some, candidates):
            kept = [place for place, candidate in enumerate(some) if not candidate.dropped]
            words = {} if record.skips_grading else await self._words(record, kept, first_row=row)
            row += len(kept)
            yield some, words

    async def _words(self, record: DistillationRecord, places: Sequence[int], *, first_row: int) -> dict[int, Word]:
        is_answered = record.source.type == "stored_completions"
        place_of = {first_row + at: place for at, place in enumerate(places)}
        found: dict[int, Word] = {}
        async for texts in self._runs.many_items(record.ids.runs["candidates"], [*place_of]):
            for item in await asyncio.to_thread(lambda some: [*map(_decode_item, some)], texts):
                found[place_of[item.datasource_item_id]] = word_of(item, is_answered=is_answered)
        return found

    async def _publish(
        self, record: DistillationRecord, file_id: str, lines: Iterator[bytes], name: str, purpose: FilePurpose
    ) -> None:
        await self._produced.publish(
            file_id, lines, project=record.project, filename=f"{record.id}_{name}.jsonl", purpose=purpose
        )


def _next_some(candidates: Iterator[Candidate]) -> list[Candidate]:
    return [candidate for _, candidate in zip(range(_AT_ONCE), candidates, strict=False)]


def _add_all(selection: Selection, candidates: Sequence[Candidate], words: dict[int, Word]) -> None:
    for place, candidate in enumerate(candidates):
        selection.add(candidate, words.get(place))


def _counted(path: Path) -> DistillationCounts:
    counts = DistillationCounts()
    dropped: dict[str, int] = {}
    for candidate in read_candidates(path):
        counts = replace(counts, found=counts.found + 1)
        if candidate.dropped:
            dropped[candidate.dropped] = dropped.get(candidate.dropped, 0) + 1
    return replace(counts, dropped=dict(sorted(dropped.items())))


def _head(record: DistillationRecord, counts: DistillationCounts) -> dict[str, Any]:
    """Return the manifest's first line: what was asked for, and what came of it."""
    return {
        "object": "distillation.manifest",
        "distillation": record.id,
        "created_at": record.created_at,
        "source": to_builtins(record.source),
        "filter": to_builtins(record.filter),
        "graders": to_builtins(record.graders),
        "student": to_builtins(record.student),
        "start_model": record.start_model,
        "evaluation": to_builtins(record.evaluation),
        "counts": to_builtins(counts),
        "training_file": record.ids.training,
        "held_out_file": record.ids.held_out,
        "candidates_run": None if record.skips_grading else record.ids.runs["candidates"],
    }


def _too_few(counts: DistillationCounts) -> FlowFailed:
    dropped = ", ".join(f"{number} {reason}" for reason, number in counts.dropped.items())
    return FlowFailed(
        "too_few_rows",
        f"Of {counts.found} rows {counts.training} are left to train on and {counts.held_out} to hold out; a data set "
        f"needs {MIN_EXAMPLES} and 1. Dropped: {dropped or 'none'}.",
    )
