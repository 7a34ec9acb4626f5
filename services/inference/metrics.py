"""What this replica says of itself beside vLLM's own metrics, in the registry that vLLM uses; read when somebody asks.

docs/observability.md describes each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.metrics import Bounded, from_zero

LOADS = Counter("selftune_adapter_loads", "Adapters brought into memory, by outcome.", ["outcome"])
UNLOADS = Counter("selftune_adapter_unloads", "Adapters that went from memory because they were deleted or replaced.")
EVICTIONS = Counter("selftune_adapter_evictions", "Adapters that made room for others.")
LOAD_SECONDS = Histogram(
    "selftune_adapter_load_seconds",
    "Time from asking the engine for an adapter to having it.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
TURN_SECONDS = Histogram(
    "selftune_adapter_turn_wait_seconds",
    "Time that requests waited for their adapter's turn.",
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60),
)

REQUESTS = Counter(
    "selftune_inference_requests", "Requests that were answered, by path and status.", ["path", "status"]
)
TOKENS = Counter(
    "selftune_inference_tokens", "Tokens of prompts read and of answers made.", ["project", "model", "kind"]
)
READY = Gauge("selftune_inference_ready", "Whether requests are taken.")

from_zero(LOADS, ("loaded", "refused"))

OWN = (LOADS, UNLOADS, EVICTIONS, LOAD_SECONDS, TURN_SECONDS, REQUESTS, TOKENS, READY)

tenant = Bounded()
"""For the labels `project` and `model`."""

_NAMES_IN_LABELS = "vllm:lora_requests_info"
"""Its labels are lists of adapters, a new series for each combination, which stays for ever."""


class Residency(Collector):
    """The state of the adapters at the moment of asking: as many series as there are adapters in memory."""

    def __init__(self, *, names: Callable[[], list[str]], numbers: Callable[[], dict[str, int]]) -> None:
        self._names = names
        self._numbers = numbers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        resident = GaugeMetricFamily("selftune_adapter_resident", "Adapters in memory.", labels=["adapter"])
        for name in self._names():
            resident.add_metric([name], 1)
        yield resident
        for name, number in self._numbers().items():
            yield GaugeMetricFamily(f"selftune_{name}", NUMBERS[name], value=number)


NUMBERS = {
    "adapters_registered": "Adapters of this base in the registry.",
    "adapters_pinned": "Adapters that stay in memory.",
    "adapters_waiting": "Requests that wait for their adapter's turn.",
    "requests_running": "Requests that were let in and are not answered yet.",
}


def install(*, names: Callable[[], list[str]], numbers: Callable[[], dict[str, int]]) -> None:
    """Register everything, and take out what would grow without an end; once, when the engine is up."""
    unbounded = REGISTRY._names_to_collectors.get(_NAMES_IN_LABELS)
    if isinstance(unbounded, Gauge):
        REGISTRY.unregister(unbounded)
        _stop(unbounded)
    REGISTRY.register(Residency(names=names, numbers=numbers))


def _stop(gauge: Gauge) -> None:
    """Have a gauge that others go on setting hold one value, whatever the labels."""
    only = Gauge("unread", "Takes what is set, and is never read.", registry=None)
    gauge.clear()
    gauge.labels = lambda *_values, **_named: only  # type: ignore[method-assign]
