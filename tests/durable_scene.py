"""A server with something of everything that has to outlive its database, and what clients see of it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import redis
from msgspec.structs import replace

from services.trainer.base.description import describe_base
from shared import ids, keys
from shared.adapters import adapter_digest
from shared.paths import Paths
from shared.records import JobRecord
from shared.schemas.checkpoints import Checkpoint, CheckpointMetrics
from shared.schemas.methods import SupervisedHyperparameters
from shared.states import JobState
from shared.store.client import Client
from shared.store.completions import CompletionStore, StoredCompletion
from shared.store.jobs import JobStore, event
from shared.store.registry import Registry
from tests.adapter_files import write_adapter, write_base
from tests.api_server import BASE, ApiServer, make_adapter, with_store
from tests.conftest import start_valkey

MODEL = "ft:org/tiny-base:selftune:kept:abc123"
_QUOTED = quote(MODEL, safe="")
PROJECT = "proj_default"
CHAT_LINE = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}

BATCH_LINE = {
    "custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
    "body": {"model": BASE, "messages": [{"role": "user", "content": "hi"}]},
}  # fmt: skip


@contextmanager
def valkey() -> Iterator[str]:
    """Run a database of its own and give its URL."""
    folder = Path(tempfile.mkdtemp(prefix="st-valkey-"))
    process = start_valkey(folder)
    try:
        yield f"unix://{folder / 'valkey.sock'}"
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(home: Path, url: str, **settings: Any) -> Iterator[ApiServer]:
    """Run an api that writes records down every 0.2 seconds."""
    running = ApiServer(home, url, records_interval_s=0.2, webhook_allow_private=True, **settings)
    try:
        yield running
    finally:
        running.stop()


def upload(http: httpx2.Client, name: str, *, rows: int = 12, purpose: str = "fine-tune") -> str:
    line = CHAT_LINE if purpose == "fine-tune" else BATCH_LINE
    content = "\n".join([json.dumps(line)] * rows).encode()
    answer = http.post("/v1/files", files={"file": (name, content), "purpose": (None, purpose)})
    return str(answer.raise_for_status().json()["id"])


def populate(api: ApiServer) -> dict[str, str]:
    """Fill a server, and return a key of a project of its own."""
    with api.client() as http:
        files = [upload(http, f"file {number}.jsonl", rows=10 + number) for number in range(4)]
        files.append(upload(http, "file 4.jsonl", rows=1, purpose="batch"))
        _publish(api)
        with_store(api.settings.redis_url, lambda client: _make_jobs(client, files[0]))
        project = http.post("/v1/organization/projects", json={"name": "others"}).raise_for_status().json()["id"]
        account = http.post(f"/v1/organization/projects/{project}/service_accounts", json={"name": "robot"})
        key = account.raise_for_status().json()["api_key"]["value"]
        for path, body in (
            ("/v1/aliases", {"name": "support", "model": MODEL, "wait_warm": False}),
            ("/v1/aliases", {"name": "support-2", "model": BASE}),
            (f"/v1/fine_tuning/checkpoints/{_QUOTED}/permissions", {"project_ids": [project]}),
            (
                "/v1/webhook_endpoints",
                {"name": "hook", "url": "http://127.0.0.1:9/x", "event_types": ["batch.completed"]},
            ),
            (
                "/v1/batches",
                {"input_file_id": files[4], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
            ),
        ):
            answer = http.post(path, json=body)
            assert answer.is_success, f"{path}: {answer.text}"
        answer = http.post("/v1/aliases/support", json={"model": BASE})
        assert answer.is_success, answer.text
    return {"project": project, "key": key, "file": files[2]}


def _publish(api: ApiServer) -> None:
    """Register a base and an adapter on it, whose files are in the data folder."""
    base = write_base(api.paths.bases / "tiny")
    staged = write_adapter(api.paths.adapters / "staged")
    digest = adapter_digest(staged)
    folder = api.paths.adapter_folder(BASE, digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(folder)

    async def publish(client: Client) -> None:
        registry = Registry(client)
        described = describe_base(base, BASE)
        await registry.put_base(replace(described, path="bases/tiny"))
        adapter = make_adapter(
            MODEL, sha256=digest, folder=api.paths.relative(folder), rank=4, job_id="ftjob-done",
            base_fingerprint=described.fingerprint,
        )  # fmt: skip
        await registry.publish(adapter)
        await registry.pin(adapter, pinned=True)

    with_store(api.settings.redis_url, publish)


async def _make_jobs(client: Client, file_id: str) -> None:
    jobs = JobStore(client)
    for job_id in ("ftjob-done", "ftjob-waits"):
        record = make_job(job_id, file_id)
        await jobs.create(record, [event("Created fine-tuning job")])
    await jobs.update("ftjob-done", lambda job: replace(job, status=JobState.QUEUED))
    await jobs.update("ftjob-done", lambda job: replace(job, status=JobState.RUNNING, started=True))
    steps = [event(f"Step {step}", type="metrics", data={"step": step, "train_loss": 1.5}) for step in range(1, 601)]
    await jobs.append_events("ftjob-done", steps, nonce=ids.new_token())
    for step in (300, 600):
        await jobs.append_checkpoint(make_checkpoint("ftjob-done", step))
    await jobs.finish(
        "ftjob-done", JobState.SUCCEEDED, events=[event("The job has completed")], fine_tuned_model=MODEL,
        trained_tokens=1234,
    )  # fmt: skip
    await jobs.update("ftjob-waits", lambda job: replace(job, status=JobState.QUEUED))
    stored = StoredCompletion(
        id="chatcmpl-1", project=PROJECT, model=BASE, metadata={"a": "b"},
        body=json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": BASE,
                         "choices": []}).encode(),
    )  # fmt: skip
    await CompletionStore(client, keep_days=30).keep(stored, messages=b"[]")


def make_checkpoint(job_id: str, step: int) -> Checkpoint:
    return Checkpoint(
        id=f"ftckpt-{step}", created_at=int(time.time()), fine_tuned_model_checkpoint=f"{MODEL}:ckpt-step-{step}",
        fine_tuning_job_id=job_id, metrics=CheckpointMetrics(step=step), step_number=step,
    )  # fmt: skip


def make_job(job_id: str, file_id: str) -> JobRecord:
    return JobRecord(
        id=job_id, project=PROJECT, organization="selftune", created_at=int(time.time()), model=BASE,
        training_file=file_id, seed=7, requested=SupervisedHyperparameters(), model_name=MODEL,
    )  # fmt: skip


LISTS = (
    "/v1/files?limit=100", "/v1/models", "/v1/aliases", "/v1/aliases/support", "/v1/aliases/support/history",
    "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/ftjob-done", "/v1/fine_tuning/jobs/ftjob-waits",
    "/v1/fine_tuning/jobs/ftjob-done/events?limit=100", "/v1/fine_tuning/jobs/ftjob-done/checkpoints",
    f"/v1/fine_tuning/checkpoints/{_QUOTED}/permissions", f"/v1/models/{_QUOTED}/settings", "/v1/webhook_endpoints",
    "/v1/organization/projects", "/v1/batches",
)  # fmt: skip
"""What clients read."""


def seen(api: ApiServer, key: str) -> dict[str, Any]:
    """Return what the server answers to each of LISTS, the bytes of its files, and what another project sees."""
    found: dict[str, Any] = {}
    with api.client() as http:
        for path in LISTS:
            answer = http.get(path)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            found[path] = answer.json()
        with_status = found.pop("/v1/batches")["data"]
        found["batches"] = [(batch["id"], batch["input_file_id"]) for batch in with_status]
        for file in found[LISTS[0]]["data"]:
            found[file["id"]] = http.get(f"/v1/files/{file['id']}/content").raise_for_status().content
    with api.client(key) as http:
        found["models of the other project"] = http.get("/v1/models").raise_for_status().json()
    return found


def stored(url: str) -> dict[str, Any]:
    """Return every record of a database as it is stored, without what lives for seconds."""
    passing = {"selftune:schema", "selftune:recorder_lock"}
    with redis.Redis.from_url(url) as client:
        return {
            name.decode(): client.dump(name)
            for name in client.scan_iter("selftune:*")
            if name.decode() not in passing and not name.startswith(b"selftune:key_used:")
        }


def recorded(paths: Paths, key: str) -> bool:
    """Whether the file of a record is there."""
    return any(key.encode() in path.read_bytes() for path in paths.records.glob("*/*.json"))


def schema_id(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        return (client.hget(keys.SCHEMA, "id") or b"").decode()
