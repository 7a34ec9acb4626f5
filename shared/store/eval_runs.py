"""Runs of evals with the results of their rows. Every change of a run is compare-and-set.

Results are kept by the row's number, with a byte for each row beside them that says what it came to: so a page is read
without an index, and one look tells which rows are still to be worked on. What a result adds to the run's counts is
added in the same step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw

from shared import keys
from shared.errors import LeaseLost, NotFound, RateLimited, TransitionRefused
from shared.eval_records import EvalRunRecord, RunKind
from shared.eval_states import ENDED, check_run_transition
from shared.store import index
from shared.store.client import Argument, Client
from shared.store.portions import MAX_PORTION_BYTES, portions
from shared.store.storage import Storage

Mark = Literal["p", "f", "e", "a", "b", "t", "u", "n"]
MARKS: dict[str, Mark] = {"pass": "p", "fail": "f", "error": "e"}
"""What a row of a run came to."""
AB_MARKS: dict[str, Mark] = {"a": "a", "b": "b", "tie": "t", "unjudged": "u", "error": "e", "left_out": "n"}
"""What a row of an A/B run came to."""
Change = Callable[[EvalRunRecord], EvalRunRecord]

_decode = msgspec.json.Decoder(EvalRunRecord).decode
_encode = msgspec.json.Encoder().encode
_GONE, _REPLACED = -1, -2
_FILE_GONE, _EVAL_GONE, _TOO_MANY = -3, -4, -5
_AT_ONCE = 500
MAX_PAGE_BYTES = 32 << 20
"""Of the sources of runs that are listed together."""


class Found(NamedTuple):
    """A run with its counts, and its data source as it was posted."""

    record: EvalRunRecord
    tally: Mapping[str, int]
    source: Raw


class Entry(NamedTuple):
    """A row's result, or a draft of it where `mark` is empty; `counts` is what it adds to the run's."""

    number: int
    mark: Mark | Literal[""]
    text: bytes
    counts: Mapping[str, int]


class EvalRunStore:
    """The only writer of runs. `fence` is the token of the run's lease, see LeaseStore.

    A project has `project_runs` that are not at their end at most; 0 is no limit.
    """

    def __init__(self, client: Client, *, item_days: int, project_runs: int = 0) -> None:
        self._client = client
        self._keep_s = item_days * 86_400
        self._project_runs = project_runs
        self._storage = Storage(client, project_bytes=None)

    async def create(
        self, record: EvalRunRecord, *, source: bytes, rows_bytes: int = 0, file_bytes: int | None = None
    ) -> None:
        """Store a new run; nothing happens if one has its id already.

        Towards its project's storage count, be there room or not: the source until the run is deleted, its own rows
        of `rows_bytes` until its end, its results from then on; and until its end its file of `file_bytes`, once,
        whether that is deleted or not. Raises NotFound when its eval or its file is gone, and RateLimited.
        """
        run_id, project = record.id, record.project
        found = [
            keys.eval_run(run_id), keys.eval_runs(record.eval_id), keys.ACTIVE_EVAL_RUNS, keys.SEQUENCE,
            keys.eval_(record.eval_id), keys.active_runs(project), keys.answers(project), *_storage_keys(record),
        ]  # fmt: skip
        size = "" if file_bytes is None else file_bytes
        arguments: list[Argument] = [run_id, _encode(record), source, self._project_runs or -1, rows_bytes, size]

        async def attempt(_: int) -> int:
            return int(await self._client.script("create_eval_run", found, arguments))

        created = await self._storage.claim(project, 0, attempt, limited=False)
        if created == _EVAL_GONE:
            raise NotFound(f"No eval found with id '{record.eval_id}'.", param="eval_id")
        if created == _FILE_GONE:
            raise NotFound(f"No such File object: {record.file_id}", param="data_source.source.id")
        if created == _TOO_MANY:
            raise self._too_many()

    async def check_active(self, project: str) -> None:
        """Raises RateLimited when a project may have no run more for now; `create` decides."""
        if self._project_runs and await self._client.call("SCARD", keys.active_runs(project)) >= self._project_runs:
            raise self._too_many()

    def _too_many(self) -> RateLimited:
        return RateLimited(
            f"The project has {self._project_runs} eval runs that are not at their end, which is its limit; wait for "
            "one to end, or cancel one.",
            code="concurrent_eval_runs_exceeded",
        )

    async def get(self, run_id: str) -> EvalRunRecord:
        """Raises NotFound."""
        return (await self._read(run_id))[0]

    async def find_record(
        self, run_id: str, *, eval_id: str, project: str, kind: RunKind | None = "run"
    ) -> EvalRunRecord:
        """Raises NotFound when it is unknown, of another kind, belongs to another eval, or to another project.

        None is any kind.
        """
        for record in await self.read([run_id]):
            if (record.eval_id, record.project) == (eval_id, project) and kind in (None, record.kind):
                return record
        raise _unknown(run_id, kind)

    async def find(self, run_id: str, *, eval_id: str, project: str, kind: RunKind | None = "run") -> Found:
        """Return a run with its source, which may be large. Raises as find_record does."""
        await self.find_record(run_id, eval_id=eval_id, project=project, kind=kind)
        for found in await self._found([run_id]):
            return found
        raise _unknown(run_id, kind)

    async def list(
        self,
        eval_id: str,
        *,
        status: str | None,
        after: str | None,
        limit: int,
        newest_first: bool,
        kind: RunKind = "run",
    ) -> tuple[Sequence[Found], bool]:
        """Return a page of an eval's runs of one kind, of those with a status if one is given, and whether there are
        more.

        A page whose sources are large has fewer than `limit`.
        """
        ids: list[str] = []
        more = True
        while more and len(ids) <= limit:
            page, more = await index.page(
                self._client, keys.eval_runs(eval_id), after=after, limit=limit, newest_first=newest_first
            )
            after = page[-1] if page else after
            found = await self.read(page)
            ids += [run.id for run in found if run.kind == kind and status in (None, run.status.value)]
        shown = await self._small_enough(ids[:limit])
        return await self._found(shown), more or len(ids) > len(shown)

    async def _small_enough(self, ids: Sequence[str]) -> Sequence[str]:
        """Return the first of these runs whose sources are within the limit together, and the very first always."""
        sizes = await self._client.together([("HSTRLEN", keys.eval_run(one), "source") for one in ids]) if ids else []
        totals = accumulate(int(size) for size in sizes)
        return [
            one
            for place, (one, total) in enumerate(zip(ids, totals, strict=True))
            if not place or total <= MAX_PAGE_BYTES
        ]

    async def ids(self, eval_id: str, *, limit: int) -> Sequence[str]:
        """List the first ids of an eval's runs."""
        return [one.decode() for one in await self._client.call("ZRANGE", keys.eval_runs(eval_id), 0, limit - 1)]

    async def active(self) -> Sequence[str]:
        """List ids of the runs that are not at their end, oldest first."""
        return [one.decode() for one in await self._client.call("ZRANGE", keys.ACTIVE_EVAL_RUNS, 0, -1)]

    async def read(self, ids: Sequence[str]) -> Sequence[EvalRunRecord]:
        """Return the runs of these ids in the same order, without those that are unknown."""
        raws = await self._client.together([("HGET", keys.eval_run(one), "record") for one in ids]) if ids else []
        return [_decode(raw) for raw in raws if raw is not None]

    async def update(self, run_id: str, change: Change, *, fence: str = "") -> EvalRunRecord:
        """Apply `change` to the newest record, again whenever others write meanwhile.

        Raises NotFound, LeaseLost, or TransitionRefused when `change` asks for a state that is not allowed from here.
        """
        while True:
            current, version = await self._read(run_id)
            changed = change(current)
            check_run_transition(current.status, changed.status)
            if changed == current:
                return current
            outcome = await self._client.script(
                "commit_eval_run",
                [
                    keys.eval_run(run_id), *_shared_keys(current), keys.eval_drafts(run_id), keys.eval_items(run_id),
                    keys.eval_marks(run_id), keys.ab_votes(run_id),
                ],
                [version, _encode(changed), fence, run_id, int(changed.status in ENDED), self._keep_s],
            )  # fmt: skip
            if outcome == 1:
                return changed
            if outcome == _GONE:
                raise _unknown(run_id)
            if outcome == _REPLACED:
                raise LeaseLost(f"{run_id} is worked on by another process now")

    async def remove(self, record: EvalRunRecord) -> None:
        """Delete a run with the results of its rows; whoever works on it finds it gone."""
        run_id, runs = record.id, keys.eval_runs(record.eval_id)
        doomed = [
            keys.eval_run(run_id), keys.eval_tally(run_id), keys.eval_items(run_id), keys.eval_marks(run_id),
            keys.eval_drafts(run_id), keys.ab_votes(run_id), keys.eval_run_lease(run_id),
        ]  # fmt: skip
        await self._client.script(
            "delete_eval_run", [runs, *_shared_keys(record), *doomed], [run_id, keys.place(runs, "")]
        )

    async def keep(self, run_id: str, entries: Sequence[Entry], *, fence: str) -> None:
        """Keep results and drafts; those that are kept already are left out.

        Raises TransitionRefused when the run is at its end or gone, LeaseLost.
        """
        arguments: list[Argument] = [fence, run_id]
        for entry in entries:
            arguments += [entry.number, entry.mark, entry.text, len(entry.counts)]
            for name, count in entry.counts.items():
                arguments += [name, count]
        found = [
            keys.eval_run(run_id), keys.ACTIVE_EVAL_RUNS, keys.eval_items(run_id), keys.eval_marks(run_id),
            keys.eval_drafts(run_id), keys.eval_tally(run_id),
        ]  # fmt: skip
        outcome = await self._client.script("keep_eval_items", found, arguments)
        if outcome == _GONE:
            raise TransitionRefused(f"{run_id} is at its end", code="invalid_run_state")
        if outcome == _REPLACED:
            raise LeaseLost(f"{run_id} is worked on by another process now")

    async def marks(self, run_id: str) -> bytes:
        """Return a byte for each row, see Mark; rows without a result have a 0, or none at the end."""
        return bytes(await self._client.call("GET", keys.eval_marks(run_id)) or b"")

    async def drafts(self, run_id: str) -> dict[int, bytes]:
        """Return what was begun, by the row's number."""
        found = await self._client.call("HGETALL", keys.eval_drafts(run_id))
        return {int(number): bytes(text) for number, text in found.items()}

    async def items(self, run_id: str, numbers: Sequence[int]) -> Sequence[bytes]:
        """Return the results of these rows in the same order, without those that are not there."""
        texts = await self._client.call("HMGET", keys.eval_items(run_id), *numbers) if numbers else []
        return [bytes(text) for text in texts if text is not None]

    async def many_items(self, run_id: str, numbers: Sequence[int]) -> AsyncIterator[Sequence[bytes]]:
        """Read as `items` does, a few at a time: those together are no more than MAX_PORTION_BYTES."""
        for start in range(0, len(numbers), _AT_ONCE):
            wanted = numbers[start : start + _AT_ONCE]
            sizes = await self._client.together([("HSTRLEN", keys.eval_items(run_id), one) for one in wanted])
            for some in portions(wanted, sizes, most_bytes=MAX_PORTION_BYTES):
                yield await self.items(run_id, some)

    async def _found(self, ids: Sequence[str]) -> Sequence[Found]:
        """Read runs with their sources, without those that are gone."""
        commands: list[tuple[Argument, ...]] = []
        for one in ids:
            commands += [("HMGET", keys.eval_run(one), "record", "source"), ("HGETALL", keys.eval_tally(one))]
        answers = await self._client.together(commands) if commands else []
        found: list[Found] = []
        for (record, source), counts in zip(answers[::2], answers[1::2], strict=True):
            if record is not None:
                tally = {name.decode(): int(count) for name, count in counts.items()}
                found.append(Found(_decode(record), tally, Raw(source)))
        return found

    async def _read(self, run_id: str) -> tuple[EvalRunRecord, int]:
        raw, version = await self._client.call("HMGET", keys.eval_run(run_id), "record", "version")
        if raw is None:
            raise _unknown(run_id)
        return _decode(raw), int(version)


def _shared_keys(record: EvalRunRecord) -> Sequence[str]:
    """Return where a run is noted beside others."""
    project = record.project
    return keys.ACTIVE_EVAL_RUNS, keys.active_runs(project), keys.answers(project), *_storage_keys(record)


def _storage_keys(record: EvalRunRecord) -> Sequence[str]:
    return keys.project_bytes(record.project), keys.file(record.file_id), keys.file_batches(record.file_id)


def _unknown(run_id: str, kind: RunKind | None = "run") -> NotFound:
    if kind == "ab":
        return NotFound(f"No A/B run found with id '{run_id[:100]}'.", param="ab_run_id")
    return NotFound(f"No eval run found with id '{run_id[:100]}'.", param="run_id")
