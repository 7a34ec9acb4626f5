"""Which replica answers for a model: a pure choice from the replicas that are alive."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.errors import NoReplica
from shared.ids import is_fine_tuned
from shared.loads import Loads
from shared.placement import may_answer, owners
from shared.records import ReplicaRecord


def candidates(replicas: Sequence[ReplicaRecord], loads: Loads, *, base: str, model: str) -> list[ReplicaRecord]:
    """List the ready replicas that can answer for a model, best first.

    That is one that the model is merged into; then its owners, and whoever holds it besides, the least busy first; then
    the others. One that already has more requests than it answers at a time comes behind one that has not. A replica
    that another model is merged into is none of the base's. Raises NoReplica with the reason when there is none.
    """
    of_base = [replica for replica in replicas if may_answer(replica, base=base, model=model)]
    ready = [replica for replica in of_base if replica.state == "ready" and replica.url]
    if not ready:
        raise NoReplica(f"The model '{model}' cannot answer yet: {_reason(of_base, base)}.", param="model")
    loads.keep(frozenset(replica.id for replica in replicas))
    own = {replica.id for replica in owners(ready, model)}

    def rank(replica: ReplicaRecord) -> tuple[bool, bool, bool, int]:
        load = loads.of(replica)
        is_full = bool(replica.max_running) and load >= replica.max_running
        has_it = model == base or replica.id in own or model in replica.resident
        return (is_full, not replica.merged, not has_it, load)

    random.shuffle(ready)
    return sorted(ready, key=rank)


def at_leisure(replicas: Sequence[ReplicaRecord], loads: Loads, *, base: str, model: str) -> list[ReplicaRecord]:
    """Keep those of the candidates that have the model in memory and at most half of their places taken.

    One that does not say how many places it has counts as free. Raises NoReplica when none is left.
    """
    holders = [one for one in replicas if model in (base, one.merged) or model in one.resident]
    free = [one for one in holders if not one.max_running or 2 * loads.of(one) < one.max_running]
    if not free:
        raise NoReplica(f"No inference server has the model '{model}' in memory and room to spare.", param="model")
    return free


def _reason(replicas: Sequence[ReplicaRecord], base: str) -> str:
    if not replicas:
        how = "; it is a whole model: start one with base_model set to its name" if is_fine_tuned(base) else ""
        return f"no inference server for '{base}' is running{how}"
    states = {f"{replica.state} ({replica.reason})" if replica.reason else replica.state for replica in replicas}
    return f"its inference server is {', '.join(sorted(states))}"
