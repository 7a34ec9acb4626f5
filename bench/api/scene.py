"""What the measurements of the API share: a real Valkey and a real API process, and how figures are printed."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.api_server import ApiServer, know_key
from tests.conftest import start_valkey


@contextmanager
def api_server(**settings: Any) -> Iterator[ApiServer]:
    """Run an API on an empty database that knows its admin key."""
    with tempfile.TemporaryDirectory(prefix="st-bench-") as folder:
        (Path(folder) / "valkey").mkdir()
        valkey = start_valkey(Path(folder) / "valkey")
        server = ApiServer(Path(folder) / "data", f"unix://{folder}/valkey/valkey.sock", **settings)
        try:
            know_key(server.settings.redis_url, server.key)
            yield server
        finally:
            server.stop()
            valkey.terminate()
            valkey.wait(timeout=30)


def print_machine() -> None:
    """Say what was run, and where."""
    command = " ".join(["python -m", sys.orig_argv[2] if len(sys.orig_argv) > 2 else "", *sys.argv[1:]])
    load = os.getloadavg()[0]
    print(
        f"{command}: {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(cell if isinstance(cell, str) else _three_digits(cell) for cell in row) + " |")


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
