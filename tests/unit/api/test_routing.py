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


def test_merged_replica_comes_first_for_its_model_and_answers_for_no_other() -> None:
    merged = make_replica("http://m", id="merged", running=9, merged="ft:x", resident=["ft:x"])
    holder = make_replica("http://h", id="holder", running=0, resident=["ft:x"])
    assert ids(candidates([holder, merged], base=BASE, model="ft:x")) == ["merged", "holder"]
    assert ids(candidates([holder, merged], base=BASE, model="ft:y")) == ["holder"]
    assert ids(candidates([holder, merged], base=BASE, model=BASE)) == ["holder"]
    for model in (BASE, "ft:y"):
        with pytest.raises(NoReplica, match="no inference server for"):
            candidates([merged], base=BASE, model=model)
    starting = make_replica("", id="merged", merged="ft:x", state="starting")
    assert ids(candidates([holder, starting], base=BASE, model="ft:x")) == ["holder"]


def test_only_ready_replicas_of_the_base_that_listen_are_chosen() -> None:
    replicas = [
        make_replica("http://a", id="starting", state="starting"),
        make_replica("", id="silent"),
        make_replica("http://c", id="other", base="other"),
    ]
    with pytest.raises(NoReplica, match="ready, starting"):
        candidates(replicas, base=BASE, model=BASE)
