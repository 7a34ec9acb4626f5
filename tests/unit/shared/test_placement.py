from __future__ import annotations

from collections import Counter

from shared.placement import OWNERS, owners
from shared.records import ReplicaRecord

MODELS = [f"ft:base:org:{number}:x" for number in range(1000)]


def replicas(count: int) -> list[ReplicaRecord]:
    return [
        ReplicaRecord(id=f"replica-{number}", url=f"http://host-{number}", base="base", state="ready")
        for number in range(count)
    ]


def test_models_are_spread_evenly() -> None:
    shares = Counter(owner.id for model in MODELS for owner in owners(replicas(5), model))
    assert len(shares) == 5
    assert all(300 < share < 500 for share in shares.values())


def test_a_replica_that_goes_moves_its_own_models_only() -> None:
    five = replicas(5)
    for model in MODELS:
        before = {owner.id for owner in owners(five, model)}
        after = {owner.id for owner in owners(five[:4], model)}
        assert before - {"replica-4"} <= after


def test_the_order_in_which_replicas_are_listed_does_not_matter() -> None:
    for model in MODELS[:50]:
        assert owners(replicas(5), model) == owners(replicas(5)[::-1], model)


def test_a_restarted_replica_at_its_old_address_keeps_its_models() -> None:
    fresh = [ReplicaRecord(id=f"new-{r.id}", url=r.url, base="base", state="ready") for r in replicas(5)]
    for model in MODELS[:50]:
        assert [o.url for o in owners(replicas(5), model)] == [o.url for o in owners(fresh, model)]


def test_fewer_replicas_than_owners_all_own() -> None:
    assert len(owners(replicas(1), "m")) == 1
    assert len(owners(replicas(OWNERS), "m")) == OWNERS
    assert owners([], "m") == []
