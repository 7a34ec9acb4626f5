"""A reward model: score conversations so that the better of two answers gets more (Bradley and Terry 1952).

The score is a product of the last token's hidden state, the one that ends the answer, with one vector, the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from services.trainer.data.chat import Example
from services.trainer.data.pairs import Pair
from services.trainer.training.losses import bradley_terry_losses
from services.trainer.training.objectives import Measured, Rewards, add_gradient, sides, summed_rewards
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.reading import Reader


class BradleyTerry:
    """Each pair counts alike; an accuracy is the share of pairs whose preferred answer has the higher score."""

    def __init__(self, reader: Reader, group: Group = ALONE) -> None:
        self.reader = reader
        self.group = group

    def measure(self, rows: Sequence[Pair], *, backward: bool) -> Measured:
        loss_sum, n_tokens = 0.0, 0
        rewards_4 = torch.zeros(4, dtype=torch.float64)
        for piece in self.reader.pieces(self.group.share(rows)):
            scores_2P = read_scores(self.reader, sides(piece)).view(2, -1)
            losses_P = bradley_terry_losses(scores_2P[0], scores_2P[1])
            if backward:
                add_gradient(losses_P.sum() / len(rows))
            loss_sum += float(losses_P.detach().sum())
            n_tokens += sum(pair.n_tokens for pair in piece)
            scores_2P = scores_2P.detach()
            rewards_4 += summed_rewards(scores_2P, scores_2P[0] - scores_2P[1])
        loss_sum, tokens, *rewards = self.group.sum([loss_sum, n_tokens, *rewards_4.tolist()])
        mean_rewards = Rewards(*(reward / len(rows) for reward in rewards))
        return Measured(loss_sum / len(rows), mean_rewards.accuracy, int(tokens), mean_rewards)


def read_scores(reader: Reader, examples: Sequence[Example]) -> Tensor:
    """Return scores_E in float32 of examples, all read at once. The model has to have a head."""
    score = reader.model.score
    assert score is not None
    hidden_ED, _ = reader.read([_asked_at_end(example) for example in examples])
    return hidden_ED.float() @ score[0]


def _asked_at_end(example: Example) -> Example:
    """Have the last token read too, where training reads what comes before a target: a token more, its only target."""
    supervised = np.zeros(len(example.tokens) + 1, np.uint8)
    supervised[-1] = 1
    return replace(example, tokens=np.append(example.tokens, example.tokens[-1:]), supervised=supervised)
