"""The adapters inside an engine: checked before they replace anything, and never read from disk while tokens are made.

vLLM's manager loads an adapter that fell out of its cache in the middle of a step, where any error ends the engine.
Here loading happens in `load` only, at the agent's command, and a step that meets an adapter it lacks goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

logger = init_logger(__name__)

Shapes = dict[str, tuple[int, int]]
"""Module name -> (input size, output size) of what an adapter may change."""


class NoRoom(RuntimeError):
    """Every place for an adapter is taken; the agent has to name one that may go."""


class SafeLoRAManager(LRUCacheWorkerLoRAManager):  # type: ignore[misc]  # vLLM is not typed here
    """Replaces the class of vLLM's manager after the model is loaded; call `init_safe` then."""

    lost: dict[int, str]
    """Adapters whose requests ran without their weights, and why; their answers must be thrown away."""
    shapes: Shapes

    def init_safe(self) -> None:
        """Raises ValueError when a layer is wrapped for which slots are not known to be handled right."""
        self.lost = {}
        self.shapes = adaptable_shapes(self._adapter_manager)

    def load(self, request: LoRARequest, evict: Iterable[int] = ()) -> None:
        """Bring an adapter into memory and into a slot; a loaded one is only marked as used.

        Nothing changes unless the files are whole and fit the model: `evict` goes after the checks. Raises ValueError
        for an adapter that does not fit, NoRoom when there is no place left, OSError and others for unreadable files.
        """
        with gpu_sync_allowed():
            manager, adapter_id = self._adapter_manager, request.lora_int_id
            if adapter_id in manager._registered_adapters and adapter_id not in self.lost:
                manager.get_adapter(adapter_id)
                manager.activate_adapter(adapter_id)
                return
            lora = _detached(self._load_adapter(request))
            check_fit(lora, self.shapes, self.lora_config.max_lora_rank)
            self.drop([*evict, adapter_id])
            if len(manager) >= manager.capacity:
                raise NoRoom(f"all {manager.capacity} places for adapters are in use")
            self._install(lora)

    def install_probe(self, adapter_id: int) -> None:
        """Load a random adapter of rank 1 on every layer, strong enough to change every answer."""
        weights = {
            name: _random_weights(name, sizes, self.lora_config.lora_dtype) for name, sizes in self.shapes.items()
        }
        self._install(LoRAModel(adapter_id, 1, weights))

    def drop(self, adapter_ids: Iterable[int]) -> None:
        """Forget adapters and free their slots; unknown ids are skipped."""
        for adapter_id in adapter_ids:
            self._adapter_manager.remove_adapter(adapter_id)
            self.lost.pop(adapter_id, None)

    def resident(self) -> list[int]:
        """List the adapters in memory, least recently used first."""
        return [i for i in self._adapter_manager._registered_adapters.order if i not in self.lost]

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        self.load(lora_request)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        known = adapter_id in self._adapter_manager._registered_adapters
        self.drop([adapter_id])
        return known

    def remove_all_adapters(self) -> None:
        super().remove_all_adapters()
        self.lost.clear()

    def _install(self, lora: LoRAModel) -> None:
        # Activation marks the slot as taken before it copies: on an error everything has to be undone, or the next
        # request would be served with half of the weights.
        manager = self._adapter_manager
        try:
            manager.add_adapter(lora)
            manager.activate_adapter(lora.id)
        except BaseException:
            manager.remove_adapter(lora.id)
            raise

    def _apply_adapters(self, lora_requests: set[LoRARequest]) -> None:
        """Put the batch's adapters into slots. Runs inside a step: it reads no file and raises nothing."""
        manager = self._adapter_manager
        wanted = {request.lora_int_id for request in lora_requests if request}
        # Adapters that have a slot are touched first, so that a newcomer never takes one of theirs.
        for adapter_id in sorted(wanted, key=lambda i: i not in manager._active_adapters):
            if manager.get_adapter(adapter_id) is None:
                self._serve_without(adapter_id, "it was not in memory when its request ran")
                continue
            try:
                manager.activate_adapter(adapter_id)
            except Exception as error:  # an escaping error would end the engine for everybody
                logger.exception("adapter %d could not be activated", adapter_id)
                self._serve_without(adapter_id, f"it could not be activated: {error}")

    def _serve_without(self, adapter_id: int, reason: str) -> None:
        """Take a slot with no weights in it, so that the step can finish; the agent ends the requests it served."""
        manager = self._adapter_manager
        manager.remove_adapter(adapter_id)
        manager._registered_adapters[adapter_id] = LoRAModel(adapter_id, 1, {})
        manager.activate_adapter(adapter_id)
        self.lost[adapter_id] = reason
        logger.error("adapter %d is lost: %s", adapter_id, reason)


