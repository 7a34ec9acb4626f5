"""Every metric of the api, gateway included, and the port's registry. docs/observability.md describes each."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from shared.metrics import FAST_S, Bounded, from_zero
from shared.schemas.methods import METHODS

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

REQUESTS = Counter(
    "selftune_api_requests", "Requests that were answered.", ["method", "route", "status"], registry=REGISTRY
)
REQUEST_SECONDS = Histogram(
    "selftune_api_request_seconds", "Time from a request's head to its answer's end.", ["method", "route"],
    buckets=FAST_S, registry=REGISTRY,
)  # fmt: skip
REQUESTS_IN_FLIGHT = Gauge("selftune_api_requests_in_flight", "Requests being answered.", registry=REGISTRY)
RATE_LIMITED = Counter(
    "selftune_api_rate_limited", "Requests refused because a limit per minute was reached.", ["unit"], registry=REGISTRY
)
UPLOADED_BYTES = Counter("selftune_api_uploaded_bytes", "Bytes of files that were taken in.", registry=REGISTRY)
JOBS_CREATED = Counter("selftune_api_jobs_created", "Fine-tuning jobs created.", ["method"], registry=REGISTRY)

GATEWAY_REQUESTS = Counter(
    "selftune_gateway_requests", "Requests to models, by what became of them.", ["project", "model", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
FIRST_BYTE_SECONDS = Histogram(
    "selftune_gateway_first_byte_seconds", "Time until the first byte of an inference server's answer.", ["endpoint"],
    buckets=FAST_S, registry=REGISTRY,
)  # fmt: skip
GATEWAY_SECONDS = Histogram(
    "selftune_gateway_seconds", "Time until the end of an inference server's answer.", ["endpoint"],
    buckets=FAST_S, registry=REGISTRY,
)  # fmt: skip
GATEWAY_RETRIES = Counter(
    "selftune_gateway_retries", "Requests sent to a second or third server, by what the one before did.", ["reason"],
    registry=REGISTRY,
)  # fmt: skip
UPSTREAM_ERRORS = Counter(
    "selftune_gateway_upstream_errors", "Failures of inference servers that the gateway has met.", ["reason"],
    registry=REGISTRY,
)  # fmt: skip

WEBHOOK_DELIVERIES = Counter(
    "selftune_webhook_deliveries", "Tries to deliver webhooks, by outcome.", ["outcome"], registry=REGISTRY
)
BATCH_REQUESTS = Counter(
    "selftune_batch_requests", "Requests of batches that have their result.", ["outcome"], registry=REGISTRY
)

STORE_SECONDS = Histogram(
    "selftune_api_store_call_seconds", "Time of the database's answers.", buckets=FAST_S, registry=REGISTRY
)
STORE_FAILURES = Counter("selftune_api_store_failures", "Calls that the database did not answer.", registry=REGISTRY)

from_zero(RATE_LIMITED, ("requests", "tokens"))
from_zero(JOBS_CREATED, METHODS)
from_zero(GATEWAY_RETRIES, ("unreachable", "refused"))
from_zero(UPSTREAM_ERRORS, ("unreachable", "status", "cut"))
from_zero(WEBHOOK_DELIVERIES, ("delivered", "failed", "given_up", "gone"))
from_zero(BATCH_REQUESTS, ("completed", "failed"))

OUTCOMES = ("answered", "refused", "failed", "cut", "lost", "no_replica", "busy", "gone")
"""What becomes of a request to a model."""

_tenant = Bounded()
_begun = set[tuple[str, ...]]()


def tenant(project: str, model: str) -> tuple[str, ...]:
    """Return the labels of a project's requests to a model; from its first one on each outcome has a series."""
    labels = _tenant(project, model)
    if labels not in _begun:
        _begun.add(labels)
        from_zero(GATEWAY_REQUESTS, *([label] for label in labels), OUTCOMES)
    return labels


def note_store_call(seconds: float, answered: bool) -> None:
    """Is the Watch of the api's connection to the database."""
    if answered:
        STORE_SECONDS.observe(seconds)
    else:
        STORE_FAILURES.inc()
