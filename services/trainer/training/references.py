"""What the model from which DPO starts thinks of each answer: computed once, kept in the job folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog
import torch
from msgspec import Struct

from services.trainer.data.dataset import Dataset
from services.trainer.data.pairs import Pair
from services.trainer.failures import StopRequested
from services.trainer.training.objectives import Preference, keep_up
from shared.paths import write_atomic

Logprobs = tuple[float, float]

log = structlog.get_logger()


class _Stored(Struct, frozen=True, kw_only=True):
    """(chosen, rejected) of each row, in the file's order: summed log probabilities in nats."""

    train: list[Logprobs]
    valid: list[Logprobs]


def with_reference(
    data: Dataset[Pair], objective: Preference, path: Path, should_stop: Callable[[], bool]
) -> Dataset[Pair]:
    """Fill in the reference of every pair, from the file `path` if an earlier process wrote it.

    The model has to be as training starts: before the first step, and before a resume point is loaded. Raises
    StopRequested, and then nothing is kept.
    """
    stored = _read(path, data)
    if stored is None:
        objective.reader.model.module.eval()
        stored = _Stored(
            train=_logprobs(data.train, objective, should_stop), valid=_logprobs(data.valid, objective, should_stop)
        )
        if objective.group.leads:
            write_atomic(path, msgspec.json.encode(stored))
    return Dataset(_filled(data.train, stored.train), _filled(data.valid, stored.valid))


def _read(path: Path, data: Dataset[Pair]) -> _Stored | None:
    if not path.exists():
        return None
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except msgspec.MsgspecError as error:
        log.warning("reference.damaged", reason=str(error))
        return None
    fits = (len(stored.train), len(stored.valid)) == (len(data.train), len(data.valid))
    return stored if fits else None


def _logprobs(pairs: Sequence[Pair], objective: Preference, should_stop: Callable[[], bool]) -> list[Logprobs]:
    """Look at every pair; in a group each process takes its turn at a piece, and all of them get all numbers."""
    group = objective.group
    found: dict[int, Logprobs] = {}
    for piece in group.turns(objective.reader.pieces(pairs)):
        if group.any(should_stop()):
            raise StopRequested(0)
        if piece is not None:
            found |= zip(map(id, piece), objective.logprobs(piece), strict=True)
        elif group.divides:
            with torch.no_grad():
                keep_up(objective.reader, [pair.chosen for pair in pairs], backward=False)
    flat = group.sum([number for pair in pairs for number in found.get(id(pair), (0.0, 0.0))])
    return list(zip(flat[::2], flat[1::2], strict=True))


def _filled(pairs: Sequence[Pair], logprobs: Sequence[Logprobs]) -> list[Pair]:
    return [
        replace(pair, reference_chosen=chosen, reference_rejected=rejected)
        for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True)
    ]
