"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): give more often what was rewarded.

Its answers were sampled by a server from the model as it was before the step. Every token of a step's answers counts
alike (Yu et al. 2025, arXiv:2503.14476): a mean over each answer first would reward long wrong ones (Liu et al. 2025,
arXiv:2503.20783). Ratios are taken to what the server says it sampled with, so that a server that rounds otherwise than
the trainer is corrected for, not assumed away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.trainer.data.prompts import Completion
from services.trainer.protocol import ReinforcementSpec
from services.trainer.training.losses import grpo_losses, kl_estimates
from services.trainer.training.objectives import Measured, ReadTargets, Served, add_gradient, read_targets
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.reading import Reader
from services.trainer.training.starting import StartingPoint

_SUMS = 5


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a piece's N tokens."""

    behaviour_N: Tensor
    advantages_N: Tensor
    reference_N: Tensor


class Grpo:
    """The objective of a reinforcement job, made before a resume point is loaded: the reference is the start."""

    def __init__(self, reader: Reader, chosen: ReinforcementSpec) -> None:
        self.reader = reader
        self.group: Group = ALONE
        self._chosen = chosen
        self._start = StartingPoint(reader.model.trainable())

    def referring(self, rows: Sequence[Completion]) -> list[Completion]:
        """Fill in what the model that training started from says of each answer."""
        self.reader.model.module.eval()
        found: dict[int, Completion] = {}
        with self._start.in_place():
            for piece in self.reader.pieces(rows):
                read = read_targets(self.reader, [row.example for row in piece])
                parts = np.split(read.logprobs_N.float().cpu().numpy(), np.cumsum(read.counts)[:-1])
                found |= {id(row): row.referring(part) for row, part in zip(piece, parts, strict=True)}
        return [found[id(row)] for row in rows]

    def measure(self, rows: Sequence[Completion], *, backward: bool) -> Measured:
        """Rows have their references. Answers of which nothing is learnt count in every mean."""
        n_targets = sum(row.n_supervised for row in rows)
        loss_sum, n_hits, n_tokens = 0.0, 0, 0
        sums = torch.zeros(_SUMS, dtype=torch.float64)
        for piece in self.reader.pieces(rows):
            read = read_targets(self.reader, [row.example for row in piece])
            known = _known(piece, read.logprobs_N)
            policy_N, clipped_N = grpo_losses(
                read.logprobs_N,
                known.behaviour_N,
                known.advantages_N,
                clip_low=self._chosen.clip_low,
                clip_high=self._chosen.clip_high,
            )
            divergence_N = kl_estimates(read.logprobs_N, known.reference_N)
            loss = (policy_N + self._chosen.kl_coefficient * divergence_N).sum()
            if backward:
                add_gradient(loss / n_targets)
            loss_sum += float(loss.detach())
            n_hits += int(read.hits_N.sum())
            n_tokens += read.n_tokens
            sums += _summed(read, known, divergence_N, clipped_N)
        divergence, difference, moved, moved_served, clipped = (sums / n_targets).tolist()
        served = Served(difference, moved, moved_served, clipped)
        return Measured(loss_sum / n_targets, n_hits / n_targets, n_tokens, None, divergence, served)


def _known(piece: Sequence[Completion], like_N: Tensor) -> _Known:
    references = [row.reference_N for row in piece if row.reference_N is not None]
    advantages = [np.full(row.n_supervised, row.advantage, np.float32) for row in piece]
    return _Known(
        behaviour_N=torch.from_numpy(np.concatenate([row.behaviour_N for row in piece])).to(like_N),
        advantages_N=torch.from_numpy(np.concatenate(advantages)).to(like_N),
        reference_N=torch.from_numpy(np.concatenate(references)).to(like_N),
    )


def _summed(read: ReadTargets, known: _Known, divergence_N: Tensor, clipped_N: Tensor) -> Tensor:
    """Add up over a piece's tokens: divergence, the three differences of Served, and how many are clipped."""
    logprobs_N = read.logprobs_N.detach()
    parts = (
        divergence_N.detach(),
        (known.behaviour_N - logprobs_N).abs(),
        (known.reference_N - logprobs_N).abs(),
        (known.reference_N - known.behaviour_N).abs(),
        clipped_N,
    )
    return torch.stack([part.double().sum() for part in parts]).cpu()
