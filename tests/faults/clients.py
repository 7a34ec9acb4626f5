"""Clients that go on working whatever happens, and write down what they were told."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import httpx2

from tests.faults.ledger import KnownAlias, KnownFile, KnownJob, Ledger
from tests.faults.recipes import RECIPES
from tests.integration.inference_stack import BASE_ID

Answer = dict[str, Any]
MOST_JOBS = 6
"""Unfinished jobs at a time, of all clients."""
_EXCUSED = frozenset({502, 503, 504, 507})
"""What a fault may be answered with."""


class Client:
    """One of several; `name` is in everything that it makes."""

    def __init__(self, name: str, url: str, key: str, ledger: Ledger, dice: random.Random) -> None:
        self.name = name
        self.ledger = ledger
        self._dice = dice
        self._count = 0
        self._http = httpx2.AsyncClient(
            base_url=f"{url}/v1", headers={"authorization": f"Bearer {key}"}, timeout=20, trust_env=False
        )

    async def work(self, stop: asyncio.Event) -> None:
        """Do one thing after another until `stop`."""
        actions = {
            self.upload: 3, self.train: 3, self.chat: 5, self.look: 5, self.delete: 1, self.cancel: 0.4,
            self.pause: 0.6, self.resume: 1.5, self.move_alias: 1.5,
        }  # fmt: skip
        while not stop.is_set():
            action = self._dice.choices(list(actions), list(actions.values()))[0]
            await action()
            await asyncio.sleep(self._dice.uniform(0.05, 0.6))

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, path: str, *, fine: tuple[int, ...] = (200,), **more: Any) -> Answer | None:
        """Return the answer; None for one that did not come or came as a fault's, or with another status in `fine`."""
        try:
            response = await self._http.request(method, path, **more)
        except httpx2.HTTPError:
            self.ledger.unavailable += 1
            return None
        if response.status_code == 200:
            return dict(response.json())
        if response.status_code in _EXCUSED:
            self.ledger.unavailable += 1
        elif response.status_code not in fine:
            self.ledger.blame(method, path, "was answered", response.status_code, response.text[:300])
        return None

    async def upload(self, content: bytes | None = None, *, in_use: bool = False) -> str | None:
        """Upload a file; returns its id if that was acknowledged."""
        name = self._new_name("file")
        content = content if content is not None else f'{{"n": "{name}"}}\n'.encode() * self._dice.randint(1, 4000)
        purpose = "fine-tune" if in_use else "user_data"
        self.ledger.maybe_files.add(name)
        made = await self.ask("POST", "/files", data={"purpose": purpose}, files={"file": (name, content)})
        if made is None:
            return None
        self.ledger.maybe_files.discard(name)
        digest = hashlib.sha256(content).hexdigest()
        self.ledger.files[made["id"]] = KnownFile(digest, in_use=in_use)
        return str(made["id"])

    async def train(self) -> None:
        """Upload a recipe's rows and create a job on them, asking again with the same key when no answer came."""
        if sum(not job.ended_as for job in self.ledger.jobs.values()) >= MOST_JOBS:
            return
        recipe = self._dice.choice(RECIPES)
        file_id = await self.upload(recipe.content(), in_use=True)
        if file_id is None:
            return
        tag = self._new_name("job")
        self.ledger.maybe_jobs.add(tag)
        for _ in range(10):
            made = await self.ask(
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
        answer = await self.ask("POST", "/chat/completions", json=body, fine=(200, 429))
        if answer is not None:
            self.ledger.answers += 1
            if answer["usage"]["completion_tokens"] < 1:
                self.ledger.blame("an empty answer", answer)

    async def look(self) -> None:
        """Look at a job, its events and checkpoints."""
        job_id = self._any_job()
        if job_id is None:
            return
        job = await self.ask("GET", f"/fine_tuning/jobs/{job_id}")
        if job is not None:
            self.ledger.note_end(job_id, job)
        events = await self.ask("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 50})
        if events is not None:
            self.ledger.note_events(job_id, events["data"])
        if job is not None and job["status"] == "succeeded":
            found = await self.ask("GET", f"/fine_tuning/jobs/{job_id}/checkpoints")
            if found is not None:
                self.ledger.jobs[job_id].checkpoints |= {point["id"] for point in found["data"]}

    async def delete(self) -> None:
        """Delete a file that no job needs."""
        unused = [key for key, file in self.ledger.files.items() if not file.in_use and not file.delete_asked]
        if not unused:
            return
        file_id = self._dice.choice(unused)
        self.ledger.files[file_id].delete_asked = True
        if await self.ask("DELETE", f"/files/{file_id}") is not None:
            self.ledger.files[file_id].deleted = True

    async def cancel(self) -> None:
        job_id = self._any_job()
        if job_id is not None:
            self.ledger.jobs[job_id].cancel_asked = True
            if await self.ask("POST", f"/fine_tuning/jobs/{job_id}/cancel", fine=(400,)) is not None:
                self.ledger.jobs[job_id].cancelled = True

    async def pause(self) -> None:
        job_id = self._any_job()
        if job_id is not None:
            self.ledger.jobs[job_id].paused = True
            await self.ask("POST", f"/fine_tuning/jobs/{job_id}/pause", fine=(400,))

    async def resume(self) -> None:
        """Resume a job that was asked to pause; 400 says that it was not paused."""
        for job_id, job in list(self.ledger.jobs.items()):
            if job.paused and await self.ask("POST", f"/fine_tuning/jobs/{job_id}/resume", fine=(400,)) is not None:
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
            moved = await self.ask("POST", f"/aliases/{name}", json=body)
        else:
            moved = await self.ask("POST", "/aliases", json={"name": name, **body}, fine=(400,))
            moved = moved or await self.ask("POST", f"/aliases/{name}", json=body, fine=(404,))
        if moved is not None:
            known.model, known.maybe = target, set()

    def _any_job(self) -> str | None:
        jobs = list(self.ledger.jobs)
        return self._dice.choice(jobs[-12:]) if jobs else None

    def _new_name(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self.name}-{self._count}"
