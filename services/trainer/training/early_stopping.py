"""When training has stopped to help: a pure function of the epochs' validation losses, so a resumed run agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.schemas.options import EarlyStopping


@dataclass(frozen=True, slots=True)
class Verdict:
    """`best` is the index of the epoch with the lowest loss, the earliest of equals; `over` says to stop now."""

    best: int
    over: bool


def judge(losses: Sequence[float], rule: EarlyStopping) -> Verdict:
    """Look at the losses of the epochs so far, in nats; there is at least one.

    An epoch improves when its loss lies more than `min_delta` below that of the last one that did.
    """
    mark, improved_at = losses[0], 0
    for epoch, loss in enumerate(losses):
        if loss < mark - rule.min_delta:
            mark, improved_at = loss, epoch
    return Verdict(best=losses.index(min(losses)), over=len(losses) - 1 - improved_at >= rule.patience)
