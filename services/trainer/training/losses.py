"""Losses as pure functions of tensors. Axes: N supervised tokens, D hidden size, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """What makes logits of hidden states: cap * tanh(scale * h W' / cap); without a cap, scale * h W'."""

    weight_VD: Tensor
    scale: float = 1.0
    """Granite divides its logits, Cohere multiplies them."""
    cap: float | None = None
    """Gemma 2 squeezes them into ±cap (arXiv:2408.00118)."""

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits_NV in float32, of their own."""
        logits_NV = (hidden_ND @ self.weight_VD.T).float()
        if self.scale != 1.0:
            logits_NV.mul_(self.scale)
        return logits_NV if self.cap is None else logits_NV.div_(self.cap).tanh_().mul_(self.cap)

    def slopes(self, logits_NV: Tensor) -> Tensor | float:
        """Return d logits / d (h W'), place by place."""
        return self.scale if self.cap is None else self.scale * (1.0 - (logits_NV / self.cap).square_())


def chunked_nll(hidden_ND: Tensor, head: OutputLayer, targets_N: Tensor, *, chunk: int = 256) -> tuple[Tensor, int]:
    """Sum token losses through the output layer without ever holding the full logits.

    Returns the summed loss in nats (float32 scalar, differentiable in `hidden_ND` and, where it is trained, in
    its weight) and the number of tokens whose target is the most likely one.
    """
    logprobs_N, hits_N = chunked_logprobs(hidden_ND, head, targets_N, chunk=chunk)
    return -logprobs_N.sum(), int(hits_N.sum())


def chunked_logprobs(
    hidden_ND: Tensor, head: OutputLayer, targets_N: Tensor, *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Find each target's log probability through the output layer without ever holding the full logits.

    Returns logprobs_N in nats (float32, differentiable as chunked_nll is) and hits_N, true where the target is the most
    likely token.
    """
    logprobs_N, hits_N = _ChunkedLogprobs.apply(hidden_ND, head.weight_VD, head, targets_N, chunk)  # type: ignore[no-untyped-call]
    return logprobs_N, hits_N


def dpo_losses(chosen_P: Tensor, rejected_P: Tensor, reference_P: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Compute the loss of direct preference optimisation (arXiv:2305.18290, equation 7), P pairs.

    `chosen_P` and `rejected_P` are summed log probabilities of whole answers; `reference_P` is the reference model's
    for the chosen one less that for the rejected one. Returns losses_P in nats and margins_P = beta * (how much more
    the model prefers the chosen answer than the reference does).
    """
    margins_P = beta * (chosen_P - rejected_P - reference_P)
    return -torch.nn.functional.logsigmoid(margins_P), margins_P


def kto_losses(logratios_E: Tensor, desirable_E: Tensor, divergence: float, beta: float) -> Tensor:
    """Compute the loss of Kahneman-Tversky optimisation (arXiv:2402.01306, equation 7), E examples.

    `logratios_E` says how much more likely, in nats, the model finds whole answers than the reference does,
    `divergence` the same of answers that do not belong to their prompts, on average and not below 0. Returns losses_E
    from 0 to 1, before they are weighted.
    """
    gains_E = torch.where(desirable_E, logratios_E - divergence, divergence - logratios_E)
    return 1.0 - torch.sigmoid(beta * gains_E)


LEAST_DEVIATION = 1e-4
"""What is added to a group's standard deviation, as TRL does; arXiv:2402.03300 adds nothing."""


def group_advantages(rewards_PG: Tensor, *, scale: bool = True) -> Tensor:
    """Compare the G answers of each of P prompts with one another (arXiv:2402.03300, section 4.1.2).

    Returns advantages_PG: rewards less their group's mean, with `scale` over its standard deviation (of a sample). A
    reward that is not a number stands for an answer without one: it is left out, and its advantage is 0, as is that of
    an answer which is alone.
    """
    is_there_PG = ~rewards_PG.isnan()
    counts_P1 = is_there_PG.sum(dim=1, keepdim=True).clamp(min=1)
    means_P1 = rewards_PG.nansum(dim=1, keepdim=True) / counts_P1
    centred_PG = torch.where(is_there_PG, rewards_PG - means_P1, 0.0)
    if not scale:
        return centred_PG
    variances_P1 = centred_PG.square().sum(dim=1, keepdim=True) / (counts_P1 - 1).clamp(min=1)
    return centred_PG / (variances_P1.sqrt() + LEAST_DEVIATION)


def grpo_losses(
    logprobs_N: Tensor, behaviour_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Compute the clipped policy loss of N tokens (arXiv:1707.06347, equation 7; two bounds as arXiv:2503.14476).

    `behaviour_N` are log probabilities by the model that sampled, `advantages_N` those of the tokens' answers. Returns
    losses_N and clipped_N, true where the bound holds the loss, and with it the gradient, back.
    """
    ratios_N = torch.exp(logprobs_N - behaviour_N)
    bounded_N = ratios_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    clipped_N = bounded_N * advantages_N < ratios_N * advantages_N
    return -torch.minimum(ratios_N * advantages_N, bounded_N * advantages_N), clipped_N


def kl_estimates(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate the divergence from the reference model by N of its tokens, in nats, each at least 0.

    It is k3 of Schulman 2020, "Approximating KL divergence", as in arXiv:2402.03300, equation 4.
    """
    differences_N = reference_N - logprobs_N
    return torch.expm1(differences_N) - differences_N


MOST_CERTAIN = -1e-6
"""Mean log probability from which on an answer counts as certain: its odds would be infinite, and have no gradient."""


def orpo_losses(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """Compute the odds ratio's part of ORPO's loss (arXiv:2403.07691, equations 3, 4 and 7), P pairs.

    `chosen_P` and `rejected_P` are mean log probabilities of the answers' tokens. Returns losses_P in nats.
    """
    return -torch.nn.functional.logsigmoid(_log_odds(chosen_P) - _log_odds(rejected_P))


def _log_odds(logprobs_P: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of p = exp(logprobs_P)."""
    logprobs_P = logprobs_P.clamp(max=MOST_CERTAIN)
    return logprobs_P - torch.log(-torch.expm1(logprobs_P))


def bradley_terry_losses(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """Compute -log(sigmoid(how much higher the preferred answer's score is)), in nats, of P pairs."""
    return -torch.nn.functional.logsigmoid(chosen_P - rejected_P)


@dataclass(frozen=True, slots=True)
class Scores:
    """Token by token: log probability of the target and of the most likely token, in nats, and which token that is."""

    logprobs: list[float]
    best_logprobs: list[float]
    best_tokens: list[int]


def score_tokens(hidden_ND: Tensor, head: OutputLayer, targets_N: Tensor) -> Scores:
    """Score targets in float32, without gradient."""
    with torch.no_grad():
        logprobs_NV = head.logits(hidden_ND).log_softmax(dim=1)
        picked_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
        best_N, tokens_N = logprobs_NV.max(dim=1)
    return Scores(picked_N.tolist(), best_N.tolist(), tokens_N.tolist())


class _ChunkedLogprobs(torch.autograd.Function):
    """Log probabilities and their gradients in one pass: a chunk's logits live only while that chunk is worked on."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, _weight_VD: Tensor, head: OutputLayer, targets_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(hidden_ND) if wants_gradient else None
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        hits_N = torch.empty(len(targets_N), dtype=torch.bool, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            losses, hits_N[rows], gradient = _token_losses(hidden_ND[rows], head, targets_N[rows], wants_gradient)
            logprobs_N[rows] = -losses
            if gradient_ND is not None:
                gradient_ND[rows] = gradient
        _keep(ctx, gradient_ND, hidden_ND, head, targets_N, chunk)
        ctx.mark_non_differentiable(hits_N)
        return logprobs_N, hits_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        gradient_ND, *kept = ctx.saved_tensors
        gradient_VD = _weight_gradient(ctx, kept, -gradients[0]) if kept else None
        return -gradient_ND * gradients[0].to(gradient_ND.dtype)[:, None], gradient_VD, None, None, None


def _keep(
    ctx: Any, gradient_ND: Tensor | None, hidden_ND: Tensor, head: OutputLayer, targets_N: Tensor, chunk: int
) -> None:
    """Keep for the backward pass the gradient of the hidden states; where the weight is trained, what its needs."""
    is_trained = ctx.needs_input_grad[1]
    ctx.chunk = chunk
    ctx.head = head if is_trained else None
    ctx.save_for_backward(gradient_ND, *((hidden_ND, targets_N) if is_trained else ()))


def _token_losses(
    hidden_ND: Tensor, head: OutputLayer, targets_N: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses_N in nats, hits_N, and d losses_N / d hidden_ND (empty unless wanted), all of one chunk."""
    logits_NV = head.logits(hidden_ND)
    normaliser_N = logits_NV.logsumexp(dim=1)
    losses_N = normaliser_N - logits_NV.gather(1, targets_N[:, None])[:, 0]
    hits_N = logits_NV.argmax(dim=1) == targets_N
    if not wants_gradient:
        return losses_N, hits_N, hidden_ND.new_empty(0)
    gradient_NV = _product_gradient(logits_NV, head, normaliser_N, targets_N)
    return losses_N, hits_N, gradient_NV.to(head.weight_VD.dtype) @ head.weight_VD


def _product_gradient(logits_NV: Tensor, head: OutputLayer, normaliser_N: Tensor, targets_N: Tensor) -> Tensor:
    """Return d losses_N / d (h W'), (softmax - one_hot) * slopes, in place of the logits."""
    slopes = head.slopes(logits_NV)
    logits_NV.sub_(normaliser_N[:, None]).exp_()
    logits_NV[torch.arange(len(targets_N), device=logits_NV.device), targets_N] -= 1.0
    return logits_NV if isinstance(slopes, float) and slopes == 1.0 else logits_NV.mul_(slopes)


def _weight_gradient(ctx: Any, kept: Sequence[Tensor], upstream_N: Tensor) -> Tensor:
    """Return the gradient of sum(upstream_N * losses_N) in the output layer; its logits are computed once more."""
    hidden_ND, targets_N = kept
    head: OutputLayer = ctx.head
    gradient_VD = torch.zeros_like(head.weight_VD)
    for start in range(0, len(targets_N), ctx.chunk):
        rows = slice(start, start + ctx.chunk)
        logits_NV = head.logits(hidden_ND[rows])
        gradient_NV = _product_gradient(logits_NV, head, logits_NV.logsumexp(dim=1), targets_N[rows])
        gradient_NV.mul_(upstream_N[rows, None])
        gradient_VD.addmm_(gradient_NV.to(gradient_VD.dtype).T, hidden_ND[rows])
    return gradient_VD
