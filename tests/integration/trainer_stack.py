"""The trainer process for integration tests, and a client that does what the api does, without HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.api.jobs.control import JobControl
from services.trainer.stores import Stores
from shared import ids
from shared.paths import Paths
from shared.records import DEFAULT_PROJECT, FileRecord, JobRecord
from shared.schemas.methods import SupervisedHyperparameters
from shared.settings import Settings
from shared.states import TERMINAL, JobState
from shared.store.jobs import event
from tests.api_server import NO_METRICS
from tests.conftest import start_valkey
from tests.unit.trainer.tiny import save_tiny_base, write_rows

DEADLINE_S = 120.0
BASE_ID = "tiny-llama"
LONG = SupervisedHyperparameters(n_epochs=50, batch_size=1, learning_rate_multiplier=1.0)
SHORT = SupervisedHyperparameters(n_epochs=2, batch_size=8, learning_rate_multiplier=4.0)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / BASE_ID)


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, tiny_base: Path) -> Settings:
    return trainer_settings(tmp_path / "data", redis_url, tiny_base)


def trainer_settings(home: Path, redis_url: str, base: Path) -> Settings:
    return Settings(
        data_dir=str(home), redis_url=redis_url, base_model=str(base), lora_rank=4,
        lease_ttl_s=2.0, threads=1, max_model_len=128, **NO_METRICS,
    )  # fmt: skip


class TrainerProcess:
    """`python -m services.trainer`, restartable."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = settings
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer"],
                env={**os.environ, **self._settings.to_env(), **environment},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=20)

    @property
    def id(self) -> str:
        """What it calls itself in its heartbeat."""
        assert self.process is not None
        return f"{socket.gethostname()}-{self.process.pid}"

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Return its processes, but for those that multiprocessing keeps until the end: its fork server and tracker."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if not any("multiprocessing" in word for word in child.cmdline())]


@contextmanager
def running_trainer(settings: Settings, folder: Path, **environment: str) -> Iterator[TrainerProcess]:
    """Run a trainer, whose log is in `folder`; the test may have stopped it before the end."""
    process = TrainerProcess(settings, folder / "trainer.log")
    process.start(**environment)
    try:
        yield process
    finally:
        if process.is_running():
            process.signal(signal.SIGTERM)
        print(process.log.read_text())  # noqa: T201 - pytest shows it for a test that failed


@pytest.fixture
def trainer(settings: Settings, tmp_path: Path) -> Iterator[TrainerProcess]:
    with running_trainer(settings, tmp_path) as process:
        yield process


