"""Abuse a real API process, and check that it neither breaks, nor hangs, nor grows.

    python -m bench.abuse [--requests 100000] [--seed N]

The inference server is the tests' stand-in for its wire. Ends with status 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.abuse import measure
from bench.abuse.measure import Measured
from bench.api.scene import api_server, print_machine, print_table
from tests.api_server import ApiServer
from tests.contract.fuzz import StandIn, furnish

_EVENT = b"data: " + b"x" * 65_000 + b"\n\n"
_EVENTS = 4000
"""Some 250 MB a stream, were anybody to read it."""


@contextmanager
def abused_api() -> Iterator[ApiServer]:
    """An API with something of everything in it, and a model that streams without end."""
    with StandIn(pause_s=0.0, events=[_EVENT] * _EVENTS) as upstream, api_server(max_body_bytes=1 << 20) as api:
        furnish(api, upstream.url)
        measure.malformed_requests(api, seed=0, count=500)  # what is loaded at first use is loaded now
        yield api


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print_machine()
    print(f"seed {arguments.seed}")
    kinds: list[Callable[[ApiServer], Measured]] = [
        lambda api: measure.flood(api, count=2000),
        lambda api: measure.slow_heads(api, count=500),
        lambda api: measure.slow_bodies(api, count=200),
        lambda api: measure.unread_streams(api, count=64),
        lambda api: measure.malformed_requests(api, seed=arguments.seed, count=arguments.requests),
    ]
    with abused_api() as api:
        found = [kind(api) for kind in kinds]
        log = api.log.read_text()
    columns = ["abuse", "seconds", "answers", "slowest /healthz, ms", "grown, MiB", "files left"]
    print_table(columns, [_row(one) for one in found])
    own = [
        line for line in log.splitlines() if "request.failed" in line or "request.cut" in line or "Traceback" in line
    ]
    print(f"{len(own)} failures on the server's own account", *own[:5], sep="\n")
    return _told(found) or bool(own)


def _row(one: Measured) -> list[str | float]:
    return [
        *(one.name, f"{one.seconds:.0f}", one.statuses, f"{one.slowest_health_s * 1000:.0f}"),
        *(f"{one.grown_bytes / (1 << 20):.0f}", str(one.files_left)),
    ]


def _told(found: list[Measured]) -> int:
    status = 0
    for one in found:
        try:
            one.check()
        except AssertionError as error:
            print(error)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
