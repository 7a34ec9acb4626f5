"""vLLM's own OpenAI server: the same wheel, the same arguments, its own endpoints for adapters.

It gets the environment that ours gives its engine (one process for engine and worker, a thread for each core);
`DefaultStock` leaves both to vLLM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from bench.serving.adapters import Adapter
from bench.serving.server import Server
from services.inference.engine import arguments as engine_args
from services.trainer.base.description import describe_base
from shared.settings import Settings

_MODULE = "vllm.entrypoints.openai.api_server"
_OURS_ALONE = ("--worker-cls", "--scheduling-policy")
_LORA = ("--enable-lora", "--max-loras", "--max-cpu-loras", "--max-lora-rank", "--lora-target-modules")


class Stock(Server):
    """With LoRA, and adapters loaded and unloaded while it runs."""

    name = "stock"
    left_out: Sequence[str] = _OURS_ALONE

    def __init__(self, folder: Path, base: Path, settings: Settings) -> None:
        """`settings` are those of the server that it is compared with."""
        super().__init__(folder, settings.public_base_id)
        self._settings = replace(settings, inference_port=self.port)
        self._base = describe_base(base, self.base_id)

    def command(self) -> Sequence[str]:
        arguments = engine_args.arguments(self._settings, self._base, on_cpu=engine_args.is_cpu_build())
        return [sys.executable, "-m", _MODULE, *_without(arguments, self.left_out)]

    def environment(self) -> Mapping[str, str]:
        environment = dict(os.environ)
        engine_args.prepare_environment(self._settings, environment)
        return {**environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}

    async def publish(self, model: str, adapter: Adapter) -> None:
        body = {"lora_name": model, "lora_path": str(adapter.folder)}
        (await self._http.post("/v1/load_lora_adapter", json=body)).raise_for_status()

    async def retire(self, model: str) -> None:
        (await self._http.post("/v1/unload_lora_adapter", json={"lora_name": model})).raise_for_status()


class PlainStock(Stock):
    """Without LoRA."""

    name = "stock without LoRA"
    left_out = (*_OURS_ALONE, *_LORA)


class DefaultStock(Stock):
    """Processes and threads as vLLM chooses them."""

    name = "stock, processes and threads of its own"

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def _without(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Leave out options and the values that follow them."""
    kept, dropping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            dropping = argument in options
        if not dropping:
            kept.append(argument)
    return kept
