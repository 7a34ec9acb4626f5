"""Counts made readable: rates and percentiles of one model of an alias, and the limits that they cross."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from shared.schemas.aliases import Latency, TrafficLimits
from shared.store.alias_traffic import Count

_BINS_PER_DOUBLING = 4
_LAST_BIN = 84
"""Ends at 35 minutes; what takes longer is counted there."""


def bin_of(ms: float) -> int:
    """Return the histogram's bin of a time: bin 0 ends at 1 ms, each further one 19 % later."""
    return 0 if ms <= 1 else min(math.ceil(math.log2(ms) * _BINS_PER_DOUBLING), _LAST_BIN)


def percentile(bins: Mapping[int, int], share: float) -> float:
    """Return the time in ms that a `share`, from 0 to 1, of what was counted did not exceed: a bin's end, so up to
    19 % above the true value. `bins` must not be empty."""
    rank, seen = math.ceil(share * sum(bins.values())), 0
    for number in sorted(bins):
        seen += bins[number]
        if seen >= rank:
            break
    return float(round(math.exp2(number / _BINS_PER_DOUBLING), 1))


class Tally(Struct, frozen=True):
    """What one model did."""

    counts: Counter[str]
    """By metric."""

    @property
    def requests(self) -> int:
        return self.counts["answered"] + self.errors

    @property
    def errors(self) -> int:
        return self.counts["failed"]

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    def latency(self, kind: str) -> Latency | None:
        """Return the percentiles of `first` or `total`; None when nothing was answered."""
        bins = self._bins(kind)
        if not bins:
            return None
        return Latency(p50=percentile(bins, 0.5), p95=percentile(bins, 0.95), p99=percentile(bins, 0.99))

    def crossed(self, limits: TrafficLimits) -> str | None:
        """Say which limit is crossed, with the numbers; None when none is, or there are too few requests."""
        if self.requests < limits.min_requests:
            return None
        seen = f"of {self.requests} requests within {limits.window_s} s"
        if limits.max_error_rate is not None and self.error_rate > limits.max_error_rate:
            return (
                f"{self.errors} {seen} failed, {self.error_rate:.1%}, where max_error_rate is "
                f"{limits.max_error_rate:.1%}"
            )
        for kind, name in (("first", "max_p95_first_byte_ms"), ("total", "max_p95_total_ms")):
            most, latency = getattr(limits, name), self.latency(kind)
            if most is not None and latency is not None and latency.p95 > most:
                return f"the 95th percentile {seen} is {latency.p95:.0f} ms, where {name} is {most}"
        return None

    def _bins(self, kind: str) -> dict[int, int]:
        prefix = f"{kind}_"
        return {
            int(metric.removeprefix(prefix)): number
            for metric, number in self.counts.items()
            if metric.startswith(prefix)
        }


def tallies(counted: Mapping[Count, int], *, since: int | None = None) -> dict[str, Tally]:
    """Add up by model; with `since` only what began at that revision."""
    by_model: dict[str, Counter[str]] = {}
    for count, number in counted.items():
        if since is None or count.since == since:
            by_model.setdefault(count.model, Counter())[count.metric] += number
    return {model: Tally(counts) for model, counts in by_model.items()}
