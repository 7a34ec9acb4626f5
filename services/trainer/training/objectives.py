"""What is learnt: answers (supervised), or which of two answers is better (DPO). See kto.py, orpo.py and reward.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from services.trainer.data.chat import Example
from services.trainer.data.cutting import Row
from services.trainer.data.pairs import Pair
from services.trainer.training.losses import chunked_logprobs, chunked_nll, dpo_losses
from services.trainer.training.parallel import ALONE, Group
from services.trainer.training.reading import Reader

RowT_contra = TypeVar("RowT_contra", bound=Row, contravariant=True)


@dataclass(frozen=True, slots=True)
class Rewards:
    """Means over pairs, in nats but for the accuracy, which is a share from 0 to 1; see protocol.Metrics.

    None is what a batch of KTO's rows does not have, which may all have one label.
    """

    chosen: float | None
    rejected: float | None
    margin: float | None
    accuracy: float


@dataclass(frozen=True, slots=True)
class Served:
    """How the model and the server that sampled from it agree; means over tokens."""

    difference: float
    """Absolute difference of log probabilities, the server's and the model's, in nats."""
    moved: float
    """The same of the reference's and the model's."""
    moved_served: float
    """The same of the reference's and the server's."""
    clip_share: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Means: loss in nats per supervised token or pair, accuracy of argmax from 0 to 1."""

    loss: float
    accuracy: float
    n_tokens: int
    rewards: Rewards | None = None
    divergence: float | None = None
    """KTO's or GRPO's estimate of how far the model has moved, in nats."""
    served: Served | None = None
    """GRPO's view of the answers that it learns from."""


class Objective(Protocol[RowT_contra]):
    """Measures rows; with `backward` it adds the gradient of their mean loss to the parameters'.

    In a group each process computes its share: what is measured is of all rows, the gradient a part of theirs.
    """

    @property
    def reader(self) -> Reader: ...

    @property
    def group(self) -> Group: ...

    def measure(self, rows: Sequence[RowT_contra], *, backward: bool) -> Measured: ...


class Supervised:
    """Cross entropy of the answers' tokens; each token counts alike, however the rows are cut."""

    def __init__(self, reader: Reader, group: Group = ALONE) -> None:
        self.reader = reader
        self.group = group

    def measure(self, rows: Sequence[Example], *, backward: bool) -> Measured:
        n_supervised = sum(example.n_supervised for example in rows)
        loss_sum, n_hits, n_tokens = 0.0, 0, 0
        for piece in self.group.level(self.reader.pieces(self.group.share(rows))):
            if piece is None:
                keep_up(self.reader, rows, backward=backward)
                continue
            hidden_ND, batch = self.reader.read(piece)
            loss, hits = chunked_nll(hidden_ND, self.reader.model.head, batch.targets_N)
            if backward:
                add_gradient(loss / n_supervised)
            loss_sum += float(loss.detach())
            n_hits += hits
            n_tokens += batch.n_tokens
        loss_sum, correct, tokens = self.group.sum([loss_sum, n_hits, n_tokens])
        return Measured(loss_sum / n_supervised, correct / n_supervised, int(tokens))


@dataclass(frozen=True, slots=True)
class ReadTargets:
    """What the model makes of E examples: log probabilities of their N targets in nats, and which are most likely."""

    logprobs_N: Tensor
    hits_N: Tensor
    counts: tuple[int, ...]
    """Targets of each example."""
    n_tokens: int

    def sums(self) -> Tensor:
        """Return sums_E, the log probability of each example's targets together."""
        return torch.stack([part.sum() for part in torch.split(self.logprobs_N, list(self.counts))])


def read_targets(reader: Reader, examples: Sequence[Example]) -> ReadTargets:
    """Let the model read examples, all at once."""
    hidden_ND, batch = reader.read(examples)
    logprobs_N, hits_N = chunked_logprobs(hidden_ND, reader.model.head, batch.targets_N)
    return ReadTargets(logprobs_N, hits_N, batch.counts, batch.n_tokens)


class Preference:
    """Direct preference optimisation: prefer an answer to another by more than the reference model does.

    Both answers of a pair are read together; each pair counts alike.
    """

    def __init__(self, reader: Reader, beta: float, group: Group = ALONE) -> None:
        self.reader = reader
        self.beta = beta
        self.group = group

    def measure(self, rows: Sequence[Pair], *, backward: bool) -> Measured:
        loss_sum, n_hits, n_tokens = 0.0, 0, 0
        rewards_4 = torch.zeros(4, dtype=torch.float64)
        for piece in self.group.level(self.reader.pieces(self.group.share(rows))):
            if piece is None:
                keep_up(self.reader, [pair.chosen for pair in rows], backward=backward)
                continue
            answers = read_targets(self.reader, sides(piece))
            policy_2P = answers.sums().view(2, -1)
            reference_2P = _reference(piece).to(policy_2P)
            losses_P, margins_P = dpo_losses(policy_2P[0], policy_2P[1], reference_2P[0] - reference_2P[1], self.beta)
            if backward:
                add_gradient(losses_P.sum() / len(rows))
            loss_sum += float(losses_P.detach().sum())
            n_hits += int(answers.hits_N[: sum(answers.counts[: len(piece)])].sum())
            n_tokens += answers.n_tokens
            rewards_4 += summed_rewards(self.beta * (policy_2P.detach() - reference_2P), margins_P.detach())
        loss_sum, correct, tokens, *rewards = self.group.sum([loss_sum, n_hits, n_tokens, *rewards_4.tolist()])
        n_supervised = sum(pair.chosen.n_supervised for pair in rows)
        mean_rewards = Rewards(*(reward / len(rows) for reward in rewards))
        return Measured(loss_sum / len(rows), correct / n_supervised, int(tokens), mean_rewards)


def sides(pairs: Sequence[Pair]) -> list[Example]:
    """Put all preferred sides before all others."""
    return [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]


def _reference(pairs: Sequence[Pair]) -> Tensor:
    return torch.tensor([[p.reference_chosen for p in pairs], [p.reference_rejected for p in pairs]])


def summed_rewards(rewards_2P: Tensor, margins_P: Tensor) -> Tensor:
    """Add up over pairs what Rewards has, in its order."""
    return torch.cat((rewards_2P, margins_P[None], (margins_P > 0)[None])).double().sum(dim=1).cpu()


def keep_up(reader: Reader, examples: Sequence[Example], *, backward: bool) -> None:
    """Run the layers once, for the other processes; what is learnt from it is nothing."""
    hidden_ND, _ = reader.read([min(examples, key=lambda example: example.n_tokens)])
    if backward:
        add_gradient(0.0 * hidden_ND.sum())


def add_gradient(loss: Tensor) -> None:
    """Add the gradient of a loss to the parameters'."""
    loss.backward()  # type: ignore[no-untyped-call]
