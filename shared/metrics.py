"""What the services' metrics have in common: the port where they are read, and a bound on labels of tenants."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import structlog
from prometheus_client import Counter, disable_created_metrics, start_http_server
from prometheus_client.registry import CollectorRegistry

OTHER = "other"
MOST_LABELS = 200
"""Label sets of projects and models that one metric has; what comes later counts under OTHER."""

FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Buckets in seconds for what takes milliseconds, and at worst a minute."""
LONG_S = (1, 5, 15, 60, 300, 900, 3600, 10_800, 43_200, 86_400)
"""Buckets in seconds for what takes minutes, and at worst a day."""

log = structlog.get_logger()

# The time when each series began would be a second series beside it, of which nothing here makes use.
disable_created_metrics()  # type: ignore[no-untyped-call]


def serve(registry: CollectorRegistry, *, host: str, port: int) -> None:
    """Let whoever reaches `host` read a registry, in Prometheus' text format, until the process ends; 0 is no port.

    A thread of its own answers. A port that cannot be had is a warning: nobody's work depends on metrics.
    """
    if not port:
        return
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        log.warning("metrics.not_served", host=host, port=port, reason=error.strerror)
    else:
        log.info("metrics.served", host=host, port=port)


def from_zero(counter: Counter, *values: Iterable[str]) -> None:
    """Have a counter's series from the start, for each combination of its labels' values.

    Prometheus' increase() sees no step from a series that is not there to 1.
    """
    for labels in itertools.product(*values):
        counter.labels(*labels)


class Bounded:
    """Lets the first sets of label values through that it sees, and turns every later one into OTHER."""

    def __init__(self, most: int = MOST_LABELS) -> None:
        self._most = most
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        if values not in self._known:
            if len(self._known) >= self._most:
                return (OTHER,) * len(values)
            self._known.add(values)
        return values
