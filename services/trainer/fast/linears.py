"""Linear layers with LoRA that read the same input, as one product. Axes: N tokens, I inputs, O outputs, R ranks.

A model calls its siblings (q, k, v; gate, up) one after the other with the same tensor: the first call computes all of
them, the others find their result. Only the input and the low-rank products are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class Weight(Protocol):
    """Frozen weights of several layers over one another."""

    def dense(self) -> Tensor:
        """Return them as (O, I)."""
        ...


class DenseWeight:
    """Weights as they are; the layers get views of one tensor, so nothing is in memory twice."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        stacked = _stacked([layer.weight.data for layer in layers])
        if stacked is None:
            stacked = torch.cat([layer.weight.data for layer in layers])
            rows = torch.split(stacked, [layer.out_features for layer in layers])
            for layer, view in zip(layers, rows, strict=True):
                layer.weight.data = view
        self._weight_OI = stacked

    def dense(self) -> Tensor:
        return self._weight_OI


def _stacked(weights: Sequence[Tensor]) -> Tensor | None:
    """Return weights that lie behind one another in memory as one tensor; None if they do not."""
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        same_memory = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if weight.data_ptr() != end or not (weight.is_contiguous() and same_memory and weight.dtype == first.dtype):
            return None
        end += weight.nbytes
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), first.stride())


class QuantizedWeight:
    """Weights in 4 bits (bitsandbytes), made dense whenever they are needed."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._layers = layers
        self._dtype = dtype

    def dense(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weights: list[Any] = [layer.weight for layer in self._layers]
        dense = [dequantize_4bit(weight.data, weight.quant_state) for weight in weights]
        return torch.cat(dense).to(self._dtype) if len(dense) > 1 else dense[0].to(self._dtype)


class Siblings:
    """Layers with one input. Layers without an adapter take part with a rank of 0."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.layers = layers
        bases = [base_layer(layer) for layer in layers]
        quantized = any(hasattr(base.weight, "quant_state") for base in bases)
        self.weight: Weight = QuantizedWeight(bases, dtype) if quantized else DenseWeight(bases)
        self.widths = [base.out_features for base in bases]
        self.device = bases[0].weight.device
        self.bias_O = self._joint_bias(bases, dtype) if any(base.bias is not None for base in bases) else None
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def _joint_bias(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor:
        nothing = [torch.zeros(layer.out_features, device=self.device) for layer in layers]
        return torch.cat(
            [zero if layer.bias is None else layer.bias for layer, zero in zip(layers, nothing, strict=True)]
        ).to(dtype)

    def forget(self) -> None:
        """Let go of results that nobody asked for."""
        self._input, self._outputs = None, {}

    def output(self, index: int, inputs: Tensor) -> Tensor:
        """Return what layer `index` makes of the input; the results for the others wait for their calls."""
        if self._input is not inputs or index not in self._outputs:
            parts = torch.split(self.joint(inputs), self.widths, dim=-1)
            self._input, self._outputs = inputs, dict(enumerate(parts))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return output

    def joint(self, inputs: Tensor) -> Tensor:
        """Return all outputs side by side: (…, O)."""
        adapters: list[Tensor] = []
        scales: list[float] = []
        for layer in self.layers:
            down, up, scale = _adapter(layer, inputs)
            adapters += [down, up]
            scales.append(scale)
        flat_NI = inputs.reshape(-1, inputs.shape[-1])
        outputs_NO: Tensor = _Product.apply(flat_NI, self, scales, *adapters)  # type: ignore[no-untyped-call]
        return outputs_NO.view(*inputs.shape[:-1], -1)


def base_layer(layer: nn.Module) -> nn.Linear:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer  # type: ignore[return-value]


def is_simple(layer: nn.Module) -> bool:
    """Whether a layer is y = x W' + b, with or without + s x A' B': no dropout, nothing else that peft can do."""
    base = base_layer(layer)
    if not isinstance(base, nn.Linear) or base.weight.requires_grad or not _can_be_dense(base.weight):
        return False
    if not isinstance(layer, LoraLayer):
        return True
    plain = not any((layer.merged, layer.disable_adapters, layer.lora_bias.get("default"), layer.lora_variant))
    dropout = layer.lora_dropout["default"]
    return plain and list(layer.active_adapters) == ["default"] and isinstance(dropout, nn.Identity)


def _can_be_dense(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.bfloat16, torch.float16) or hasattr(weight, "quant_state")


def _adapter(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return A (R, I), B (O, R) and their scale."""
    if isinstance(layer, LoraLayer):
        return layer.lora_A["default"].weight, layer.lora_B["default"].weight, float(layer.scaling["default"])
    base = base_layer(layer)
    return like.new_empty(0, base.in_features), like.new_empty(base.out_features, 0), 0.0


class _Product(torch.autograd.Function):
    """x W' + b + s (x A') B' for stacked W, with A, B of each layer; the gradient of W is never computed."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, group: Siblings, scales: list[float], *adapters: Tensor) -> Tensor:
        downs = torch.cat([down.to(x_NI.dtype) for down in adapters[0::2]])
        ups = [up.to(x_NI.dtype) for up in adapters[1::2]]
        weight_OI = group.weight.dense()
        y_NO = x_NI @ weight_OI.T if group.bias_O is None else torch.addmm(group.bias_O, x_NI, weight_OI.T)
        low_NR = x_NI @ downs.T
        for part, low, up, scale in zip(*_by_layer(y_NO, low_NR, group, ups), ups, scales, strict=True):
            if up.shape[1]:
                part.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(x_NI, low_NR, downs, *ups)
        ctx.group, ctx.scales, ctx.dtypes = group, scales, [tensor.dtype for tensor in adapters]
        return y_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = gradients
        x_NI, low_NR, downs, *ups = ctx.saved_tensors
        dlow_NR = torch.empty_like(low_NR)
        dups: list[Tensor] = []
        parts, lows = _by_layer(dy_NO, low_NR, ctx.group, ups)
        dlows = torch.split(dlow_NR, [up.shape[1] for up in ups], dim=1)
        for part, low, dlow, up, scale in zip(parts, lows, dlows, ups, ctx.scales, strict=True):
            if up.shape[1]:
                dlow.copy_(part @ up).mul_(scale)
            dups.append((part.T @ low).mul_(scale))
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = dy_NO @ ctx.group.weight.dense()
            dx_NI.addmm_(dlow_NR, downs)
        ddowns = torch.split(dlow_NR.T @ x_NI, [up.shape[1] for up in ups])
        pairs = [gradient for pair in zip(ddowns, dups, strict=True) for gradient in pair]
        return dx_NI, None, None, *(g.to(dtype) for g, dtype in zip(pairs, ctx.dtypes, strict=True))


def _by_layer(
    y_NO: Tensor, low_NR: Tensor, group: Siblings, ups: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Cut outputs and low-rank products into views, one for each layer."""
    return torch.split(y_NO, group.widths, dim=1), torch.split(low_NR, [up.shape[1] for up in ups], dim=1)
