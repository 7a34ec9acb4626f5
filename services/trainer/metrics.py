"""Every metric of the trainer, and the port's registry. docs/observability.md describes each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from shared.errors import LeaseLost, NotFound
from shared.metrics import FAST_S, LONG_S, Bounded, from_zero
from shared.records import JobRecord
from shared.schemas.methods import METHODS

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

ATTEMPTS = Counter("selftune_trainer_attempts", "Attempts at jobs that were begun.", ["method"], registry=REGISTRY)
ENDED = Counter(
    "selftune_trainer_attempts_ended", "Attempts that ended, by how.", ["method", "outcome"], registry=REGISTRY
)
ATTEMPT_SECONDS = Histogram(
    "selftune_trainer_attempt_seconds", "Duration of attempts.", ["outcome"], buckets=LONG_S, registry=REGISTRY
)
QUEUE_SECONDS = Histogram(
    "selftune_trainer_queue_seconds", "Time from a job's creation to its first attempt.", buckets=LONG_S,
    registry=REGISTRY,
)  # fmt: skip
VALIDATION_SECONDS = Histogram(
    "selftune_trainer_validation_seconds", "Time that reading and tokenising a job's files took.", buckets=LONG_S,
    registry=REGISTRY,
)  # fmt: skip
TOKENS = Counter(
    "selftune_trainer_tokens", "Tokens trained on, prompts included.", ["project", "model"], registry=REGISTRY
)
STEPS = Counter("selftune_trainer_steps", "Optimiser steps.", registry=REGISTRY)
TOKENS_PER_SECOND = Gauge(
    "selftune_trainer_tokens_per_second", "Tokens a second of the newest steps of the jobs that train now.",
    registry=REGISTRY,
)  # fmt: skip
PROCESS_DEATHS = Counter(
    "selftune_trainer_process_deaths", "Training processes that ended without a reason.", registry=REGISTRY
)
PROCESS_RESTARTS = Counter(
    "selftune_trainer_process_restarts", "Times that a group of training processes was started anew.", registry=REGISTRY
)
CHECKPOINT_SECONDS = Histogram(
    "selftune_trainer_checkpoint_seconds", "Time to write a resume point.", buckets=FAST_S, registry=REGISTRY
)
REQUEUES = Counter(
    "selftune_trainer_requeues", "Jobs of dead trainers that were put back into a queue.", ["queue"], registry=REGISTRY
)
USABLE_MEMORY = Gauge(
    "selftune_trainer_usable_memory_bytes", "Memory that a job may need here; 0 while it is not known.",
    registry=REGISTRY,
)  # fmt: skip
PEAK_MEMORY = Gauge(
    "selftune_trainer_peak_memory_bytes", "Most memory of the training process that reported last.", registry=REGISTRY
)
STORE_SECONDS = Histogram(
    "selftune_trainer_store_call_seconds", "Time of the database's answers.", buckets=FAST_S, registry=REGISTRY
)
STORE_FAILURES = Counter(
    "selftune_trainer_store_failures", "Calls that the database did not answer.", registry=REGISTRY
)

OUTCOMES = (
    "succeeded", "failed", "cancelled", "paused", "queued", "process_died", "handed_back", "lease_lost", "gone",
)  # fmt: skip
from_zero(ATTEMPTS, METHODS)
from_zero(ENDED, METHODS, OUTCOMES)
from_zero(REQUEUES, ("validate", "train"))

tenant = Bounded()
"""For the labels `project` and `model`."""

_rates: dict[str, float] = {}


def note_rate(job_id: str, tokens_per_s: float | None) -> None:
    """Have a job's newest rate in the sum; None when it trains no more."""
    if tokens_per_s is None:
        _rates.pop(job_id, None)
    else:
        _rates[job_id] = tokens_per_s
    TOKENS_PER_SECOND.set(sum(_rates.values()))


def note_store_call(seconds: float, answered: bool) -> None:
    """Is the Watch of the trainer's connection to the database."""
    if answered:
        STORE_SECONDS.observe(seconds)
    else:
        STORE_FAILURES.inc()


@dataclass(slots=True)
class Measured:
    """An attempt that is being measured; whoever knows how it ends says so."""

    outcome: str = "failed"


@contextmanager
def attempt(record: JobRecord) -> Iterator[Measured]:
    """Count an attempt, and how it ended after how long."""
    began, measured = time.monotonic(), Measured()
    ATTEMPTS.labels(record.method).inc()
    try:
        yield measured
    except LeaseLost:
        measured.outcome = "lease_lost"
        raise
    except NotFound:
        measured.outcome = "gone"
        raise
    except asyncio.CancelledError:
        measured.outcome = "handed_back"
        raise
    finally:
        note_rate(record.id, None)
        ENDED.labels(record.method, measured.outcome).inc()
        ATTEMPT_SECONDS.labels(measured.outcome).observe(time.monotonic() - began)
