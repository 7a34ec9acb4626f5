"""A short run of bench/abuse: malformed requests neither break the API, nor hang, nor make it grow."""

from __future__ import annotations

import random

from bench.abuse import measure
from bench.abuse.__main__ import abused_api


def test_malformed_requests_leave_nothing_behind() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it for a test that failed
    with abused_api() as api:
        measured = measure.malformed_requests(api, seed=seed, count=2000)
        log = api.log.read_text()
    measured.check()
    for failure in ("request.failed", "request.cut", "Traceback"):
        assert failure not in log, [line for line in log.splitlines() if failure in line][:3]
