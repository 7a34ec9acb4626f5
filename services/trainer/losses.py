"""Losses as pure functions of tensors. Axes: N supervised tokens, D hidden size, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def chunked_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk: int = 256) -> tuple[Tensor, int]:
    """Sum token losses through a frozen output layer without ever holding the full logits.

    Returns the summed loss in nats (float32 scalar, differentiable in `hidden_ND` only) and the number of tokens whose
    target is the most likely one. Raises ValueError when `weight_VD` wants a gradient, which is never computed here.
    """
    if weight_VD.requires_grad:
        raise ValueError("chunked_nll treats the output layer as frozen, but its weight requires a gradient")
    loss, correct = _FrozenHeadNll.apply(hidden_ND, weight_VD, targets_N, chunk)  # type: ignore[no-untyped-call]
    return loss, int(correct)


@dataclass(frozen=True, slots=True)
class Scores:
    """Token by token: log probability of the target and of the most likely token, in nats, and which token that is."""

    logprobs: list[float]
    best_logprobs: list[float]
    best_tokens: list[int]


def score_tokens(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Scores:
    """Score targets in float32, without gradient."""
    with torch.no_grad():
        logprobs_NV = (hidden_ND @ weight_VD.T).float().log_softmax(dim=1)
        picked_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
        best_N, tokens_N = logprobs_NV.max(dim=1)
    return Scores(picked_N.tolist(), best_N.tolist(), tokens_N.tolist())


class _FrozenHeadNll(torch.autograd.Function):
    """Loss and its gradient in one pass: a chunk's logits live only while that chunk is worked on."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(hidden_ND) if wants_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            targets = targets_N[rows]
            logits = (hidden_ND[rows] @ weight_VD.T).float()
            normaliser = logits.logsumexp(dim=1)
            loss += (normaliser - logits.gather(1, targets[:, None])[:, 0]).sum()
            correct += (logits.argmax(dim=1) == targets).sum()
            if gradient_ND is not None:
                # d loss / d logits = softmax - one_hot, built in place of the logits.
                logits.sub_(normaliser[:, None]).exp_()
                logits[torch.arange(len(targets), device=logits.device), targets] -= 1.0
                gradient_ND[rows] = logits.to(weight_VD.dtype) @ weight_VD
        ctx.save_for_backward(gradient_ND)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * gradients[0].to(gradient_ND.dtype), None, None, None
