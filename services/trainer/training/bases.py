"""One base model in memory for several adapters that are trained in turns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from services.trainer.training.model import load_base


class LoadBase(Protocol):
    """How a job comes by its base, frozen: model.load_base, or a view of one that is loaded already."""

    def __call__(self, folder: Path, dtype: torch.dtype, *, quantize_on: torch.device | None = None) -> nn.Module: ...


class SharedBases:
    """Gives out models of their own over weights that are there once. Quantised ones are not shared."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, torch.dtype], nn.Module] = {}

    def __call__(self, folder: Path, dtype: torch.dtype, *, quantize_on: torch.device | None = None) -> nn.Module:
        if quantize_on is not None:
            return load_base(folder, dtype, quantize_on=quantize_on)
        if (folder, dtype) not in self._loaded:
            self._loaded[folder, dtype] = load_base(folder, dtype)
        return skeleton(self._loaded[folder, dtype])


def skeleton(model: nn.Module) -> nn.Module:
    """Copy a model's modules, but none of its parameters: adapters put into the copy leave the original as it is."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
