"""Which adapters a replica keeps: those that are its share among the replicas that take any."""

from __future__ import annotations

from services.inference.adapters.ownership import Ownership
from services.inference.replica import Replica
from shared.placement import OWNERS
from shared.records import ReplicaRecord
from shared.store.client import Client
from shared.store.presence import Presence
from tests.api_server import make_replica, with_store

NAMES = [f"ft:base:org::{number}" for number in range(40)]


def owned(redis_url: str, others: list[ReplicaRecord]) -> list[str]:
    """Return the names that a replica owns beside `others`."""

    async def ask(client: Client) -> list[str]:
        presence = Presence(client)
        for other in others:
            await presence.beat_replica(other, ttl_s=60)
        ownership = Ownership(presence, Replica(presence, make_replica("http://ours", id="ours")))
        return [name for name in NAMES if await ownership.includes(name)]

    return with_store(redis_url, ask)


def test_adapters_are_shared_out_among_the_replicas_of_a_base(redis_url: str) -> None:
    others = [make_replica(f"http://{number}", id=f"replica-{number}") for number in range(2 * OWNERS)]
    assert 0 < len(owned(redis_url, others)) < len(NAMES)


def test_replicas_of_merged_models_and_of_other_bases_have_no_share(redis_url: str) -> None:
    merged = [make_replica(f"http://m{number}", id=f"m{number}", merged=NAMES[number]) for number in range(2 * OWNERS)]
    foreign = [make_replica(f"http://f{number}", id=f"f{number}", base="other") for number in range(2 * OWNERS)]
    assert owned(redis_url, [*merged, *foreign]) == NAMES
