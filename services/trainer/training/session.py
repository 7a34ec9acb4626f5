"""A model in training: forward and backward, optimiser steps, evaluation, saving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

import torch

from services.trainer.data.cutting import R
from services.trainer.failures import NonFiniteLoss
from services.trainer.training import checkpoints
from services.trainer.training.model import load_adapter
from services.trainer.training.noise import add_noise
from services.trainer.training.objectives import Measured, Objective
from services.trainer.training.optim import build_optimizer

_SMALLER = "try a smaller learning_rate_multiplier"
_MAX_LEARNING_RATE = 1e37
"""AdamW's first step multiplies by ten to undo its running mean's bias, and float32 ends at 3.4e38."""


class TrainingSession(Generic[R]):
    """Holds model, adapter and optimiser. Gradients add up over forward_backward calls until optim_step."""

    def __init__(
        self,
        objective: Objective[R],
        *,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        noise_alpha: float | None = None,
    ) -> None:
        self.objective = objective
        self.group = objective.group
        self.model = objective.reader.model
        if noise_alpha is not None:
            if objective.reader.is_fast:
                raise ValueError("noise is for models on the plain path")
            add_noise(self.model.backbone, self.model.module.get_input_embeddings(), noise_alpha)
        self.parameters = self.model.trainable()
        self.max_grad_norm = max_grad_norm
        self.optimizer = build_optimizer(self.parameters.values(), weight_decay)

    def forward_backward(self, rows: Sequence[R]) -> Measured:
        """Add the gradient of the mean loss of `rows`, in pieces that fit into memory; in a group, this process's part.

        Raises NonFiniteLoss, in every process.
        """
        self.model.module.train()
        return _finite(self.objective.measure(rows, backward=True))

    def rehearse(self, rows: Sequence[R]) -> Measured:
        """Go forward and backward as in a step, and leave everything as it was. Raises NonFiniteLoss."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                return self.forward_backward(rows)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def optim_step(self, learning_rate: float) -> float:
        """Clip the gradient, a group's whole, apply and clear it. Returns the norm before. Raises NonFiniteLoss."""
        parameters = list(self.parameters.values())
        self.group.sum_gradients(parameters)
        norm = self.group.clip_gradients(parameters, self.max_grad_norm)
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"The gradient's norm became {norm}; {_SMALLER}.")
        if not learning_rate <= _MAX_LEARNING_RATE:
            raise NonFiniteLoss(f"A learning rate of {learning_rate:.3g} is beyond single precision; {_SMALLER}.")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def evaluate(self, rows: Sequence[R]) -> Measured:
        """Measure without training; leaves gradients and random state as they are. Raises NonFiniteLoss."""
        self.model.module.eval()
        with torch.no_grad():
            return _finite(self.objective.measure(rows, backward=False))

    def save(self, folder: Path, position: checkpoints.Position, *, best_step: int | None = None) -> None:
        """Write a resume point atomically, and keep that of `best_step`; see checkpoints."""
        checkpoints.save(folder, self.parameters, self.optimizer, position, group=self.group, best_step=best_step)

    def load(self, folder: Path) -> checkpoints.Position | None:
        """Go back to the newest whole resume point in `folder`, bit for bit; None if there is none."""
        return checkpoints.load_newest(folder, self.parameters, self.optimizer, group=self.group)

    def load_adapter(self, folder: Path) -> None:
        """Take the weights of an exported adapter of the same form. The optimiser stays as it is."""
        load_adapter(self.model.module, folder)

    def load_parameters(self, folder: Path, step: int) -> None:
        """Take what the resume point at `step` has of the parameters. The optimiser stays as it is."""
        checkpoints.load_parameters(folder, step, self.parameters, group=self.group)


def _finite(measured: Measured) -> Measured:
    if not math.isfinite(measured.loss):
        raise NonFiniteLoss(f"The loss became {measured.loss}; {_SMALLER}.")
    return measured
