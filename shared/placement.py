"""Which replicas a model belongs to, so that each keeps a part of the adapters in memory and not all the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shared.records import ReplicaRecord

OWNERS = 2
"""Replicas that keep a model: one may go, or be busy, and the other has it loaded."""


def may_answer(replica: ReplicaRecord, *, base: str, model: str) -> bool:
    """Tell whether a replica is one of a model's base, and no other model is merged into it."""
    return replica.base == base and replica.merged in ("", model)


def owners(replicas: Sequence[ReplicaRecord], model: str) -> list[ReplicaRecord]:
    """Choose a model's replicas by rendezvous hashing, best first; one that comes or goes moves its own share only.

    A replica is known by its address, which it keeps through a restart if it has a fixed one. One that a model is
    merged into takes no adapters, and owns none.
    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.
    """
    sharing = [replica for replica in replicas if not replica.merged]
    return sorted(sharing, key=lambda replica: _weight(replica.url, model), reverse=True)[:OWNERS]


def _weight(replica: str, model: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{model}".encode(), digest_size=8).digest()
