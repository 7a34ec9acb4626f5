"""The choice of a replica."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from shared.errors import NoReplica
from shared.loads import Loads
from shared.placement import owners
from shared.records import ReplicaRecord
from shared.routing import at_leisure, candidates
from tests.api_server import BASE, make_replica


def ids(replicas: list[ReplicaRecord]) -> list[str]:
    return [replica.id for replica in replicas]


MANY = [make_replica(f"http://host-{number}", id=f"replica-{number}") for number in range(6)]


def test_owners_and_holders_come_first_the_least_busy_of_them_before_the_others() -> None:
    first, second = owners(MANY, "ft:x")
    stranger = next(replica for replica in MANY if replica not in (first, second))
    loads = {first.id: 3, second.id: 1, stranger.id: 2}
    replicas = [
        replace(replica, running=loads.get(replica.id, 0), resident=["ft:x"] if replica is stranger else [])
        for replica in MANY
    ]
    order = ids(candidates(replicas, Loads(), base=BASE, model="ft:x"))
    assert order[:3] == [second.id, stranger.id, first.id]
    assert ids(candidates(replicas, Loads(), base=BASE, model=BASE))[-1] == first.id


def test_a_full_owner_spills_over_to_one_that_is_not() -> None:
    replicas = [replace(one, max_running=4, running=4 if one in owners(MANY, "ft:x") else 3) for one in MANY]
    order = candidates(replicas, Loads(), base=BASE, model="ft:x")
    assert {one.running for one in order[:4]} == {3}
    assert {one.id for one in order[4:]} == {one.id for one in owners(MANY, "ft:x")}


def test_what_was_sent_since_the_last_heartbeat_counts() -> None:
    loads, two = Loads(), MANY[:2]
    chosen = []
    for _ in range(10):
        best = candidates(two, loads, base=BASE, model=BASE)[0]
        loads.note(best)
        chosen.append(best.id)
    assert sorted(chosen) == ["replica-0"] * 5 + ["replica-1"] * 5
    heard = [replace(two[0], beat=1, running=0), two[1]]
    assert ids(candidates(heard, loads, base=BASE, model=BASE))[0] == "replica-0"


def test_merged_replica_comes_first_for_its_model_and_answers_for_no_other() -> None:
    merged = make_replica("http://m", id="merged", running=9, merged="ft:x", resident=["ft:x"])
    holder = make_replica("http://h", id="holder", running=0, resident=["ft:x"])
    assert ids(candidates([holder, merged], Loads(), base=BASE, model="ft:x")) == ["merged", "holder"]
    assert ids(candidates([holder, merged], Loads(), base=BASE, model="ft:y")) == ["holder"]
    assert ids(candidates([holder, merged], Loads(), base=BASE, model=BASE)) == ["holder"]
    for model in (BASE, "ft:y"):
        with pytest.raises(NoReplica, match="no inference server for"):
            candidates([merged], Loads(), base=BASE, model=model)
    starting = make_replica("", id="merged", merged="ft:x", state="starting")
    assert ids(candidates([holder, starting], Loads(), base=BASE, model="ft:x")) == ["holder"]


def test_leisure_is_where_the_model_is_in_memory_and_half_of_the_places_are_free() -> None:
    replicas = [
        make_replica("http://a", id="cold", max_running=4),
        make_replica("http://b", id="busy", max_running=4, running=2, resident=["ft:x"]),
        make_replica("http://c", id="free", max_running=4, running=1, resident=["ft:x"]),
        make_replica("http://d", id="merged", merged="ft:x"),
    ]
    assert ids(at_leisure(replicas, Loads(), base=BASE, model="ft:x")) == ["free", "merged"]
    assert ids(at_leisure(replicas[:3], Loads(), base=BASE, model=BASE)) == ["cold", "free"]
    with pytest.raises(NoReplica, match="room to spare"):
        at_leisure(replicas[:2], Loads(), base=BASE, model="ft:x")


def test_only_ready_replicas_of_the_base_that_listen_are_chosen() -> None:
    replicas = [
        make_replica("http://a", id="starting", state="starting"),
        make_replica("", id="silent"),
        make_replica("http://c", id="other", base="other"),
    ]
    with pytest.raises(NoReplica, match="ready, starting"):
        candidates(replicas, Loads(), base=BASE, model=BASE)
