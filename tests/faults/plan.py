"""Which faults, in which order, how far apart: everything follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    KILL = "kill"
    """SIGKILL."""
    STOP = "stop"
    """SIGTERM: the process is to put down what it does."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT later."""
    FILL_DISK = "fill_disk"
    """Not a byte is left on the data folder's disk for a while."""
    CUT_REDIS = "cut_redis"
    """Every connection to the database is closed."""
    MOVE_CLOCK = "move_clock"
    """The date jumps, for every process of the stack."""


PROCESSES = (
    "api", "other_api", "trainer", "other_trainer", "training", "inference", "engine", "valkey", "launcher",
)  # fmt: skip
"""What may be killed or frozen; see site.Site.processes()."""


@dataclass(frozen=True)
class Fault:
    """One plug. `pause_s` passes before it, `lasts_s` is for those that end, `seconds` how far the clock moves."""

    kind: Kind
    target: str = ""
    pause_s: float = 1.0
    lasts_s: float = 0.0
    seconds: int = 0

    def __str__(self) -> str:
        words = [self.kind.value, self.target]
        if self.lasts_s:
            words.append(f"for {self.lasts_s:.1f} s")
        if self.seconds:
            words.append(f"by {self.seconds:+d} s")
        return " ".join(word for word in words if word)


_WEIGHTS: Sequence[tuple[Kind, str, int]] = (
    (Kind.KILL, "api", 6), (Kind.KILL, "other_api", 5), (Kind.KILL, "trainer", 8), (Kind.KILL, "other_trainer", 6),
    (Kind.KILL, "training", 8), (Kind.KILL, "inference", 3), (Kind.KILL, "engine", 3), (Kind.KILL, "valkey", 8),
    (Kind.KILL, "launcher", 2), (Kind.STOP, "api", 2), (Kind.STOP, "other_api", 2), (Kind.STOP, "trainer", 4),
    (Kind.STOP, "other_trainer", 4), (Kind.STOP, "valkey", 2), (Kind.FREEZE, "api", 2), (Kind.FREEZE, "other_api", 2),
    (Kind.FREEZE, "trainer", 5), (Kind.FREEZE, "other_trainer", 5), (Kind.FREEZE, "training", 3),
    (Kind.FREEZE, "inference", 2), (Kind.FREEZE, "engine", 2), (Kind.FREEZE, "valkey", 5), (Kind.FILL_DISK, "", 5),
    (Kind.CUT_REDIS, "", 6), (Kind.MOVE_CLOCK, "", 5),
)  # fmt: skip


def draw(seed: int, count: int, *, without: frozenset[Kind] = frozenset()) -> list[Fault]:
    """Draw `count` faults; each kind and target appears about as often as its weight says."""
    dice = random.Random(seed)
    choices = [(kind, target, weight) for kind, target, weight in _WEIGHTS if kind not in without]
    weights = [weight for _, _, weight in choices]
    return [_fault(dice, *dice.choices(choices, weights)[0][:2]) for _ in range(count)]


def _fault(dice: random.Random, kind: Kind, target: str) -> Fault:
    pause_s = dice.choice((0.2, 1.0, 2.0, 4.0, 6.0))
    match kind:
        case Kind.FREEZE:  # some shorter, some longer than a lease and than a heartbeat's lifetime
            return Fault(kind, target, pause_s, lasts_s=dice.choice((0.5, 2.0, 7.0, 12.0)))
        case Kind.FILL_DISK:
            return Fault(kind, pause_s=pause_s, lasts_s=dice.choice((1.0, 3.0, 6.0)))
        case Kind.MOVE_CLOCK:
            return Fault(kind, pause_s=pause_s, seconds=dice.choice((-5400, -30, -3, 3, 30, 5400)))
        case _:
            return Fault(kind, target, pause_s)
