"""What the model from which DPO and KTO start thinks of each answer: computed once, kept in the job folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import msgspec
import structlog
import torch
from msgspec import Struct

from services.trainer.data.chat import Example
from services.trainer.data.cutting import Row
from services.trainer.data.dataset import Dataset
from services.trainer.failures import StopRequested
from services.trainer.training.objectives import Objective, keep_up, read_targets
from services.trainer.training.reading import Reader
from shared.paths import write_atomic

Logprobs = tuple[float, float]

log = structlog.get_logger()


class Referring(Row, Protocol):
    """A row that is compared with what the starting model says of two examples."""

    @property
    def compared(self) -> tuple[Example, Example]: ...

    def referring(self, first: float, second: float, /) -> Self: ...


F = TypeVar("F", bound=Referring)


class _Stored(Struct, frozen=True, kw_only=True):
    """Of each row's two examples, in the file's order: summed log probabilities in nats."""

    train: list[Logprobs]
    valid: list[Logprobs]


def with_reference(
    data: Dataset[F], objective: Objective[F], path: Path, should_stop: Callable[[], bool]
) -> Dataset[F]:
    """Fill in the reference of every row, from the file `path` if an earlier process wrote it.

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


def _read(path: Path, data: Dataset[F]) -> _Stored | None:
    if not path.exists():
        return None
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except msgspec.MsgspecError as error:
        log.warning("reference.damaged", reason=str(error))
        return None
    fits = (len(stored.train), len(stored.valid)) == (len(data.train), len(data.valid))
    return stored if fits else None


def _logprobs(rows: Sequence[F], objective: Objective[F], should_stop: Callable[[], bool]) -> list[Logprobs]:
    """Look at every row; in a group each process takes its turn at a piece, and all of them get all numbers."""
    group = objective.group
    found: dict[int, Logprobs] = {}
    for piece in group.turns(objective.reader.pieces(rows)):
        if group.any(should_stop()):
            raise StopRequested(0)
        if piece is not None:
            found |= zip(map(id, piece), _compared(piece, objective.reader), strict=True)
        elif group.divides:
            with torch.no_grad():
                keep_up(objective.reader, [row.compared[0] for row in rows], backward=False)
    flat = group.sum([number for row in rows for number in found.get(id(row), (0.0, 0.0))])
    return list(zip(flat[::2], flat[1::2], strict=True))


def _compared(rows: Sequence[F], reader: Reader) -> list[Logprobs]:
    """Return the summed log probabilities of both examples of each row of one piece."""
    firsts, seconds = zip(*(row.compared for row in rows), strict=True)
    with torch.no_grad():
        sums = read_targets(reader, [*firsts, *seconds]).sums().tolist()
    return list(zip(sums[: len(rows)], sums[len(rows) :], strict=True))


def _filled(rows: Sequence[F], logprobs: Sequence[Logprobs]) -> list[F]:
    return [row.referring(first, second) for row, (first, second) in zip(rows, logprobs, strict=True)]
