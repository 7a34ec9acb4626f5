"""The choice of a replica."""

from __future__ import annotations

import pytest

from services.api.gateway.routing import candidates
from shared.errors import NoReplica
from shared.records import ReplicaRecord
from tests.api_server import BASE, make_replica


def ids(replicas: list[ReplicaRecord]) -> list[str]:
    return [replica.id for replica in replicas]


def test_holder_of_the_adapter_comes_first_then_the_least_busy() -> None:
    replicas = [
        make_replica("http://a", id="busy", running=5),
        make_replica("http://b", id="idle", running=0),
        make_replica("http://c", id="holder", running=9, resident=["ft:x"]),
    ]
    assert ids(candidates(replicas, base=BASE, model="ft:x")) == ["holder", "idle", "busy"]
    assert ids(candidates(replicas, base=BASE, model=BASE)) == ["idle", "busy", "holder"]


def test_only_ready_replicas_of_the_base_that_listen_are_chosen() -> None:
    replicas = [
        make_replica("http://a", id="starting", state="starting"),
        make_replica("", id="silent"),
        make_replica("http://c", id="other", base="other"),
    ]
    with pytest.raises(NoReplica, match="ready, starting"):
        candidates(replicas, base=BASE, model=BASE)
