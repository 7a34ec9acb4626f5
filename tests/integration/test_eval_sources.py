"""Rows of runs that are made of stored completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.api.evals.sources import Sources
from shared.blobs.local import LocalBlobs
from shared.eval_records import EvalRecord
from shared.paths import Paths
from shared.schemas.evals import EvalStoredCompletions, LogsDataSource
from shared.store import completions
from shared.store.client import Client
from shared.store.completions import CompletionStore, StoredCompletion
from shared.store.files import FileStore
from tests.api_server import with_store

DAY_S = 86_400
EVAL = EvalRecord(id="eval_1", project="p", data_source_config=LogsDataSource(), testing_criteria=[], created_at=0)


def completion(number: int, created: int) -> StoredCompletion:
    body = {"id": f"chatcmpl-{number}", "created": created, "choices": [{"message": {"content": "yes"}}]}
    return StoredCompletion(
        id=f"chatcmpl-{number}", project="p", model="m", metadata={}, body=json.dumps(body).encode()
    )


def test_completions_become_rows_a_few_at_a_time(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "MAX_PORTION_BYTES", 100)
    paths = Paths(tmp_path)
    read: list[str] = []

    async def look(client: Client) -> None:
        class Watched(CompletionStore):
            async def list(self, *args: object, **options: object) -> tuple[Sequence[StoredCompletion], bool]:
                found, more = await super().list(*args, **options)  # type: ignore[arg-type]
                read.extend(one.id for one in found)
                return found, more

        store = Watched(client, keep_days=1)
        for number in range(130):
            days = 5 if number < 60 else 10 if number < 120 else 9.5  # the newest took long
            await store.keep(completion(number, int(days * DAY_S)), messages=json.dumps(["x" * number]).encode())
        sources = Sources(FileStore(client), store, LocalBlobs(paths))

        async def taken(name: str, **wanted: Any) -> list[str]:
            read.clear()
            await sources.take(EvalStoredCompletions(**wanted), EVAL, name, source_bytes=2)
            lines = paths.eval_rows(name).read_bytes().splitlines()
            return [json.loads(line)["item"]["id"] for line in lines]

        newest_first = [f"chatcmpl-{number}" for number in reversed(range(130))]
        assert await taken("run_1") == newest_first
        assert await taken("run_2", limit=7) == newest_first[:7]
        assert len(read) == 50
        assert await taken("run_3", created_after=10 * DAY_S) == newest_first[10:70]
        assert len(read) == 100, "of those begun long before nothing more is read"

    with_store(redis_url, look)
