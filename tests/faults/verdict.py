"""After the last fault: is everything there that was acknowledged, once, and nothing else?"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from typing import Any

import httpx2

from shared.records import AdapterRecord
from shared.store.client import Client as StoreClient
from shared.store.registry import Registry
from tests.faults.ledger import Ledger
from tests.faults.recipes import RECIPES
from tests.faults.site import Site

SETTLED_S = 900.0
ENDS = ("succeeded", "failed", "cancelled")
COMPLETED = "The job has successfully completed"
_HOURS_S = 3 * 3600
"""How far the clock is moved for what is swept when it is an hour old."""


class Verdict:
    """Asks the stack itself, its database and its disk; what is wrong goes into the ledger."""

    def __init__(self, site: Site, ledger: Ledger, digests: dict[int, str], *, disk_was_full: bool) -> None:
        self._site = site
        self._ledger = ledger
        self._digests = digests
        self._disk_was_full = disk_was_full
        self._named: set[str] = set()
        self._http = httpx2.Client(
            base_url=f"{site.url}/v1", headers={"authorization": f"Bearer {site.key}"}, timeout=60, trust_env=False
        )

    def settle(self) -> None:
        """Resume what is paused, and wait until every job is at its end. Raises AssertionError if one never is."""
        deadline = time.monotonic() + SETTLED_S
        while unfinished := [job for job in self._jobs() if job["status"] not in ENDS]:
            for job in unfinished:
                if job["status"] == "paused":
                    self._http.post(f"/fine_tuning/jobs/{job['id']}/resume")
            assert time.monotonic() < deadline, f"jobs that do not end: {[(j['id'], j['status']) for j in unfinished]}"
            time.sleep(1)

    def judge(self) -> None:
        self._judge_files()
        self._judge_jobs()
        self._judge_models()
        self._judge_aliases()
        self._judge_database()
        self._named = {file["id"] for file in self._all("/files")} | asyncio.run(self._registered())

    def judge_disk(self) -> None:
        """With the stack stopped: nothing half written, and no bytes that nothing names."""
        home = self._site.paths.home
        for pattern in ("**/.partial*/*", "**/.partial-*", "files/.unrecorded/*", "**/.*.????????"):
            for left in home.glob(pattern):
                if "valkey" not in left.parts and left.name != ".partial":
                    self._ledger.blame("left on disk:", left.relative_to(home))
        if self._site.can_move:  # else what nothing names any more is swept in an hour
            kept = [
                *home.glob("files/file-*"),
                *home.glob("adapters/*/*"),
                *home.glob("batches/*"),
                *home.glob("uploads/*"),
            ]
            for folder in kept:
                if folder.name not in self._named:
                    self._ledger.blame("nothing names it:", folder.relative_to(home))

    def _get(self, path: str, **query: Any) -> Any:
        response = self._http.get(path, params=query)
        assert response.status_code == 200, (path, response.status_code, response.text)
        return response.json()

    def _all(self, path: str) -> list[dict[str, Any]]:
        """Follow a list to its end."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._get(path, limit=100, **({"after": found[-1]["id"]} if found else {}))
            found += page["data"]
            if not page["has_more"]:
                break
        ids = [one["id"] for one in found]
        if len(set(ids)) != len(ids):
            self._ledger.blame("doubled in a list:", path, sorted(one for one in ids if ids.count(one) > 1))
        return found

    def _jobs(self) -> list[dict[str, Any]]:
        return self._all("/fine_tuning/jobs")

    def _judge_files(self) -> None:
        listed = {file["id"]: file for file in self._all("/files")}
        results = {file for job in self._jobs() for file in job["result_files"]}
        for file_id, known in self._ledger.files.items():
            content = self._http.get(f"/files/{file_id}/content")
            gone = content.status_code == 404
            if gone != (file_id not in listed):
                self._ledger.blame("half a file:", file_id, content.status_code)
            elif gone and not known.delete_asked:
                self._ledger.blame("a file is missing:", file_id)
            elif not gone and known.deleted:
                self._ledger.blame("a deleted file is back:", file_id)
            elif not gone and hashlib.sha256(content.content).hexdigest() != known.sha256:
                self._ledger.blame("a file has other bytes:", file_id)
        for file_id, file in listed.items():
            mine = file_id in self._ledger.files or file_id in results
            if not mine and file["filename"] not in self._ledger.maybe_files and file["purpose"] != "fine-tune-results":
                self._ledger.blame("a file that nobody uploaded:", file_id, file["filename"])

    def _judge_jobs(self) -> None:
        found = {job["id"]: job for job in self._jobs()}
        tags = [job["metadata"]["tag"] for job in found.values() if "tag" in (job["metadata"] or {})]
        if len(set(tags)) != len(tags):
            self._ledger.blame("a job was made twice:", sorted(tag for tag in tags if tags.count(tag) > 1))
        known_tags = {job.tag for job in self._ledger.jobs.values()} | self._ledger.maybe_jobs
        for tag in set(tags) - known_tags:
            self._ledger.blame("a job that nobody made:", tag)
        for job_id in self._ledger.jobs:
            if job_id not in found:
                self._ledger.blame("a job is missing:", job_id)
            else:
                self._judge_job(found[job_id])

    def _judge_job(self, job: dict[str, Any]) -> None:
        job_id, known = job["id"], self._ledger.jobs[job["id"]]
        events = list(reversed(self._all(f"/fine_tuning/jobs/{job_id}/events")))
        lost = set(known.events) - {event["id"] for event in events}
        if lost:
            self._ledger.blame("events are missing:", job_id, [known.events[event] for event in lost])
        self._ledger.note_events(job_id, events)
        self._ledger.note_end(job_id, job)
        messages = [event["message"] for event in events]
        if known.cancelled and job["status"] != "cancelled":
            self._ledger.blame("a cancelled job went on:", job_id, job["status"])
        if job["status"] == "cancelled" and not known.cancel_asked:
            self._ledger.blame("a job was cancelled by nobody:", job_id)
        if job["status"] == "failed" and not self._excuses(job["error"]):
            self._ledger.blame("a job failed:", job_id, job["error"], messages[-6:])
        if messages.count(COMPLETED) != (job["status"] == "succeeded"):
            self._ledger.blame("not exactly one end:", job_id, job["status"], messages.count(COMPLETED))
        if job["status"] == "succeeded":
            self._judge_success(job, events)

    def _judge_success(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        job_id, known = job["id"], self._ledger.jobs[job["id"]]
        steps = [event["data"]["step"] for event in events if event["type"] == "metrics"]
        if steps != list(range(1, RECIPES[known.recipe].steps + 1)):
            self._ledger.blame("not every step once:", job_id, len(steps), "of", RECIPES[known.recipe].steps)
        points = self._all(f"/fine_tuning/jobs/{job_id}/checkpoints")
        if len({point["step_number"] for point in points}) != len(points) or not points:
            self._ledger.blame("checkpoints doubled or missing:", job_id, points)
        if known.checkpoints - {point["id"] for point in points}:
            self._ledger.blame("a checkpoint is missing:", job_id)
        for file_id in job["result_files"]:
            if self._http.get(f"/files/{file_id}/content").status_code != 200:
                self._ledger.blame("a result file is missing:", job_id)
        adapter = asyncio.run(self._adapter(job["fine_tuned_model"]))
        if adapter is None or adapter.sha256 != self._digests[known.recipe]:
            self._ledger.blame("not the model of an undisturbed run:", job_id, adapter and adapter.sha256)

    def _excuses(self, error: dict[str, Any] | None) -> bool:
        """Whether a job may have failed of this: a full disk ends it, with that reason; nothing else does."""
        return self._disk_was_full and error is not None and error["code"] == "disk_full"

    async def _registered(self) -> set[str]:
        client = StoreClient(self._site.redis_url)
        try:
            return await Registry(client).digests()
        finally:
            await client.close()

    async def _adapter(self, name: str) -> AdapterRecord | None:
        client = StoreClient(self._site.redis_url)
        try:
            return await Registry(client).get(name)
        finally:
            await client.close()

    def _judge_models(self) -> None:
        jobs = {job["fine_tuned_model"] for job in self._jobs() if job["status"] == "succeeded"}
        listed = {model["id"] for model in self._get("/models")["data"] if model["id"].startswith("ft:")}
        finals = {name for name in listed if ":ckpt-step-" not in name}
        if finals != jobs:
            self._ledger.blame("models that no job made, or the other way round:", sorted(finals ^ jobs))
        for name in sorted(jobs)[:20]:
            answer = self._http.post(
                "/chat/completions",
                json={"model": name, "messages": [{"role": "user", "content": "colour 1 of 1?"}], "max_tokens": 2},
            )
            if answer.status_code != 200:
                self._ledger.blame("a model does not answer:", name, answer.status_code, answer.text[:200])

    def _judge_aliases(self) -> None:
        for name, known in self._ledger.aliases.items():
            answer = self._http.get(f"/aliases/{name}")
            if answer.status_code == 404 and not known.model:
                continue
            if answer.status_code != 200 or answer.json()["model"] not in {known.model, *known.maybe}:
                self._ledger.blame("an alias is not where it was put:", name, answer.text[:300], known)

    def _judge_database(self) -> None:
        """No lease, no message, no mark is left."""
        deadline = time.monotonic() + 30  # the reaper clears queues every five seconds
        while left := self._left_in_database():
            if time.monotonic() > deadline:
                self._ledger.blame("left in the database:", left)
                return
            time.sleep(1)

    def _left_in_database(self) -> list[str]:
        with self._site.redis() as client:
            names = [str(name) for name in client.scan_iter(count=1000)]
            left = [
                name for name in names if re.match(r"selftune:(job|batch)_lease:|arq:(job|in-progress|retry):", name)
            ]
            queues = (
                "selftune:queue:train",
                "selftune:queue:validate",
                "selftune:active_jobs",
                "selftune:active_batches",
            )
            return left + [name for name in queues if name in names]

    def sweep(self) -> None:
        """Let three hours pass, and the services look for what they left behind."""
        if not self._site.can_move:
            return
        self._site.move_clock(_HOURS_S)
        for target in ("api", "trainer"):  # each sweeps when it starts
            for process in self._site.processes(target):
                process.terminate()
        self._site.wait_until_ready()
        time.sleep(15)  # both look at once, and at much

    def close(self) -> None:
        self._http.close()
