"""What was used, counted by project, day (UTC) and model; and how fast a base has been trained so far.

A day's field is `{metric} {model}`: `requests`, `input_tokens`, `cached_tokens` (among the input's), `output_tokens`,
and `device_ms`, which training for the model took of a device. A pace's field is `{kind} {sum}`: a kind of job, and of
those that succeeded `jobs`, `tokens`, `device_ms`, `file_bytes`, `file_tokens`, and `memory_bytes`, the last one's.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from shared import keys
from shared.schemas.methods import MethodName
from shared.schemas.options import TrainingOptions
from shared.store.client import Argument, Client

KEEP_DAYS = 400
_MOST_FIELDS = 10_000
REST = "(others)"
"""Stands for the models of a day beyond the first 2,000."""

Metric = Literal["requests", "input_tokens", "cached_tokens", "output_tokens", "device_ms"]


_OF_REQUESTS: tuple[Metric, ...] = ("requests", "input_tokens", "cached_tokens", "output_tokens")


class Day(NamedTuple):
    """Whose usage, and when."""

    project: str
    date: str
    """As in 2026-11-28."""


class Used(NamedTuple):
    """What is counted of a day."""

    metric: str
    model: str


Counts = Mapping[Day, Mapping[Used, int]]


class Pace(Struct, frozen=True, kw_only=True):
    """Sums over the jobs of one kind that succeeded on a base."""

    jobs: int = 0
    tokens: int = 0
    device_ms: int = 0
    file_bytes: int = 0
    file_tokens: int = 0
    memory_bytes: int = 0
    """What the last one was expected to need; 0 where that was not known."""


def pace_kind(method: MethodName, options: TrainingOptions) -> str:
    """Name the jobs that are about as fast as one with this method and these options."""
    return f"{method}/{options.finetuning_type or 'lora'}/{options.quantization or 'none'}"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class UsageStore:
    """Counts in Redis, added to by inference servers and trainers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def add(self, counted: Counts) -> None:
        """Add to what is there; one step for each day of a project. Called twice it counts twice."""
        for day, counts in counted.items():
            parts: list[Argument] = [part for used, number in counts.items() for part in (*used, number)]
            await self._client.script("add_usage", [keys.usage(*day)], [KEEP_DAYS * 86_400, _MOST_FIELDS, REST, *parts])

    async def of_model(self, days: Sequence[Day], model: str) -> Counter[Metric]:
        """Return what requests to a model have used on those days together."""
        names = [f"{metric} {model}" for metric in _OF_REQUESTS]
        found = await self._client.together([("HMGET", keys.usage(*day), *names) for day in days]) if days else []
        total: Counter[Metric] = Counter()
        for numbers in found:
            total.update({metric: int(number or 0) for metric, number in zip(_OF_REQUESTS, numbers, strict=True)})
        return total

    async def read(self, days: Sequence[Day]) -> dict[Day, Counter[Used]]:
        """Return the counts of each day that has any."""
        if not days:
            return {}
        found = await self._client.together([("HGETALL", keys.usage(*day)) for day in days])
        return {day: _counts(fields) for day, fields in zip(days, found, strict=True) if fields}

    async def add_pace(self, base: str, kind: str, job: Pace) -> None:
        """Add a job that succeeded."""
        key = keys.training_pace(base)
        sums = ("jobs", "tokens", "device_ms", "file_bytes", "file_tokens")
        await self._client.together(
            [
                *(("HINCRBY", key, f"{kind} {name}", getattr(job, name)) for name in sums),
                ("HSET", key, f"{kind} memory_bytes", job.memory_bytes),
            ]
        )

    async def pace(self, base: str, kind: str) -> Pace:
        """Return the sums over a kind of jobs; zeros where there were none."""
        names = Pace.__struct_fields__
        found = await self._client.call("HMGET", keys.training_pace(base), *(f"{kind} {name}" for name in names))
        return Pace(**{name: int(value or 0) for name, value in zip(names, found, strict=True)})


def _counts(fields: Mapping[bytes, bytes]) -> Counter[Used]:
    counted: Counter[Used] = Counter()
    for name, number in fields.items():
        metric, model = name.decode().split(" ", 1)
        counted[Used(metric, model)] += int(number)
    return counted
