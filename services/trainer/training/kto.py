"""Kahneman-Tversky optimisation: give good answers more often, and bad ones less, without a second one to compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.trainer.data.labelled import Labelled
from services.trainer.training.losses import kto_losses
from services.trainer.training.objectives import Measured, Rewards, add_gradient, keep_up, read_targets
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.reading import Reader

_SUMS = 5
"""Of rows, by label: their rewards and how many they are; and how many are on the right side."""


class Kto:
    """Each row counts by its label's weight; the mean is over rows, whatever their labels.

    Before the rows of a batch, their prompts are read with other rows' answers, without gradient: how much likelier the
    model finds those than the reference does, on average, is the point from which gains and losses count.
    """

    def __init__(
        self, reader: Reader, *, beta: float, desirable_weight: float, undesirable_weight: float, group: Group = ALONE
    ) -> None:
        self.reader = reader
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.group = group

    def measure(self, rows: Sequence[Labelled], *, backward: bool) -> Measured:
        mine = self.group.share(rows)
        divergence = self._divergence(rows, mine)
        loss_sum, n_hits, n_tokens = 0.0, 0, 0
        sums = torch.zeros(_SUMS, dtype=torch.float64)
        for piece in self.group.level(self.reader.pieces(mine)):
            if piece is None:
                keep_up(self.reader, [row.example for row in rows], backward=backward)
                continue
            read = read_targets(self.reader, [row.example for row in piece])
            policy_E = read.sums()
            desirable_E = torch.tensor([row.is_desirable for row in piece], device=policy_E.device)
            logratios_E = policy_E - torch.tensor([row.reference for row in piece]).to(policy_E)
            losses_E = kto_losses(logratios_E, desirable_E, divergence, self.beta) * self._weights(desirable_E)
            if backward:
                add_gradient(losses_E.sum() / len(rows))
            loss_sum += float(losses_E.detach().sum())
            n_hits += int(read.hits_N.sum())
            n_tokens += read.n_tokens
            sums += _summed(self.beta * logratios_E.detach(), desirable_E, self.beta * divergence)
        loss_sum, correct, tokens, *summed = self.group.sum([loss_sum, n_hits, n_tokens, *sums.tolist()])
        n_supervised = sum(row.n_supervised for row in rows)
        return Measured(
            loss_sum / len(rows), correct / n_supervised, int(tokens), _rewards(summed, len(rows)), divergence
        )

    def _weights(self, desirable_E: Tensor) -> Tensor:
        return torch.where(desirable_E, self.desirable_weight, self.undesirable_weight)

    def _divergence(self, rows: Sequence[Labelled], mine: Sequence[Labelled]) -> float:
        """Estimate, of all rows, how far the model is from the reference, in nats; never below 0."""
        moved = -sum(row.reference_mismatched for row in mine)
        with torch.no_grad():
            for piece in self.group.level(self.reader.pieces([row.mismatched for row in mine])):
                if piece is None:
                    keep_up(self.reader, [row.mismatched for row in rows], backward=False)
                else:
                    moved += float(read_targets(self.reader, piece).logprobs_N.double().sum())
        return max(0.0, self.group.sum([moved])[0] / len(rows))


def _summed(rewards_E: Tensor, desirable_E: Tensor, point: float) -> Tensor:
    """Add up rewards and numbers of desirable rows, of the others, and how many lie on their side of `point`."""
    good_E, bad_E = rewards_E[desirable_E], rewards_E[~desirable_E]
    right = (good_E > point).sum() + (bad_E < point).sum()
    counted = torch.tensor([len(good_E), len(bad_E), int(right)], dtype=torch.float64)
    return torch.cat((torch.stack((good_E.sum(), bad_E.sum())).double().cpu(), counted))


def _rewards(summed: Sequence[float], n_rows: int) -> Rewards:
    good_sum, bad_sum, n_good, n_bad, right = summed
    chosen = good_sum / n_good if n_good else None
    rejected = bad_sum / n_bad if n_bad else None
    margin = None if chosen is None or rejected is None else chosen - rejected
    return Rewards(chosen, rejected, margin, right / n_rows)