@contextmanager
def own_database(home: Path, base: Path) -> Iterator[Settings]:
    """Give settings of a trainer on a database of its own, which no test empties, and a data folder that is there."""
    folder = Path(tempfile.mkdtemp(prefix="st-lasting-"))
    valkey = start_valkey(folder)
    Paths(home).prepare()
    yield trainer_settings(home, f"unix://{folder}/valkey.sock", base)
    valkey.terminate()
    valkey.wait(timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def lasting_settings(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Settings]:
    """Settings of a trainer that tests share."""
    with own_database(tmp_path_factory.mktemp("lasting") / "data", tiny_base) as settings:
        yield settings


@pytest.fixture(scope="session")
def kept_trainer(lasting_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """The process behind `lasting_trainer`."""
    with running_trainer(lasting_settings, tmp_path_factory.mktemp("log")) as process:
        yield process


@pytest.fixture
def lasting_trainer(kept_trainer: TrainerProcess, lasting_settings: Settings) -> Iterator[TrainerProcess]:
    """A trainer that runs, for tests that ask for nothing special: starting one means importing PyTorch anew.

    A test may end it, and start it again. What was not finished is cancelled after it, and its replicas are forgotten.
    """
    if not kept_trainer.is_running():
        kept_trainer.start()
    written = kept_trainer.log.stat().st_size
    yield kept_trainer
    with_client(lasting_settings, put_down)
    print(kept_trainer.log.read_bytes()[written:].decode())  # noqa: T201 - pytest shows it for a test that failed


async def put_down(client: Client) -> None:
    """Cancel what is unfinished, and forget the replicas."""
    for job_id in await client.stores.jobs.active():
        await client.stores.jobs.finish(job_id, JobState.CANCELLED)
    for replica in await client.stores.presence.replicas():
        await client.stores.presence.forget_replica(replica.id)


class Client:
    """What the api does, without HTTP."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.control = JobControl(stores.jobs, stores.queue)

    async def pause(self, job_id: str) -> JobRecord:
        return await self.control.pause(job_id, project=DEFAULT_PROJECT)

    async def resume(self, job_id: str) -> JobRecord:
        return await self.control.resume(job_id, project=DEFAULT_PROJECT)

    async def released(self, job_id: str) -> JobRecord:
        """Wait until nobody holds the job's lease."""

        async def check() -> bool:
            return not await self.stores.leases.held(job_id)

        await self.until(check, "the release of the job")
        return await self.stores.jobs.get(job_id)

    async def upload(self, rows: list[dict[str, Any]] | bytes) -> str:
        file_id = ids.new_file_id()
        path = self.stores.paths.file_content(file_id)
        if isinstance(rows, bytes):
            path.parent.mkdir(parents=True)
            path.write_bytes(rows)
        else:
            write_rows(path, rows)
        content = path.read_bytes()
        record = FileRecord(
            id=file_id, project=DEFAULT_PROJECT, filename="rows.jsonl", purpose="fine-tune", size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(), created_at=int(time.time()),
        )  # fmt: skip
        await self.stores.files.add(record)
        return file_id

    async def submit(
        self,
        training_file: str,
        asked: SupervisedHyperparameters = SHORT,
        validation_file: str | None = None,
        **more: Any,
    ) -> str:
        job_id = ids.new_job_id()
        record = JobRecord(
            id=job_id, project=DEFAULT_PROJECT, organization="selftune", created_at=int(time.time()), model=BASE_ID,
            training_file=training_file, validation_file=validation_file, suffix="t", seed=3, requested=asked,
            model_name=ids.model_name(BASE_ID, "selftune", "t"), **more,
        )  # fmt: skip
        await self.stores.jobs.create(record, [event(f"Created fine-tuning job: {job_id}")])
        await self.stores.enqueue(record)
        return job_id

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if found := await condition():
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what} did not happen")

    async def ended(self, job_id: str) -> JobRecord:
        async def check() -> JobRecord | None:
            record = await self.stores.jobs.get(job_id)
            return record if record.status in TERMINAL else None

        ended: JobRecord = await self.until(check, "the end of the job")
        return ended

    async def reached(self, job_id: str, step: int) -> None:
        async def check() -> bool:
            page, _ = await self.stores.jobs.events(job_id, limit=20)
            return any(told.data.get("step", 0) >= step for told in page)

        await self.until(check, f"step {step}")

    async def models_of(self, job_id: str) -> set[str]:
        """Return the names of a job's models."""
        listed = await self.stores.registry.listed(DEFAULT_PROJECT)
        return {model.name for model in listed if model.job_id == job_id}

    async def story(self, job_id: str) -> list[str]:
        page, more = await self.stores.jobs.events(job_id, limit=1000)
        assert not more
        return [told.message for told in reversed(page)]

    async def steps(self, job_id: str) -> list[int]:
        page, _ = await self.stores.jobs.events(job_id, limit=1000)
        return [told.data["step"] for told in reversed(page) if told.type == "metrics"]


def with_client(settings: Settings, story: Callable[[Client], Awaitable[None]]) -> None:
    """Run an asynchronous test body with stores of its own."""

    async def run() -> None:
        stores = Stores(settings)
        stores.paths.prepare()
        try:
            await story(Client(stores))
        finally:
            await stores.close()

    asyncio.run(run())
