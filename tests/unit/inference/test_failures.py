from __future__ import annotations

import pytest

from services.inference.adapters import failures
from services.inference.adapters.failures import QUARANTINE_AFTER, Failures


def test_a_failure_stands_for_a_while_then_the_adapter_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("services.inference.adapters.failures.time.monotonic", lambda: now)
    known = Failures()
    known.note(1, "damaged")
    standing = known.standing(1)
    assert standing is not None
    assert standing.reason == "damaged"
    assert known.standing(2) is None
    now += failures.RETRY_S + 1
    assert known.standing(1) is None
    known.note(1, "damaged")
    now += failures.RETRY_S + 1
    assert known.standing(1) is not None  # the second time it takes twice as long


def test_after_several_in_a_row_it_is_not_tried_any_more_until_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("services.inference.adapters.failures.time.monotonic", lambda: now)
    known = Failures()
    for _ in range(QUARANTINE_AFTER):
        known.note(1, "damaged")
    now += 1e6
    standing = known.standing(1)
    assert standing is not None
    assert standing.is_final
    known.forget(1)
    assert known.standing(1) is None
