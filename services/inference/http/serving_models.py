"""vLLM's table of models, answered from the lease that the request at hand holds.

Admission (admission.py) takes a lease on an adapter before vLLM sees the request. A table shared by all requests could
change between admission and look-up, when a version is replaced; the lease cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ModelList
from vllm.lora.request import LoRARequest

from services.inference.adapters.leases import Lease

current_lease: ContextVar[Lease | None] = ContextVar("current_lease", default=None)
"""The lease of the request that this task serves; None for the base model."""


class LeasedRequests(MutableMapping[str, LoRARequest]):
    """Looks like vLLM's dict of adapters, and holds at most one: the current request's."""

    def __getitem__(self, name: str) -> LoRARequest:
        lease = current_lease.get()
        if lease is None or lease.name != name:
            raise KeyError(name)
        return LoRARequest(lease.engine_name, lease.int_id, lease.path)

    def __iter__(self) -> Iterator[str]:
        lease = current_lease.get()
        return iter(() if lease is None else (lease.name,))

    def __len__(self) -> int:
        return 0 if current_lease.get() is None else 1

    def __setitem__(self, name: str, request: LoRARequest) -> None:
        raise TypeError("adapters come and go through the registry")

    def __delitem__(self, name: str) -> None:
        raise TypeError("adapters come and go through the registry")


def public_name(lora_request: LoRARequest) -> str:
    """Return a model's name, of which the engine knows one for each version."""
    return str(lora_request.lora_name).rpartition("@v")[0]


class ManagedServingModels(OpenAIServingModels):  # type: ignore[misc]  # vLLM is not typed here
    """Answers with public names; adapters are listed by the gateway, not here."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.lora_requests = LeasedRequests()

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """Return the name that the client asked for, without the version that keeps engine names apart."""
        if lora_request is None:
            return str(super().model_name())
        return public_name(lora_request)

    async def show_available_models(self) -> ModelList:
        return await self.registry.show_available_models()
