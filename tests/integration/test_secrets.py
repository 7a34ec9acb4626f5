"""Known secrets in a real api and a real trainer, errors wherever they can be had, and a search for them afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from shared.settings import Settings
from tests.api_server import ROOT, ApiServer, wait_until
from tests.conftest import start_valkey
from tests.integration.trainer_stack import BASE_ID, TrainerProcess, running_trainer
from tests.unit.trainer.tiny import training_rows

SECRETS = {
    name: f"s3cret-{name.lower().replace('_', '-')}-0123456789"
    for name in (
        *("INTERNAL", "REDIS", "MLFLOW_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"),
    )
}
IN_ENVIRONMENT = {
    **{name: SECRETS[name] for name in SECRETS if name not in ("INTERNAL", "REDIS", "MLFLOW_URI")},
    "MLFLOW_TRACKING_USERNAME": "mlflow-user",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
}


class Scene:
    """A database with a password, an api and a trainer that know every secret, and all they have said."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self._valkey_folder = Path(tempfile.mkdtemp(prefix="st-secret-"))
        self.valkey = start_valkey(self._valkey_folder)
        socket = self._valkey_folder / "valkey.sock"
        self.password(socket, None, SECRETS["REDIS"])
        self.socket = socket
        options: dict[str, Any] = {
            "internal_key": SECRETS["INTERNAL"], "log_level": "DEBUG", "lease_ttl_s": 2.0, "threads": 1,
            "mlflow_tracking_uri": f"http://user:{SECRETS['MLFLOW_URI']}@127.0.0.1:9/", "base_model": str(base),
            "max_model_len": 128, "lora_rank": 4, "webhook_allow_private": True, "webhook_retry_base_s": 0.05,
        }  # fmt: skip
        self.api = ApiServer(folder / "data", f"unix://:{SECRETS['REDIS']}@{socket}?db=0", **options)
        self.secrets = {**SECRETS, "admin key": self.api.key}
        self.heard: list[str] = []

    def password(self, socket: Path, old: str | None, new: str) -> None:
        with redis.Redis(unix_socket_path=str(socket), password=old) as client:
            client.config_set("requirepass", new)

    def close(self) -> None:
        self.api.stop()
        self.valkey.terminate()
        self.valkey.wait(timeout=20)
        shutil.rmtree(self._valkey_folder, ignore_errors=True)

    def ask(self, method: str, path: str, key: str | None = None, **body: Any) -> Any:
        """Send a request and keep what is answered, its headers too."""
        with self.api.client(key) as http:
            answer = http.request(method, path, **body)
        self.heard.append(f"{method} {path}: {answer.headers} {answer.text}")
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}

    def check_command_lines(self, *roots: int) -> None:
        """No process of this scene shows a secret to every user of the machine."""
        for root in roots:
            for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
                try:
                    line = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                assert not self.found_in(line), line

    def found_in(self, text: str) -> list[str]:
        return [name for name, secret in self.secrets.items() if secret in text]

    def everything_said(self) -> Iterator[tuple[str, str]]:
        """Yield each log, each answer and each file of a job, by name."""
        yield from ((f"answer {number}", text) for number, text in enumerate(self.heard))
        for path in self.folder.rglob("*"):
            # records/ is the database once more, for its owner alone: secrets that are used again are in both
            is_record = path.is_relative_to(self.api.paths.records)
            if path.is_file() and not is_record and path not in (self.api.paths.admin_key, self.api.paths.internal_key):
                yield str(path), path.read_bytes().decode(errors="replace")


