"""After the last fault: is everything there that was acknowledged, once, and nothing else?"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shared.blobs.local import LocalBlobs
from shared.record_files import RecordFiles
from shared.records import AdapterRecord
from shared.store import entries
from shared.store.client import Client as StoreClient
from shared.store.registry import Registry
from tests.faults.asking import Asker
from tests.faults.batch_verdict import judge_batches, judge_uploads
from tests.faults.ledger import BATCH_ENDS, Answer, Ledger
from tests.faults.recipes import RECIPES
from tests.faults.site import Site

SETTLED_S = 900.0
ENDS = ("succeeded", "failed", "cancelled")
COMPLETED = "The job has successfully completed"
_HOURS_S = 3 * 3600
"""How far the clock is moved for what is swept when it is an hour old."""
_SWEPT_S = 5.0, 30.0
"""How long sweepers have at least, and at most: they look when they start."""
_RECORDED_S = 180.0
"""Within this the records are on disk, also when the process that writes them has died just now."""

_PASSING = ("**/.partial*/*", "**/.partial-*", "files/.unrecorded/*", "**/.*.????????")
"""What is on disk for a moment."""
_NAMED = ("files/file-*", "adapters/*/*", "batches/*", "uploads/*")
"""Folders that stay if a file's id or a model's digest is their name."""


class Verdict:
    """Asks the stack itself, its database and its disk; what is wrong goes into the ledger."""

    def __init__(self, site: Site, ledger: Ledger, digests: dict[int, str], *, disk_was_full: bool) -> None:
        self._site = site
        self._ledger = ledger
        self._digests = digests
        self._disk_was_full = disk_was_full
        self._named: set[str] = set()
        self._asker = Asker(site.urls[1], site.key, ledger)  # the api that is there after a rebuild, too

    def settle(self) -> None:
        """Resume what is paused, and wait until every job is at its end. Raises AssertionError if one never is."""
        deadline = time.monotonic() + SETTLED_S
        while unfinished := self._unfinished():
            for job in unfinished:
                if job["status"] == "paused":
                    self._asker.post(f"/fine_tuning/jobs/{job['id']}/resume")
            assert time.monotonic() < deadline, f"what does not end: {[(it['id'], it['status']) for it in unfinished]}"
            time.sleep(1)

    def _unfinished(self) -> list[Answer]:
        jobs = [job for job in self._jobs() if job["status"] not in ENDS]
        return jobs + [batch for batch in self._asker.all("/batches") if batch["status"] not in BATCH_ENDS]

    def judge(self) -> None:
        self._judge_records()
        self._judge_answers()
        judge_uploads(self._asker, self._ledger, are_expired=self._site.can_move)
        self._judge_database()
        self._judge_recorded()

    def judge_disk(self) -> None:
        """With the stack stopped: nothing half written, and no bytes that nothing names."""
        for left in self._left_on_disk():
            self._ledger.blame("left on disk:", left)

    def judge_rebuilt(self) -> None:
        """With the stack stopped: the data folder alone makes everything again."""
        with self._site.rebuilt() as told:
            for line in told.splitlines():
                if line.startswith("left out"):
                    self._ledger.blame("a rebuild has", line)
            self._judge_records()

    def _judge_records(self) -> None:
        """What has to be there whether the database is the one of the run or one that was made again."""
        self._judge_files()
        self._judge_jobs()
        judge_batches(self._asker, self._ledger)
        self._judge_models()
        self._judge_aliases()

    def _left_on_disk(self) -> list[Path]:
        """Return what is swept once it is an hour old, if an hour can pass."""
        while True:
            with suppress(FileNotFoundError):  # a folder was swept while it was looked through
                return list(self._found_on_disk())

    def _found_on_disk(self) -> Iterator[Path]:
        home = self._site.paths.home
        for pattern in _PASSING if self._site.can_move else ():
            for left in home.glob(pattern):
                if "valkey" not in left.parts and left.name != ".partial":
                    yield left.relative_to(home)
        for pattern in _NAMED if self._site.can_move else ():
            for folder in home.glob(pattern):
                if folder.name not in self._named:
                    yield folder.relative_to(home)

    def _jobs(self) -> list[Answer]:
        return self._asker.all("/fine_tuning/jobs")

    def _judge_files(self) -> None:
        listed = {file["id"]: file for file in self._asker.all("/files")}
        results = {file for job in self._jobs() for file in job["result_files"]}
        for batch in self._asker.all("/batches"):
            results |= {batch["output_file_id"], batch["error_file_id"]}
        for file_id, known in self._ledger.files.items():
            content = self._asker.content(file_id)
            gone = content.status_code == 404
            if gone != (file_id not in listed):
                self._ledger.blame("half a file:", file_id, content.status_code)
            elif gone and not known.delete_asked:
                self._ledger.blame("a file is missing:", file_id)
            elif not gone and known.deleted:
                self._ledger.blame("a deleted file is back:", file_id)
            elif not gone and hashlib.sha256(content.content).hexdigest() != known.sha256:
                self._ledger.blame("a file has other bytes:", file_id)
        for file_id in listed.keys() - self._ledger.files.keys() - results:
            self._judge_unknown_file(listed[file_id])

    def _judge_unknown_file(self, file: Answer) -> None:
        digest = self._ledger.maybe_files.get(file["filename"])
        if file["purpose"] == "fine-tune-results":
            return
        if digest is None:
            self._ledger.blame("a file that nobody uploaded:", file["id"], file["filename"])
        elif hashlib.sha256(self._asker.content(file["id"]).content).hexdigest() != digest:
            self._ledger.blame("a file has other bytes:", file["id"], file["filename"])

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

    def _judge_job(self, job: Answer) -> None:
        job_id, known = job["id"], self._ledger.jobs[job["id"]]
        events = list(reversed(self._asker.all(f"/fine_tuning/jobs/{job_id}/events")))
        lost = set(known.events) - {event["id"] for event in events}
        if lost:
            self._ledger.blame("events are missing:", job_id, [known.events[event] for event in lost])
        self._ledger.note_events(job_id, events)
        self._ledger.note_end(job_id, job, known.ended_as)
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

    def _judge_success(self, job: Answer, events: list[Answer]) -> None:
        job_id, known = job["id"], self._ledger.jobs[job["id"]]
        steps = [event["data"]["step"] for event in events if event["type"] == "metrics"]
        if steps != list(range(1, RECIPES[known.recipe].steps + 1)):
            self._ledger.blame("not every step once:", job_id, len(steps), "of", RECIPES[known.recipe].steps)
        points = self._asker.all(f"/fine_tuning/jobs/{job_id}/checkpoints")
        if len({point["step_number"] for point in points}) != len(points) or not points:
            self._ledger.blame("checkpoints doubled or missing:", job_id, points)
        if known.checkpoints - {point["id"] for point in points}:
            self._ledger.blame("a checkpoint is missing:", job_id)
        for file_id in job["result_files"]:
            if self._asker.content(file_id).status_code != 200:
                self._ledger.blame("a result file is missing:", job_id)
        adapter = asyncio.run(self._adapter(job["fine_tuned_model"]))
        if adapter is None or adapter.sha256 != self._digests[known.recipe]:
            self._ledger.blame("not the model of an undisturbed run:", job_id, adapter and adapter.sha256)

    def _excuses(self, error: Answer | None) -> bool:
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

    def _finals(self) -> set[str]:
        return {job["fine_tuned_model"] for job in self._jobs() if job["status"] == "succeeded"}

    def _judge_models(self) -> None:
        listed = {model["id"] for model in self._asker.page("/models")["data"] if model["id"].startswith("ft:")}
        listed = {name for name in listed if ":ckpt-step-" not in name}
        if listed != self._finals():
            self._ledger.blame("models that no job made, or the other way round:", sorted(listed ^ self._finals()))

    def _judge_answers(self) -> None:
        for name in sorted(self._finals())[:20]:
            body = {"model": name, "messages": [{"role": "user", "content": "colour 1 of 1?"}], "max_tokens": 2}
            answer = self._asker.post("/chat/completions", body)
            if answer.status_code != 200:
                self._ledger.blame("a model does not answer:", name, answer.status_code, answer.text[:200])

    def _judge_aliases(self) -> None:
        for name, known in self._ledger.aliases.items():
            answer = self._asker.get(f"/aliases/{name}")
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

    def _judge_recorded(self) -> None:
        """The database's records lie beside it as they are."""
        deadline = time.monotonic() + _RECORDED_S
        while differing := asyncio.run(self._not_recorded()):
            if time.monotonic() > deadline:
                self._ledger.blame("not recorded beside the database:", sorted(differing))
                return
            time.sleep(1)

    async def _not_recorded(self) -> set[str]:
        """Return the keys of records that differ from their files, or of which only one is there."""
        client = StoreClient(self._site.redis_url)
        try:
            held: dict[str, entries.Entry] = {}
            for family, names in (await entries.find(client)).items():
                if entries.kind_of(family).mirrored:
                    held |= {entry.key: entry async for entry in entries.read(client, family, names)}
        finally:
            await client.close()
        files = RecordFiles(LocalBlobs(self._site.paths))
        found = {entry.key: entry async for _, entry in files.read() if entry is not None}
        return {key for key in held.keys() | found.keys() if held.get(key) != found.get(key)}

    def sweep(self) -> None:
        """Let three hours pass, and the services look for what they left behind; one api answers meanwhile."""
        if self._site.can_move:
            self._site.move_clock_beyond(_HOURS_S)
            for target in ("api", "trainer"):  # each sweeps when it starts
                for process in self._site.processes(target):
                    process.terminate()
            if self._asker.get("/files").status_code != 200:
                self._ledger.blame("one api does not answer without the other")
            self._site.wait_until_ready()
            time.sleep(_SWEPT_S[0])
        self._named = {file["id"] for file in self._asker.all("/files")} | asyncio.run(self._registered())
        deadline = time.monotonic() + _SWEPT_S[1]
        while self._left_on_disk() and time.monotonic() < deadline:
            time.sleep(1)

    def close(self) -> None:
        self._asker.close()
