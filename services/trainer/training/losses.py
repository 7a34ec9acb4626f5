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


def chunked_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Find each target's log probability through a frozen output layer without ever holding the full logits.

    Returns logprobs_N in nats (float32, differentiable in `hidden_ND` only) and hits_N, true where the target is the
    most likely token. Raises ValueError when `weight_VD` wants a gradient.
    """
    if weight_VD.requires_grad:
        raise ValueError("chunked_logprobs treats the output layer as frozen, but its weight requires a gradient")
    logprobs_N, hits_N = _FrozenHeadLogprobs.apply(hidden_ND, weight_VD, targets_N, chunk)  # type: ignore[no-untyped-call]
    return logprobs_N, hits_N


def dpo_losses(chosen_P: Tensor, rejected_P: Tensor, reference_P: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Compute the loss of direct preference optimisation (arXiv:2305.18290, equation 7), P pairs.

    `chosen_P` and `rejected_P` are summed log probabilities of whole answers; `reference_P` is the reference model's
    for the chosen one less that for the rejected one. Returns losses_P in nats and margins_P = beta * (how much more
    the model prefers the chosen answer than the reference does).
    """
    margins_P = beta * (chosen_P - rejected_P - reference_P)
    return -torch.nn.functional.logsigmoid(margins_P), margins_P


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
            losses, hits, gradient = _token_losses(hidden_ND[rows], weight_VD, targets_N[rows], wants_gradient)
            loss += losses.sum()
            correct += hits.sum()
            if gradient_ND is not None:
                gradient_ND[rows] = gradient
        ctx.save_for_backward(gradient_ND)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * gradients[0].to(gradient_ND.dtype), None, None, None


class _FrozenHeadLogprobs(torch.autograd.Function):
    """As _FrozenHeadNll, token by token and with the other sign."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(hidden_ND) if wants_gradient else None
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        hits_N = torch.empty(len(targets_N), dtype=torch.bool, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            losses, hits_N[rows], gradient = _token_losses(hidden_ND[rows], weight_VD, targets_N[rows], wants_gradient)
            logprobs_N[rows] = -losses
            if gradient_ND is not None:
                gradient_ND[rows] = gradient
        ctx.save_for_backward(gradient_ND)
        ctx.mark_non_differentiable(hits_N)
        return logprobs_N, hits_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return -gradient_ND * gradients[0].to(gradient_ND.dtype)[:, None], None, None, None


def _token_losses(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses_N in nats, hits_N, and d losses_N / d hidden_ND (empty unless wanted), all of one chunk."""
    logits = (hidden_ND @ weight_VD.T).float()
    normaliser = logits.logsumexp(dim=1)
    losses = normaliser - logits.gather(1, targets_N[:, None])[:, 0]
    hits = logits.argmax(dim=1) == targets_N
    if not wants_gradient:
        return losses, hits, hidden_ND.new_empty(0)
    # d loss / d logits = softmax - one_hot, built in place of the logits.
    logits.sub_(normaliser[:, None]).exp_()
    logits[torch.arange(len(targets_N), device=logits.device), targets_N] -= 1.0
    return losses, hits, logits.to(weight_VD.dtype) @ weight_VD