def adaptable_shapes(manager: Any) -> Shapes:
    """Read the sizes of every wrapped layer; layers that vLLM fuses (q, k, v) are listed one by one."""
    shapes: Shapes = {}
    for name, module in manager.modules.items():
        layer = module.base_layer
        if not hasattr(layer, "input_size"):
            raise ValueError(f"{name} is wrapped for LoRA but is not a linear layer")
        if children := manager.packed_modules.get(name):
            pairs = zip(children, layer.output_sizes, strict=True)
            shapes.update({child: (layer.input_size, size) for child, size in pairs})
        else:
            shapes[name] = (layer.input_size, layer.output_size)
    return shapes


def check_fit(lora: LoRAModel, shapes: Shapes, max_rank: int) -> None:
    """Raise ValueError unless every weight belongs to a layer of this model, has its exact shape and is finite."""
    if not lora.loras:
        raise ValueError("the adapter holds no weights")
    for name, weights in lora.loras.items():
        if name not in shapes:
            raise ValueError(f"the adapter changes {name}, which this model does not have or does not adapt")
        if weights.lora_a is None or weights.lora_b is None:
            raise ValueError(f"{name} has only one of its two matrices")
        _check_matrices(name, weights.lora_a, weights.lora_b, shapes[name], max_rank)
        if not torch.isfinite(weights.lora_b.abs().max() * weights.scaling):  # in a slot it lies with its scale in it
            raise ValueError(f"{name} holds values that are not finite once they are scaled by {weights.scaling:g}")


def _check_matrices(
    name: str, lora_a: torch.Tensor, lora_b: torch.Tensor, sizes: tuple[int, int], max_rank: int
) -> None:
    inputs, outputs = sizes
    rank = lora_a.shape[0]
    if tuple(lora_a.shape) != (rank, inputs) or tuple(lora_b.shape) != (outputs, rank):
        raise ValueError(
            f"{name}: matrices of {tuple(lora_a.shape)} and {tuple(lora_b.shape)} do not fit a layer of "
            f"{inputs} inputs and {outputs} outputs"
        )
    if rank > max_rank:
        raise ValueError(f"{name} has rank {rank}; this server takes up to {max_rank}")
    if not (torch.isfinite(lora_a).all() and torch.isfinite(lora_b).all()):
        raise ValueError(f"{name} holds values that are not finite")


def _random_weights(name: str, sizes: tuple[int, int], dtype: torch.dtype) -> LoRALayerWeights:
    inputs, outputs = sizes
    random = torch.Generator().manual_seed(0)
    lora_a = torch.randn(1, inputs, generator=random, dtype=torch.float32) / inputs**0.5
    lora_b = torch.randn(outputs, 1, generator=random, dtype=torch.float32)
    return LoRALayerWeights(name, 1, 1, lora_a.to(dtype), lora_b.to(dtype))


def _detached(lora: LoRAModel) -> LoRAModel:
    """Copy the weights out of the mapped file: reading a page later would mean disk, or a crash if it was cut short."""
    for weights in lora.loras.values():
        if weights.lora_a is not None:
            weights.lora_a = weights.lora_a.clone()
        if weights.lora_b is not None:
            weights.lora_b = weights.lora_b.clone()
    return lora
