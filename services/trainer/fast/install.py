"""Put the fast parts into a model wherever it has the parts they stand for; each is compared with what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from services.trainer.fast.attention import NAME
from services.trainer.fast.elementwise import rms_norm, swiglu
from services.trainer.fast.linears import Siblings, base_layer, is_simple

_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))
_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""How far a replaced part may be from the original, relative to the largest value."""

Forward = Callable[..., Any]


class Installation:
    """The replaced forwards of one model, and how to put them back."""

    def __init__(self, model: nn.Module, config: Any, dtype: torch.dtype) -> None:
        self._config = config
        self._attention = config._attn_implementation
        self._dtype = dtype
        self._replaced: list[tuple[nn.Module, Forward | None]] = []
        self._groups: dict[nn.Module, Siblings] = {}
        self._model = model

    def install(self) -> None:
        """Replace what can be."""
        self._config._attn_implementation = NAME
        for module in list(self._model.modules()):
            self._install_siblings(module)
            self._install_gated(module)
            self._install_norm(module)

    def undo(self) -> None:
        """Let the model compute as it did before."""
        self._config._attn_implementation = self._attention
        for group in self._groups.values():
            group.forget()
        for module, before in reversed(self._replaced):
            del module.forward
            if before is not None:
                module.forward = before

    def _replace(self, module: nn.Module, forward: Forward) -> None:
        self._replaced.append((module, module.__dict__.get("forward")))
        module.forward = forward

    def _install_siblings(self, parent: nn.Module) -> None:
        """Compute linear layers that read the same input as one product, each with its adapter."""
        for names in _SIBLINGS:
            layers = [layer for name in names if isinstance(layer := getattr(parent, name, None), nn.Module)]
            if len(layers) < len(names) or not all(map(is_simple, layers)) or not _read_alike(layers):
                continue
            group = Siblings(layers, self._dtype)
            for index, layer in enumerate(layers):
                self._groups[layer] = group
                self._replace(layer, partial(group.output, index))

    def _install_gated(self, parent: nn.Module) -> None:
        """Replace down(silu(gate(x)) * up(x)), if that is what the module computes."""
        gate, down = getattr(parent, "gate_proj", None), getattr(parent, "down_proj", None)
        if gate not in self._groups or down is None:
            return
        group = self._groups[gate]

        def forward(inputs: Tensor) -> Any:
            return down(swiglu(group.joint(inputs)))

        if self._agree(parent.forward, forward, base_layer(group.layers[0]).in_features, group.device):
            self._replace(parent, forward)

    def _install_norm(self, module: nn.Module) -> None:
        """Replace a frozen RMS norm, scaled by its weight or by 1 + weight, whichever the module turns out to do."""
        weight = getattr(module, "weight", None)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if (
            not type(module).__name__.endswith("RMSNorm")
            or not isinstance(weight, Tensor)
            or not isinstance(eps, float)
        ):
            return
        if weight.requires_grad:
            return
        for scale_D in (weight.detach(), 1.0 + weight.detach().float()):
            replacement = partial(_normed, scale_D=scale_D, eps=eps)
            if self._agree(module.forward, replacement, weight.shape[0], weight.device):
                self._replace(module, replacement)
                return

    def _agree(self, original: Forward, replacement: Forward, width: int, device: torch.device) -> bool:
        """Compare two forwards on a few random rows."""
        inputs = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device, self._dtype)
        with torch.no_grad():
            try:
                expected, found = original(inputs), replacement(inputs)
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                return False  # it wants something else than rows
        return bool((expected - found).abs().max() <= _CLOSE[self._dtype] * expected.abs().max())


def _read_alike(layers: Sequence[nn.Module]) -> bool:
    return len({base_layer(layer).in_features for layer in layers}) == 1


def _normed(x_ND: Tensor, *, scale_D: Tensor, eps: float) -> Tensor:
    return rms_norm(x_ND, scale_D, eps)
