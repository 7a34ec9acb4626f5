"""What the database says of all services, asked for when the metrics are read.

Every api process says the same, so that of several one takes `max by`, not a sum.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.errors import StoreUnavailable
from shared.store.client import Client
from shared.store.overview import Overview, look

_TIMEOUT_S = 5.0
_FRESH_S = 2.0
"""Whoever asks again so soon gets the same numbers."""
_WORKER_STATES = ("preparing", "idle", "training", "draining")
_REPLICA_STATES = ("waiting", "starting", "ready", "draining")

Family = GaugeMetricFamily

log = structlog.get_logger()


class StateMetrics(Collector):
    """Asks on the event loop that the client belongs to; `collect` is called from other threads."""

    def __init__(self, client: Client, home: Path, *, lease_ttl_s: float) -> None:
        self._client = client
        self._home = home
        self._lease_ttl_s = lease_ttl_s
        self._loop = asyncio.get_running_loop()
        self._asked_at = -math.inf
        self._seen: tuple[bool, Overview | None] = (False, None)

    def describe(self) -> list[Family]:
        """Name nothing in advance: registering must not ask."""
        return []

    def collect(self) -> Iterator[Family]:
        is_up, overview = self._look()
        yield Family("selftune_store_up", "Whether the database answers.", value=int(is_up))
        try:
            disk = shutil.disk_usage(self._home)
        except OSError:
            pass
        else:
            yield Family("selftune_data_free_bytes", "Room left where the data folder is.", value=disk.free)
            yield Family("selftune_data_size_bytes", "Size of the file system of the data folder.", value=disk.total)
        if overview is not None:
            yield from families(overview)

    def _look(self) -> tuple[bool, Overview | None]:
        now = time.monotonic()
        if now - self._asked_at > _FRESH_S:
            self._asked_at, self._seen = now, self._ask()
        return self._seen

    def _ask(self) -> tuple[bool, Overview | None]:
        """Return whether the database answers, and what it says where that can be read."""
        if self._loop.is_closed():
            return False, None
        asking = asyncio.run_coroutine_threadsafe(look(self._client, lease_ttl_s=self._lease_ttl_s), self._loop)
        try:
            return True, asking.result(_TIMEOUT_S)
        except (StoreUnavailable, TimeoutError, CancelledError):  # the last: the server is stopping
            asking.cancel()
            return False, None
        except Exception:  # the port's other metrics are of use all the same
            log.exception("metrics.state_unreadable")
            return True, None


def families(seen: Overview) -> Iterator[Family]:
    """Form the metrics."""
    yield _by("selftune_jobs", "Unfinished fine-tuning jobs.", "state", seen.jobs)
    yield _by("selftune_queue_jobs", "Jobs that wait to be trained.", "priority", seen.queued)
    yield Family(
        "selftune_queue_oldest_seconds", "Age of the oldest queued job that nobody has begun.",
        value=seen.oldest_waiting_s,
    )  # fmt: skip
    yield Family(
        "selftune_job_lease_age_seconds", "Time since a running job's lease was renewed, the longest.",
        value=seen.lease_age_s,
    )  # fmt: skip
    yield Family("selftune_jobs_without_lease", "Running jobs that no trainer holds.", value=seen.without_lease)
    yield Family("selftune_batches", "Unfinished batches.", value=seen.batches)
    yield Family("selftune_webhooks_pending", "Webhooks that have not arrived yet.", value=seen.webhooks_pending)
    workers: Counter[str] = Counter(worker.state for worker in seen.workers)
    yield _by("selftune_workers", "Trainers that are alive.", "state", {one: workers[one] for one in _WORKER_STATES})
    replicas: Counter[str] = Counter(replica.state for replica in seen.replicas)
    yield _by(
        "selftune_replicas",
        "Inference servers that are alive.",
        "state",
        {one: replicas[one] for one in _REPLICA_STATES},
    )


def _by(name: str, help_: str, label: str, values: dict[str, int]) -> Family:
    family = Family(name, help_, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
