"""An attempt at a reinforcement job, of which a test plays the training process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from services.trainer.jobs.publishing import withdraw
from services.trainer.jobs.serving import Serving
from services.trainer.protocol import ReinforcementSpec, TrainSpec, WantRollouts
from services.trainer.rollouts.gathering import Gathering, gathering
from services.trainer.stores import Stores
from shared import ids
from shared.adapters import adapter_digest
from shared.records import DEFAULT_PROJECT, JobRecord
from shared.schemas.graders import Grader
from shared.schemas.methods import ReinforcementMethod, SupervisedHyperparameters
from shared.settings import Settings
from tests.integration.inference_stack import BASE_ID

GROUP = 3
TOKENS = 6
ROWS = [
    {"messages": [{"role": "user", "content": "what is the capital of france?"}], "answer": "paris"},
    {"messages": [{"role": "system", "content": "the dog"}, {"role": "user", "content": "jumps over"}], "answer": "x"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "fox "}, {"type": "text", "text": "brown"}]}]},
]


class Attempt(NamedTuple):
    """One attempt at a job, with a place for its adapters."""

    stores: Stores
    serving: Serving
    record: JobRecord
    spec: TrainSpec
    token: str
    gathering: Gathering

    def wanted(self, adapter: Path, *, step: int = 1, lines: tuple[int, ...] = (1, 2), **changes: Any) -> WantRollouts:
        """Put an adapter where the training process exports it, and want answers by it."""
        digest = adapter_digest(adapter)
        folder = Path(self.spec.adapters_folder) / digest
        if not folder.exists():
            shutil.copytree(adapter, folder)
        asked: dict[str, Any] = {"validation": False, "samples": GROUP, **changes}
        return WantRollouts(step=step, folder=str(folder), sha256=digest, lines=list(lines), **asked)

    async def policies(self) -> list[str]:
        return [policy.sha256 for policy in await self.stores.registry.policies(self.record.id)]

    async def story(self) -> list[str]:
        page, _ = await self.stores.jobs.events(self.record.id, limit=100)
        return [told.message for told in reversed(page)]


@asynccontextmanager
async def attempt(settings: Settings, grader: Any, **method: Any) -> AsyncIterator[Attempt]:
    """Hold a job with three prompts, which nobody else knows."""
    stores = Stores(settings)
    stores.paths.prepare()
    record = JobRecord(
        id=ids.new_job_id(), project=DEFAULT_PROJECT, organization="selftune", created_at=1, model=BASE_ID,
        training_file="file-t", suffix="t", seed=3, requested=SupervisedHyperparameters(),
        model_name=ids.model_name(BASE_ID, "selftune", "t"), method="reinforcement",
        reinforcement=ReinforcementMethod(grader=msgspec.convert(grader, Grader), **method),
    )  # fmt: skip
    folder = stores.paths.job_folder(record.id)
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    chosen = ReinforcementSpec(group_size=GROUP, max_completion_tokens=TOKENS, temperature=0.8)
    spec = TrainSpec(
        job_id=record.id, base_id=BASE_ID, base_folder=settings.base_model, base_fingerprint="tiny",
        adapters_folder=str(stores.paths.adapter_folder(BASE_ID, "0").parent), training_path=str(rows),
        validation_path=str(rows), n_epochs=1, batch_size=2, learning_rate_multiplier=1.0, seed=3, rank=4,
        method="reinforcement", reinforcement=chosen,
    )  # fmt: skip
    serving = Serving(stores)
    try:
        await stores.jobs.create(record, [])
        token = await stores.leases.claim(record.id)
        assert token is not None
        async with gathering(stores, serving, record, spec, token) as given:
            assert given is not None
            yield Attempt(stores, serving, record, spec, token, given)
        await withdraw(stores, record)
    finally:
        await serving.close()
        await stores.close()


def with_attempt(settings: Settings, grader: Any, story: Callable[[Attempt], Awaitable[None]], **method: Any) -> None:
    async def run() -> None:
        async with attempt(settings, grader, **method) as one:
            await story(one)

    asyncio.run(run())
