"""How vLLM loads a base with an adapter in it: every weight becomes W + s·B·A on its way from the file to the model.

So it is before vLLM fuses, shards, repacks or quantises weights, whatever the device, and afterwards the engine runs as
for any model. The sum is in float32, rounded once to the type that the file has. Axes: O outputs, I inputs, R ranks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from services.inference.engine.arguments import ADAPTER_OPTION, MERGED_FORMAT
from shared.adapter_form import read_form
from shared.adapters import CONFIG_NAME, PREFIX, WEIGHTS_NAME, tensor_module

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


@register_model_loader(MERGED_FORMAT)
class MergedModelLoader(DefaultModelLoader):  # type: ignore[misc]  # vLLM is not typed here
    """vLLM's own loader of safetensors, with an adapter added to what it reads."""

    def __init__(self, load_config: Any) -> None:
        options = dict(load_config.model_loader_extra_config)
        self._adapter = Path(options.pop(ADAPTER_OPTION))
        super().__init__(replace(load_config, load_format="safetensors", model_loader_extra_config=options))

    def get_all_weights(self, model_config: Any, model: Any) -> Generator[tuple[str, Tensor], None, None]:
        yield from with_adapter(super().get_all_weights(model_config, model), self._adapter)


def with_adapter(weights: Iterable[tuple[str, Tensor]], folder: Path) -> Generator[tuple[str, Tensor], None, None]:
    """Add an adapter to a base's weights, by their names in its files.

    Raises ValueError when a weight is missing, of another shape, quantised, or no longer finite, and AdapterRejected.
    """
    form = read_form((folder / CONFIG_NAME).read_bytes())
    with safe_open(folder / WEIGHTS_NAME, framework="pt") as adapter:
        missing = {tensor_module(name)[0] for name in adapter.keys()}  # noqa: SIM118 - it is no dict
        for name, weight_OI in weights:
            module = name.removesuffix(".weight")
            if module == name or module not in missing:
                yield name, weight_OI
                continue
            missing.remove(module)
            down_RI = adapter.get_tensor(f"{PREFIX}{module}.lora_A.weight").float()
            up_OR = adapter.get_tensor(f"{PREFIX}{module}.lora_B.weight").float()
            yield name, _sum(name, weight_OI, (up_OR @ down_RI).mul_(form.scale_of(module)))
    if missing:
        raise ValueError(f"the base's files have no plain weight of {min(missing)} to merge the adapter into")


def _sum(name: str, weight_OI: Tensor, change_OI: Tensor) -> Tensor:
    if weight_OI.dtype not in _FLOATS:
        raise ValueError(f"{name} is stored as {weight_OI.dtype}, where the adapter's changes would be rounded away")
    if weight_OI.shape != change_OI.shape:
        raise ValueError(f"{name} has shape {tuple(weight_OI.shape)}, the adapter's {tuple(change_OI.shape)}")
    merged_OI = (change_OI.to(weight_OI.device) + weight_OI.float()).to(weight_OI.dtype)
    if not torch.isfinite(merged_OI).all():
        raise ValueError(f"{name} is not finite any more with the adapter in it")
    return merged_OI
