"""Normalisation and gated activation with fewer trips through memory than operation by operation, forward and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x_ND: Tensor, scale_D: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over D and multiply by a frozen scale (arXiv:1910.07467), in float32."""
    normed: Tensor = _RmsNorm.apply(x_ND, scale_D, eps)  # type: ignore[no-untyped-call]
    return normed


def swiglu(gate_up_NO: Tensor) -> Tensor:
    """Return silu(left half) * right half (arXiv:2002.05202)."""
    gated: Tensor = _SwiGlu.apply(gate_up_NO)  # type: ignore[no-untyped-call]
    return gated


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, scale_D: Tensor, eps: float) -> Tensor:
        norms_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_N1 = norms_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, scale_D, inverse_N1)
        normed: Tensor = (x_ND * inverse_N1).mul_(scale_D).to(x_ND.dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        x_ND, scale_D, inverse_N1 = ctx.saved_tensors
        scaled_ND = gradients[0] * scale_D
        along_N1 = torch.linalg.vecdot(scaled_ND.float(), x_ND.float())[..., None]
        along_N1.mul_(inverse_N1.pow(3)).div_(x_ND.shape[-1])
        return scaled_ND.mul_(inverse_N1).addcmul_(x_ND, along_N1.to(x_ND.dtype), value=-1).to(x_ND.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_NO: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_NO)
        gate, up = gate_up_NO.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_up_NO,) = ctx.saved_tensors
        gate, up = gate_up_NO.chunk(2, dim=-1)
        result = torch.empty_like(gate_up_NO)
        dgate, dup = result.chunk(2, dim=-1)
        torch.mul(gradients[0], torch.nn.functional.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(gradients[0] * up, gate))
        return result
