"""On what a job's first steps were computed: a later attempt elsewhere goes on, with slightly other numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from services.trainer.protocol import Started
from shared.paths import write_atomic

_FILE = "first_attempt.json"


class Way(Struct, frozen=True):
    """What floating-point results depend on beside spec.json."""

    device: str
    dtype: str
    path: str
    n_processes: int = 1


def other_way(folder: Path, started: Started) -> str:
    """Keep the first attempt's way in the job folder; say how this one's differs, "" if it does not."""
    now = Way(
        started.device,
        started.dtype,
        "the plain path" if started.plain_because else "the fast path",
        started.n_processes,
    )
    file = folder / _FILE
    if started.resumed_from_step == 0 or not file.exists():
        write_atomic(file, msgspec.json.encode(now))
        return ""
    first = msgspec.json.decode(file.read_bytes(), type=Way)
    return "" if now == first else f"{_named(now)} instead of {_named(first)}"


def _named(way: Way) -> str:
    together = "" if way.n_processes == 1 else f", {way.n_processes} processes"
    return f"{way.device}, {way.dtype}, {way.path}{together}"
