"""A model in training: forward and backward, optimiser steps, evaluation, scoring, saving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from services.trainer import checkpoints
from services.trainer.data.batches import collate, micro_batches, shared_prefix
from services.trainer.data.chat import Example
from services.trainer.failures import NonFiniteLoss
from services.trainer.losses import Scores, chunked_nll, score_tokens
from services.trainer.model import LoraModel
from services.trainer.optim import MAX_GRAD_NORM, build_optimizer


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over supervised tokens: loss in nats, accuracy of argmax from 0 to 1."""

    loss: float
    accuracy: float
    n_supervised: int
    n_tokens: int


class TrainingSession:
    """Holds model, adapter and optimiser. Gradients add up over forward_backward calls until optim_step."""

    def __init__(self, model: LoraModel) -> None:
        self.model = model
        self.parameters = model.trainable()
        self._shares_prefixes = model.can_share_prefixes
        self.optimizer = build_optimizer(self.parameters.values())

    def forward_backward(self, examples: Sequence[Example]) -> Measured:
        """Add the gradient of the mean loss over all supervised tokens of `examples`.

        Rows are accumulated in pieces that fit into memory; every supervised token counts alike, however they are cut.
        Raises NonFiniteLoss.
        """
        self.model.peft.train()
        return self._run(examples, backward=True)

    def optim_step(self, learning_rate: float) -> float:
        """Clip the gradient to norm 1, apply and clear it. Returns the norm before clipping. Raises NonFiniteLoss."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), MAX_GRAD_NORM))
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"The gradient's norm became {norm}; try a smaller learning_rate_multiplier.")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def evaluate(self, examples: Sequence[Example]) -> Measured:
        """Measure without training; leaves gradients and random state as they are. Raises NonFiniteLoss."""
        self.model.peft.eval()
        with torch.no_grad():
            return self._run(examples, backward=False)

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> Scores:
        """Force `answer` after `prompt` in one forward pass."""
        self.model.peft.eval()
        tokens = torch.tensor([[*prompt, *answer]], device=self.model.device)
        with torch.no_grad():
            hidden_ND = self.model.hidden_states(tokens[:, :-1])[0, len(prompt) - 1 :]
            return score_tokens(hidden_ND, self.model.head_VD, tokens[0, len(prompt) :])

    def save(self, folder: Path, position: checkpoints.Position) -> None:
        """Write a resume point atomically; see checkpoints."""
        checkpoints.save(folder, self.parameters, self.optimizer, position)

    def load(self, folder: Path) -> checkpoints.Position | None:
        """Go back to the newest whole resume point in `folder`, bit for bit; None if there is none."""
        return checkpoints.load_newest(folder, self.parameters, self.optimizer)

    def _run(self, examples: Sequence[Example], *, backward: bool) -> Measured:
        n_supervised = sum(example.n_supervised for example in examples)
        loss_sum, correct, n_tokens = 0.0, 0, 0
        for piece in micro_batches(examples):
            prefix = shared_prefix(piece) if self._shares_prefixes else []
            batch = collate(piece, skip=len(prefix)).to(self.model.device)
            hidden_BTD = self.model.hidden_states(batch.inputs_BT, prefix)
            hidden_ND = hidden_BTD[batch.rows_N, batch.columns_N]
            loss, hits = chunked_nll(hidden_ND, self.model.head_VD, batch.targets_N)
            if backward:
                self._backward(loss / n_supervised)
            loss_sum += float(loss.detach())
            correct += hits
            n_tokens += batch.n_tokens
        if not math.isfinite(loss_sum):
            raise NonFiniteLoss(f"The loss became {loss_sum}; try a smaller learning_rate_multiplier.")
        return Measured(loss_sum / n_supervised, correct / n_supervised, n_supervised, n_tokens)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
