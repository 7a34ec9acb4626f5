"""A short run of schemathesis; `python -m tests.contract.fuzz SECONDS` runs a long one."""

from __future__ import annotations

from tests.contract.fuzz import fuzz, scene


def test_no_request_breaks_what_the_document_promises() -> None:
    with scene() as api:
        status, report = fuzz(api.url, api.key, seconds=20)
        log = api.log.read_text()
    assert status == 0, report[-6000:]
    assert "request.failed" not in log and "request.cut" not in log
