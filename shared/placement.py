"""Which replicas a model belongs to, so that each keeps a part of the adapters in memory and not all the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shared.records import ReplicaRecord

OWNERS = 2
"""Replicas that keep a model: one may go, or be busy, and the other has it loaded."""


def owners(replicas: Sequence[ReplicaRecord], model: str) -> list[ReplicaRecord]:
    """Choose a model's replicas by rendezvous hashing, best first; one that comes or goes moves its own share only.

    A replica is known by its address, which it keeps through a restart if it has a fixed one.
    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.
    """
    return sorted(replicas, key=lambda replica: _weight(replica.url, model), reverse=True)[:OWNERS]


def _weight(replica: str, model: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{model}".encode(), digest_size=8).digest()
