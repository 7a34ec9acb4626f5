"""Training one job in several processes, from the view of one of them: its share of the rows, and sums over all.

Each process holds the whole model and computes its share of a batch; gradients and measured sums are added up, so every
one makes the same step. The gradient of an adapter is small, and a batch goes through the model in several pieces of
different size, so one sum of all of it a step is little to wait for. torch's DistributedDataParallel would overlap it
with the backward pass, but wants each pass to go through a module of its own, and as many passes in each process.

What needs more than a whole model in each process, a base that is sharded (FSDP2), belongs into a Group of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from services.trainer.data.cutting import R
from services.trainer.failures import PeersLost

TIMEOUT = timedelta(hours=1)
"""Longest wait for the others. Who dies is noticed at once; this is for the one that reads a large file for all."""

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

    def turns(self, items: Sequence[T]) -> Iterator[T | None]:
        """Go through items in as many turns in every process; None where a process has nothing in the last turn."""
        return iter(items)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, place by place, in double precision."""
        return list(values)

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Replace each gradient by its sum over all processes, the same to the last bit in each."""

    def any(self, flag: bool) -> bool:
        """Ask whether the flag is set in any process; every one has to ask."""
        return flag

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

    def first_one_first(self, work: Callable[[], T]) -> T:
        if self.leads:
            done = work()
            self.any(False)
            return done
        self.any(False)
        return work()

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


def join(backend: Literal["gloo", "nccl"]) -> Joined:
    """Be one of the processes that torch's launcher has started. Raises RuntimeError when the others do not come."""
    dist.init_process_group(backend, timeout=TIMEOUT)
    return Joined(torch.device("cuda" if backend == "nccl" else "cpu"))
