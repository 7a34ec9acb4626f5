"""Odds ratio preferences: learn the better answer, and prefer it to the other, at once and without a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from services.trainer.data.chat import Example
from services.trainer.data.pairs import Pair
from services.trainer.training.losses import orpo_losses
from services.trainer.training.objectives import (
    Measured,
    ReadTargets,
    Rewards,
    add_gradient,
    keep_up,
    read_targets,
    sides,
    summed_rewards,
)
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.reading import Reader


class Orpo:
    """Cross entropy of the preferred conversations, each token alike, and `beta` times the odds ratio's loss, by pairs.

    As in the authors' code, and in TRL's, the cross entropy is that of prompt and answer; the odds are the answers'.
    """

    def __init__(self, reader: Reader, beta: float, group: Group = ALONE) -> None:
        self.reader = reader
        self.beta = beta
        self.group = group

    def measure(self, rows: Sequence[Pair], *, backward: bool) -> Measured:
        n_learnt = sum(pair.chosen.n_tokens - 1 for pair in rows)
        loss_sum, n_hits, n_tokens = 0.0, 0, 0
        rewards_4 = torch.zeros(4, dtype=torch.float64)
        for piece in self.group.level(self.reader.pieces(self.group.share(rows))):
            if piece is None:
                keep_up(self.reader, [pair.chosen for pair in rows], backward=backward)
                continue
            whole = [replace(pair, chosen=_learnt_whole(pair.chosen)) for pair in piece]
            read = read_targets(self.reader, sides(whole))
            n_chosen = sum(read.counts[: len(piece)])
            answers_N = _answers(piece).to(read.logprobs_N.device)
            chosen_P, rejected_P = _means(read, answers_N).view(2, -1)
            nll = -read.logprobs_N[:n_chosen].sum()
            loss = nll / n_learnt + self.beta * orpo_losses(chosen_P, rejected_P).sum() / len(rows)
            if backward:
                add_gradient(loss)
            loss_sum += float(loss.detach())
            n_hits += int((read.hits_N & answers_N)[:n_chosen].sum())
            n_tokens += read.n_tokens
            rewards_2P = self.beta * torch.stack((chosen_P, rejected_P)).detach()
            rewards_4 += summed_rewards(rewards_2P, rewards_2P[0] - rewards_2P[1])
        loss_sum, correct, tokens, *rewards = self.group.sum([loss_sum, n_hits, n_tokens, *rewards_4.tolist()])
        n_supervised = sum(pair.chosen.n_supervised for pair in rows)
        mean_rewards = Rewards(*(reward / len(rows) for reward in rewards))
        return Measured(loss_sum, correct / n_supervised, int(tokens), mean_rewards)


def _learnt_whole(example: Example) -> Example:
    """Return the example with every token but the first as a target."""
    supervised = np.ones_like(example.supervised)
    supervised[0] = 0
    return replace(example, supervised=supervised)


def _answers(pairs: Sequence[Pair]) -> Tensor:
    """Tell the places of answers from the prompts' among the targets of sides(pairs), of which the first are whole."""
    chosen = [torch.tensor(pair.chosen.supervised[1:] != 0) for pair in pairs]
    return torch.cat([*chosen, torch.ones(sum(pair.rejected.n_supervised for pair in pairs), dtype=torch.bool)])


def _means(read: ReadTargets, counted_N: Tensor) -> Tensor:
    """Return the mean log probability of each example's counted targets, in nats."""
    counts = list(read.counts)
    parts = zip(torch.split(read.logprobs_N, counts), torch.split(counted_N, counts), strict=True)
    return torch.stack([logprobs[counted].mean() for logprobs, counted in parts])
