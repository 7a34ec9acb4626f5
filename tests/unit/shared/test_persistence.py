"""What a server's settings would lose."""

from __future__ import annotations

import pytest

from shared.store.persistence import losses

SAFE = {"appendonly": "yes", "save": "", "maxmemory": "0", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"maxmemory-policy": "allkeys-lru"}, []),
        ({"maxmemory": "100"}, []),
        ({"appendonly": "no"}, ["loses what was written when it stops"]),
        ({"appendonly": "no", "save": "3600 1"}, ["loses what was written since its last snapshot"]),
        ({"maxmemory": "100", "maxmemory-policy": "volatile-lru"}, ["drops records when its memory is full"]),
        ({"appendonly": "no", "maxmemory": "1", "maxmemory-policy": "x"}, ["when it stops", "maxmemory-policy x"]),
    ],
)
def test_each_setting_that_loses_records_is_named(changed: dict[str, str], said: list[str]) -> None:
    found = losses(SAFE | changed)
    assert len(found) == len(said)
    assert all(part in phrase for part, phrase in zip(said, found, strict=True))
