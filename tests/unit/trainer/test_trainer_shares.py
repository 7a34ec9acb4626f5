"""How a batch is shared out among processes, and how many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.chat import Example
from services.trainer.launch import gpus
from services.trainer.launch.process_group import process_count
from services.trainer.training.parallel import ALONE, Joined
from shared.settings import Settings
from tests.unit.trainer.tiny import make_spec


def joined(rank: int, size: int) -> Joined:
    """A process of a group, as far as it needs no other."""
    group = object.__new__(Joined)
    group.rank, group.size = rank, size
    return group


def row(line: int, length: int) -> Example:
    return Example(line, np.ones(length, dtype=np.int64), np.ones(length, dtype=np.uint8))


@given(st.lists(st.integers(2, 500), max_size=40), st.integers(2, 5))
def test_shares_are_all_rows_once_in_order_and_balanced(lengths: list[int], size: int) -> None:
    rows = [row(line, length) for line, length in enumerate(lengths)]
    shares = [list(joined(rank, size).share(rows)) for rank in range(size)]
    lines = [[example.line for example in share] for share in shares]
    assert sorted(line for share in lines for line in share) == list(range(len(rows)))
    assert all(share == sorted(share) for share in lines)
    loads = [sum(example.n_tokens for example in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(st.integers(0, 20), st.integers(2, 5))
def test_every_process_has_as_many_turns(count: int, size: int) -> None:
    turns = [list(joined(rank, size).turns(range(count))) for rank in range(size)]
    assert len({len(each) for each in turns}) == 1
    assert sorted(item for each in turns for item in each if item is not None) == list(range(count))


def test_each_process_draws_its_own_which_follow_from_the_step() -> None:
    def drawn(rank: int, step: int) -> list[float]:
        joined(rank, 2).seed(7, step)
        found: list[float] = torch.rand(4).tolist()
        return found

    with torch.random.fork_rng():
        assert drawn(0, 1) == drawn(0, 1)
        assert len({tuple(drawn(rank, step)) for rank in (0, 1) for step in (1, 2)}) == 4


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (torch.distributed.DistBackendError("anything"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_errors_of_another_process_s_end_are_told_from_others(error: Exception, is_lost: bool) -> None:
    assert joined(0, 2).is_lost(error) is is_lost
    assert not ALONE.is_lost(error)


@pytest.mark.parametrize(
    ("wanted", "batch_size", "visible", "count"),
    [
        (0, 8, None, 3),
        (0, 8, "0,2", 2),
        (0, 8, "", 1),
        (0, 2, None, 2),
        (4, 8, "", 4),
        (1, 8, None, 1),
        (4, 1, None, 1),
    ],
)
def test_processes_are_as_many_as_wanted_or_as_gpus_but_not_more_than_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, batch_size: int, visible: str | None, count: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    spec = make_spec(tmp_path, tmp_path, batch_size=batch_size)
    assert process_count(spec.batch_size, Settings(trainer_processes=wanted)) == count
