"""Training one job in several processes, from the view of one of them: its share of the rows, and sums over all.

Each process holds the whole model and computes its share of a batch; gradients and measured sums are added up, so every
one makes the same step. The gradient of an adapter is small, and a batch goes through the model in several pieces of
different size, so one sum of all of it a step is little to wait for. torch's DistributedDataParallel would overlap it
with the backward pass, but wants each pass to go through a module of its own, and as many passes in each process.

Where every weight is trained, weights, gradients and moments are four times the model: sharding.py divides them.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from services.trainer.data.cutting import R
from services.trainer.failures import PeersLost

if TYPE_CHECKING:
    from services.trainer.training.model import TrainableModel

TIMEOUT = timedelta(hours=1)
"""Longest wait for the others. Who dies is noticed at once; this is for the one that reads a large file for all."""

_LOST = re.compile(r"gloo|ncclRemoteError|NCCL (error|communicator)|Connection (closed|reset) by peer", re.IGNORECASE)
"""What torch's collectives say, in RuntimeErrors without a class of their own, when a process is gone."""

T = TypeVar("T")


class Group:
    """A process that trains alone: its share is everything, and there is nobody to wait for."""

    rank = 0
    size = 1
    restarts = 0
    """How often the group was started anew."""

    @property
    def leads(self) -> bool:
        """Whether this process reports, saves and exports for all."""
        return self.rank == 0

    def share(self, rows: Sequence[R]) -> Sequence[R]:
        """Pick this process's rows, in their order; every row is in one share. It may be empty."""
        return rows

    def level(self, pieces: Sequence[T]) -> Iterator[T | None]:
        """Go through this process's pieces; None for a turn that only others need, where all have to take it."""
        return iter(pieces)

    def turns(self, items: Sequence[T]) -> Iterator[T | None]:
        """Go through items in as many turns in every process; None where a process has nothing in the last turn."""
        return iter(items)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, place by place, in double precision."""
        return list(values)

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Replace each gradient by its sum over all processes, the same to the last bit in each."""

    def clip_gradients(self, parameters: Sequence[Parameter], max_norm: float) -> float:
        """Scale the summed gradients so that their norm is at most `max_norm`; returns the norm before."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    def divide(self, model: TrainableModel) -> None:
        """Have each process keep a share of a model, where it need not keep it all; before there is an optimiser."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor, of which this process may have a share, as a whole, on the CPU if it was divided.

        Every process has to ask; where it is divided the first alone gets an answer, the others nothing.
        """
        return tensor.contiguous()

    def part(self, tensor: Tensor, *, like: Tensor) -> Tensor:
        """Return of a whole tensor what this process has of `like`."""
        return tensor

    @property
    def divides(self) -> bool:
        """Whether processes have shares of the model, and so save and load together."""
        return False

    def any(self, flag: bool) -> bool:
        """Ask whether the flag is set in any process; every one has to ask."""
        return flag

    def agree(self, number: int) -> int:
        """Return the first process's number; every one has to ask."""
        return number

    def is_lost(self, error: Exception) -> bool:
        """Whether an error says that another process has ended."""
        return False

    def first_one_first(self, work: Callable[[], T]) -> T:
        """Let the first process work, then the others: what it left on disk saves them the work."""
        return work()

    def seed(self, seed: int, step: int) -> None:
        """Seed what a step draws. A process that is alone goes on in its generator, whose state resume points hold."""


ALONE = Group()


class Joined(Group):
    """One of several processes, all of which call the same methods in the same order.

    Each call raises PeersLost when another process has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def share(self, rows: Sequence[R]) -> Sequence[R]:
        """Balance tokens: the longest row goes to the process that has the least."""
        loads = [0] * self.size
        mine = []
        for index in sorted(range(len(rows)), key=lambda index: (-rows[index].n_tokens, index)):
            to = loads.index(min(loads))
            loads[to] += rows[index].n_tokens
            if to == self.rank:
                mine.append(index)
        return [rows[index] for index in sorted(mine)]

    def turns(self, items: Sequence[T]) -> Iterator[T | None]:
        for first in range(0, len(items), self.size):
            place = first + self.rank
            yield items[place] if place < len(items) else None

    def sum(self, values: Sequence[float]) -> list[float]:
        found: list[float] = self._sum(torch.tensor(values, dtype=torch.float64)).tolist()
        return found

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        # A process without rows has no gradients.
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self._sum(torch.cat([part.flatten() for part in parts]))
        for parameter, total in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter)

    def any(self, flag: bool) -> bool:
        return self.sum([float(flag)])[0] > 0

    def agree(self, number: int) -> int:
        return int(self.sum([float(number) if self.leads else 0.0])[0])

    def first_one_first(self, work: Callable[[], T]) -> T:
        if self.leads:
            done = work()
            self.any(False)
            return done
        self.any(False)
        return work()

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
        )

    def leave(self) -> None:
        """Be alone from now on; for the end of a job, not after an error."""
        dist.destroy_process_group()

    def seed(self, seed: int, step: int) -> None:
        """Give each process noise of its own that follows from the step, so a resumed run draws the same."""
        torch.manual_seed(random.Random(f"{seed}:{step}:{self.rank}").getrandbits(63))

    def _sum(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self._device)
        try:
            dist.all_reduce(moved)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PeersLost(str(error)) from error
        return moved


def enter_group(backend: Literal["gloo", "nccl"]) -> torch.device:
    """Be one of the processes that torch's launcher has started; returns where they compute.

    Raises RuntimeError when the others do not come.
    """
    dist.init_process_group(backend, timeout=TIMEOUT)
    return torch.device("cuda" if backend == "nccl" else "cpu")
