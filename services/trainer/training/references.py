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
    group, reader = objective.group, objective.reader
    examples = [example for row in rows for example in row.compared]
    found: dict[int, float] = {}
    for piece in group.turns(_pieces(rows, reader)):
        if group.any(should_stop()):
            raise StopRequested(0)
        with torch.no_grad():
            if piece is not None:
                found |= zip(map(id, piece), read_targets(reader, piece).sums().tolist(), strict=True)
            elif group.divides:
                keep_up(reader, examples, backward=False)
    flat = group.sum([found.get(id(example), 0.0) for example in examples])
    return list(zip(flat[::2], flat[1::2], strict=True))


def _pieces(rows: Sequence[F], reader: Reader) -> list[list[Example]]:
    """Cut what the model is asked about as training cuts it: a pair is read together, other examples by their sizes.

    A row of one side says nothing of the size of the second example that it is compared with.
    """
    if all(row.sides == 1 for row in rows):
        return reader.pieces([example for row in rows for example in row.compared])
    return [[row.compared[side] for side in (0, 1) for row in piece] for piece in reader.pieces(rows)]


def _filled(rows: Sequence[F], logprobs: Sequence[Logprobs]) -> list[F]:
    return [row.referring(first, second) for row, (first, second) in zip(rows, logprobs, strict=True)]
