"""NEFTune: uniform noise on the embeddings while training (Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def add_noise(backbone: nn.Module, embeddings: nn.Module, alpha: float) -> None:
    """From now on, in training mode, put noise of ±alpha / sqrt(tokens x hidden size) on what `embeddings` gives.

    The tokens are those of a row. Rows laid end to end are told apart by their position ids, which start anew at 0.
    The noise comes from torch's generator, so that a resumed run draws the same. Rows must be read apart: one that took
    its beginning from another would share its noise.
    """
    positions: list[Tensor | None] = [None]

    def remember(_module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        positions[0] = options.get("position_ids")

    def disturb(module: nn.Module, _inputs: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor | None:
        if not module.training:
            return None
        noise_BTD = torch.zeros_like(embedded_BTD).uniform_(-1, 1)
        return embedded_BTD + noise_BTD * _magnitude(positions[0], embedded_BTD, alpha)

    backbone.register_forward_pre_hook(remember, with_kwargs=True)
    embeddings.register_forward_hook(disturb)


def _magnitude(positions_BT: Tensor | None, embedded_BTD: Tensor, alpha: float) -> Tensor | float:
    """Return the largest noise: one number for rows of one width, else one a token, as B, T, 1."""
    if positions_BT is None:
        return alpha / math.sqrt(embedded_BTD.shape[1] * embedded_BTD.shape[2])
    begins_BT = positions_BT == 0
    row_BT = begins_BT.flatten().cumsum(0).reshape(positions_BT.shape)
    lengths = torch.bincount(row_BT.flatten())
    return (alpha / (lengths[row_BT] * embedded_BTD.shape[2]).sqrt())[..., None].to(embedded_BTD.dtype)
