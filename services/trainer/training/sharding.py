"""Several processes that train every weight of one model: each keeps a share of the layers (FSDP2).

Weights, gradients and AdamW's moments take sixteen bytes a parameter. Each layer's are divided among the processes: a
layer is put together when it computes, forward and backward, and its gradient is summed into the shares (Zhao et al.
2023, arXiv:2304.11277; torch's fully_shard). Embeddings, output layer and the last norm stay whole in each process,
since the loss reads them outside of any layer.

All processes have to run every layer equally often: one that has no rows left lets a row of the others go through, and
gives it no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter

from services.trainer.failures import TrainingFailed
from services.trainer.training.model import TrainableModel
from services.trainer.training.parallel import Joined

T = TypeVar("T")


class Sharded(Joined):
    """One of several processes with shares of the layers.

    Where another one has ended, calls that gather, forward and backward passes among them, raise torch's own errors:
    child.py tells them from others.
    """

    @property
    def divides(self) -> bool:
        return True

    def level(self, pieces: Sequence[T]) -> Iterator[T | None]:
        most = int(self._greatest(len(pieces)))
        for turn in range(most):
            yield pieces[turn] if turn < len(pieces) else None

    def divide(self, model: TrainableModel) -> None:
        backbone: Any = model.backbone
        mesh = init_device_mesh(self._device.type, (self.size,))
        layers: nn.ModuleList | None = getattr(backbone, "layers", None)
        if layers is None:
            raise TrainingFailed(
                "The base model names its layers in another way, so its weights cannot be divided among processes; "
                "train an adapter, or have one process train it.",
                code="unsupported_base_model",
            )
        inside = {parameter for layer in layers for parameter in layer.parameters()}
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(backbone, mesh=mesh, ignored_params=set(backbone.parameters()) - inside)
        for module in backbone.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: each process has its part of the batch's mean
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def sum_gradients(self, parameters: Sequence[Parameter]) -> None:
        """Sum those of what is whole in each process; the layers' were summed as they were computed."""
        super().sum_gradients([parameter for parameter in parameters if not isinstance(parameter, DTensor)])

    def clip_gradients(self, parameters: Sequence[Parameter], max_norm: float) -> float:
        shares = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        rest = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        norm = math.hypot(*(self._norm(some) for some in (shares, rest) if some))
        scale = min(1.0, max_norm / (norm + 1e-6))  # as torch's clip_grad_norm_ has it
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return norm

    def whole(self, tensor: Tensor) -> Tensor:
        gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return gathered.cpu().contiguous() if self.leads else tensor.new_empty(0)

    def part(self, tensor: Tensor, *, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        # Every process has read the same file: none has to send.
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

    def _norm(self, parameters: Sequence[Parameter]) -> float:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _greatest(self, number: int) -> float:
        found = torch.tensor(float(number), dtype=torch.float64, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)
