"""Which replica answers for a model: a pure choice from the replicas that are alive."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.errors import NoReplica
from shared.ids import is_fine_tuned
from shared.records import ReplicaRecord


def candidates(replicas: Sequence[ReplicaRecord], *, base: str, model: str) -> list[ReplicaRecord]:
    """List the ready replicas of a base, best first: merged with the adapter, those that hold it, the least busy.

    A replica whose weights another model is merged into is none of the base's.
    Raises NoReplica with the reason when there is none.
    """
    of_base = [replica for replica in replicas if replica.base == base and replica.merged in ("", model)]
    ready = [replica for replica in of_base if replica.state == "ready" and replica.url]
    if not ready:
        raise NoReplica(f"The model '{model}' cannot answer yet: {_reason(of_base, base)}.", param="model")
    random.shuffle(ready)
    return sorted(
        ready,
        key=lambda replica: (not replica.merged, model != base and model not in replica.resident, replica.running),
    )


def _reason(replicas: Sequence[ReplicaRecord], base: str) -> str:
    if not replicas:
        how = "; it is a whole model: start one with base_model set to its name" if is_fine_tuned(base) else ""
        return f"no inference server for '{base}' is running{how}"
    states = {f"{replica.state} ({replica.reason})" if replica.reason else replica.state for replica in replicas}
    return f"its inference server is {', '.join(sorted(states))}"
