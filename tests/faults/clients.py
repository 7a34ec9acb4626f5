"""Clients that go on working whatever happens, and write down what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.batch_client import BatchClient
from tests.faults.calls import Calls
from tests.faults.ledger import KnownAlias, KnownJob, Ledger
from tests.faults.parts_client import PartsClient
from tests.faults.recipes import RECIPES
from tests.integration.inference_stack import BASE_ID

MOST_JOBS = 6
"""Unfinished jobs at a time, of all clients."""


class Client:
    """One of several; `name` is in everything that it makes, `urls` are those of the api processes."""

    def __init__(self, name: str, urls: Sequence[str], key: str, ledger: Ledger, dice: random.Random) -> None:
        self.name = name
        self.ledger = ledger
        self.calls = Calls(name, urls, key, ledger, dice)
        self._dice = dice
        self._batches = BatchClient(self.calls)
        self._parts = PartsClient(self.calls)

    async def work(self, stop: asyncio.Event) -> None:
        """Do one thing after another until `stop`."""
        actions: dict[Callable[[], Awaitable[object]], float] = {
            self.calls.upload: 2, self._parts.send: 1.5, self.train: 3, self.chat: 5, self.look: 5, self.delete: 1,
            self.cancel: 0.4, self.pause: 0.6, self.resume: 1.5, self.move_alias: 1.5, self._batches.start: 1.5,
            self._batches.look: 1.5,
        }  # fmt: skip
        while not stop.is_set():
            action = self._dice.choices(list(actions), list(actions.values()))[0]
            await action()
            await asyncio.sleep(self._dice.uniform(0.05, 0.6))

    async def close(self) -> None:
        await self.calls.close()

    async def train(self) -> None:
        """Upload a recipe's rows and create a job on them, asking again with the same key when no answer came."""
        if sum(not job.ended_as for job in self.ledger.jobs.values()) >= MOST_JOBS:
            return
        recipe = self._dice.choice(RECIPES)
        file_id = await self.calls.upload(recipe.content(), purpose="fine-tune")
        if file_id is None:
            return
        tag = self.calls.new_name("job")
        self.ledger.maybe_jobs.add(tag)
        for _ in range(4):
            made = await self.calls.ask(
                "POST", "/fine_tuning/jobs", json=recipe.job(file_id, tag), headers={"idempotency-key": tag}
            )
            if made is not None:
                self.ledger.maybe_jobs.discard(tag)
                self.ledger.jobs[made["id"]] = KnownJob(recipe.number, tag)
                return
            await asyncio.sleep(1)

    async def chat(self) -> None:
        """Ask the base or a model that somebody was shown."""
        models = [BASE_ID, *(job.model for job in self.ledger.jobs.values() if job.model)]
        body = {
            "model": self._dice.choice(models), "messages": [{"role": "user", "content": "colour 3 of 1?"}],
            "max_tokens": 4, "temperature": 0,
        }  # fmt: skip
        answer = await self.calls.ask("POST", "/chat/completions", json=body, fine=(429,))
        if answer is not None:
            self.ledger.answers += 1
            if answer["usage"]["completion_tokens"] < 1:
                self.ledger.blame("an empty answer", answer)

    async def look(self) -> None:
        """Look at a job, its events and checkpoints."""
        job_id = self._any_job()
        if job_id is None:
            return
        known_before = self.ledger.jobs[job_id].ended_as
        job = await self.calls.ask("GET", f"/fine_tuning/jobs/{job_id}")
        if job is not None:
            self.ledger.note_end(job_id, job, known_before)
        events = await self.calls.ask("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 50})
        if events is not None:
            self.ledger.note_events(job_id, events["data"])
        if job is not None and job["status"] == "succeeded":
            found = await self.calls.ask("GET", f"/fine_tuning/jobs/{job_id}/checkpoints")
            if found is not None:
                self.ledger.jobs[job_id].checkpoints |= {point["id"] for point in found["data"]}

    async def delete(self) -> None:
        """Delete a file that no job needs."""
        unused = [key for key, file in self.ledger.files.items() if not file.in_use and not file.delete_asked]
        if not unused:
            return
        file_id = self._dice.choice(unused)
        self.ledger.files[file_id].delete_asked = True
        if await self.calls.ask("DELETE", f"/files/{file_id}", fine_again=(404,)) is not None:
            self.ledger.files[file_id].deleted = True

    async def cancel(self) -> None:
        job_id = self._any_job()
        if job_id is not None:
            self.ledger.jobs[job_id].cancel_asked = True
            if await self.calls.ask("POST", f"/fine_tuning/jobs/{job_id}/cancel", fine=(400,)) is not None:
                self.ledger.jobs[job_id].cancelled = True

    async def pause(self) -> None:
        job_id = self._any_job()
        if job_id is not None:
            self.ledger.jobs[job_id].paused = True
            await self.calls.ask("POST", f"/fine_tuning/jobs/{job_id}/pause", fine=(400,))

    async def resume(self) -> None:
        """Resume a job that was asked to pause; 400 says that it was not paused."""
        for job_id, job in list(self.ledger.jobs.items()):
            if (
                job.paused
                and await self.calls.ask("POST", f"/fine_tuning/jobs/{job_id}/resume", fine=(400,)) is not None
            ):
                job.paused = False
                return

    async def move_alias(self) -> None:
        """Point this client's alias to some model."""
        models = sorted({job.model for job in self.ledger.jobs.values() if job.model})
        if not models:
            return
        target, name = self._dice.choice(models), f"alias-{self.name}"
        known = self.ledger.aliases.setdefault(name, KnownAlias())
        known.maybe.add(target)
        body = {"model": target, "wait_warm": False}
        if known.model:
            moved = await self.calls.ask("POST", f"/aliases/{name}", json=body)
        else:
            moved = await self.calls.ask("POST", "/aliases", json={"name": name, **body}, fine=(400,))
            moved = moved or await self.calls.ask("POST", f"/aliases/{name}", json=body, fine=(404,))
        if moved is not None:
            known.model, known.maybe = target, set()

    def _any_job(self) -> str | None:
        jobs = list(self.ledger.jobs)
        return self._dice.choice(jobs[-12:]) if jobs else None