@pytest.fixture
def scene(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name, value in IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    scene = Scene(tmp_path, tiny_base)
    yield scene
    scene.close()


def upload(scene: Scene, rows: bytes) -> str:
    files = {"file": ("rows.jsonl", rows)}
    return str(scene.ask("POST", "/v1/files", files=files, data={"purpose": "fine-tune"})["id"])


def create_job(scene: Scene, file_id: str, **more: Any) -> str:
    body = {"model": BASE_ID, "training_file": file_id, "integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}
    return str(scene.ask("POST", "/v1/fine_tuning/jobs", json={**body, **more})["id"])


def ended(scene: Scene, job_id: str) -> str:
    def status() -> str:
        with scene.api.client() as http:
            found = str(http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"])
        return found if found in ("succeeded", "failed", "cancelled") else ""

    return wait_until(status, timeout_s=150)


def test_no_secret_is_in_a_log_an_answer_an_event_or_a_command_line(scene: Scene) -> None:
    rows = "\n".join(json.dumps(row) for row in training_rows(24)).encode()
    with running_trainer(scene.api.settings, scene.folder) as trainer:
        good, bad = jobs_of(scene, rows)
        look_at_processes_until_it_ends(scene, trainer, good)
        assert ended(scene, bad) == "failed"
        wrong_requests(scene, good)
        doctor(scene)
        database_that_refuses_and_dies(scene)
        assert trainer.process is not None and scene.api.process.poll() is None
    said = dict(scene.everything_said())
    for heard in ("store_unavailable", "webhook.failed", "Weights & Biases: a run could", "MLflow: the server did not"):
        assert any(heard in text for text in said.values()), heard
    assert {name: scene.found_in(text) for name, text in said.items() if scene.found_in(text)} == {}


def jobs_of(scene: Scene, rows: bytes) -> tuple[str, str]:
    """Create a webhook that is never reached, a job that trains with W&B and MLflow away, and one that fails."""
    hook = {"name": "n", "url": "http://127.0.0.1:9/", "event_types": ["fine_tuning.job.failed"]}
    made = scene.ask("POST", "/v1/webhook_endpoints", json=hook)
    scene.heard.pop()  # the one answer that is meant to show it
    scene.secrets["webhook"] = made["signing_secret"]
    scene.ask("POST", f"/v1/webhook_endpoints/{made['id']}/test", json={"event_type": "fine_tuning.job.failed"})
    wait_until(lambda: scene.ask("GET", "/v1/models")["data"], timeout_s=60)
    bad = create_job(scene, upload(scene, b"{}\n" * 20))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}
    return create_job(scene, upload(scene, rows), method=method, selftune={"mlflow": {"experiment": "e"}}), bad


def look_at_processes_until_it_ends(scene: Scene, trainer: TrainerProcess, job_id: str) -> None:
    assert trainer.process is not None
    until, status = time.monotonic() + 200, ""
    while status not in ("succeeded", "failed"):
        assert time.monotonic() < until, status
        scene.check_command_lines(scene.api.process.pid, trainer.process.pid)
        with scene.api.client() as http:
            status = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"]
        time.sleep(0.2)
    assert status == "succeeded"


def wrong_requests(scene: Scene, job_id: str) -> None:
    jobs = "/v1/fine_tuning/jobs"
    paths = [f"{jobs}/{job_id}", f"{jobs}/{job_id}/events?limit=100", "/v1/files", "/v1/webhook_endpoints", "/readyz"]
    for path in (*paths, "/v1/organization/admin_api_keys", "/v1/models", "/nothing"):
        scene.ask("GET", path)
        scene.ask("GET", path, key=scene.api.key + "x")
        scene.heard.pop()  # a wrong key may be shown in part to who has sent it; the right one is not looked for there
    scene.ask("POST", "/v1/chat/completions", json={"model": BASE_ID, "messages": []})
    scene.ask("POST", "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})


def doctor(scene: Scene) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "doctor"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **scene.api.settings.to_env()},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "redis_url" in done.stdout, done.stderr
    scene.heard.append(done.stdout + done.stderr)


def database_that_refuses_and_dies(scene: Scene) -> None:
    scene.password(scene.socket, SECRETS["REDIS"], "another")
    with redis.Redis(unix_socket_path=str(scene.socket), password="another") as client:
        client.client_kill_filter(_type="normal", skipme=True)
    for path in ("/v1/files", "/readyz"):
        scene.ask("GET", path)
    assert '"code":"store_unavailable"' in scene.heard[-2]
    scene.valkey.kill()
    time.sleep(1)
    for path in ("/v1/files", "/readyz"):
        scene.ask("GET", path)


@pytest.mark.parametrize(
    "url", ["redis://:s3cret/slash@127.0.0.1:1/0", "redis://u:s3cret@127.0.0.1:s3cret/0", "s3cret"]
)
@pytest.mark.parametrize("module", ["services.api", "services.trainer"])
def test_database_url_that_is_none_is_refused_without_being_shown(tmp_path: Path, module: str, url: str) -> None:
    environment = Settings(data_dir=str(tmp_path), redis_url=url).to_env()
    done = subprocess.run(
        [sys.executable, "-m", module], env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "redis_url" in done.stdout + done.stderr
    assert "s3cret" not in done.stdout + done.stderr
