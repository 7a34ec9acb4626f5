"""Worker classes: vLLM's own, with the safe adapter manager and the calls that the agent makes into the engine."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.worker.gpu_worker import Worker

from services.inference.engine import merging  # noqa: F401 - registers how a merged model is loaded
from services.inference.engine.lora_manager import NoRoom, SafeLoRAManager


class ManagedWorker:
    """Mixed into a worker class; the `selftune_…` methods are reached by `AsyncLLM.collective_rpc`.

    They return plain dicts and never raise: an exception would be logged by the engine with a stack trace and reach the
    agent as text only.
    """

    model_runner: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches the whole process group; the launcher alone decides when the engine stops.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__init__(*args, **kwargs)

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)  # type: ignore[misc]
        manager = getattr(self.model_runner, "lora_manager", None)
        if manager is not None:  # a merged model takes no adapters
            manager.__class__ = SafeLoRAManager
            manager.init_safe()

    def selftune_load(self, name: str, int_id: int, path: str, evict: list[int]) -> dict[str, Any]:
        """Load one adapter. Returns `error` (empty when it worked), `retry`, `load_ms` and `resident`."""
        started = time.perf_counter()
        error, retry = "", False
        try:
            self._loras.load(LoRARequest(name, int_id, path), evict)
        except NoRoom as full:
            error, retry = str(full), True
        except Exception as problem:  # noqa: BLE001 - the reason goes to the agent, which acts on it
            error = str(problem).replace(path, "the adapter's folder") or type(problem).__name__
        load_ms = (time.perf_counter() - started) * 1000
        return {"error": error, "retry": retry, "load_ms": load_ms, "resident": self._loras.resident()}

    def selftune_install_probe(self, int_id: int) -> None:
        """Load a random adapter; the self-test looks whom it reaches."""
        self._loras.install_probe(int_id)

    def selftune_drop(self, int_ids: list[int]) -> dict[str, Any]:
        """Forget adapters; their slots are free at once."""
        self._loras.drop(int_ids)
        return {"resident": self._loras.resident()}

    def selftune_status(self) -> dict[str, Any]:
        """Say what is in memory, and which adapters' requests ran without their weights."""
        if getattr(self.model_runner, "lora_manager", None) is None:
            return {"resident": [], "lost": [], "wrapper": ""}
        wrappers = self._loras._adapter_manager.punica_wrapper_mapping.values()
        return {
            "resident": self._loras.resident(),
            "lost": [[int_id, reason] for int_id, reason in self._loras.lost.items()],
            "wrapper": ",".join(sorted({type(wrapper).__name__ for wrapper in wrappers})),
        }

    @property
    def _loras(self) -> SafeLoRAManager:
        manager: SafeLoRAManager = self.model_runner.lora_manager
        return manager


class ManagedGPUWorker(ManagedWorker, Worker):  # type: ignore[misc]  # vLLM is not typed here
    """On CUDA: vLLM's Triton kernels skip rows without an adapter, so only the manager is replaced."""
