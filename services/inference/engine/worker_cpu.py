"""The worker for CPUs; apart from worker.py because vLLM's CPU module loads in CPU builds only."""

from __future__ import annotations

import signal
import threading
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

from services.inference.engine.seeds import sparing_unread
from services.inference.engine.worker import ManagedWorker
from shared.process import let_others_go_first


class ManagedCPUWorker(ManagedWorker, CPUWorker):  # type: ignore[misc]  # vLLM is not typed here
    """Also replaces the LoRA products, which are wrong in mixed batches and slow (see punica_cpu.py)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        let_others_go_first()
        if threading.current_thread() is threading.main_thread():
            # A stop of the whole group or unit reaches the engine, too, while its answers are still going out; the
            # launcher kills it when they are.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().__init__(*args, **kwargs)

    def load_model(self, **kwargs: Any) -> None:
        # The platform names the class as text; the selector resolves it while the model is wrapped.
        wrapper = "services.inference.engine.punica_cpu.GroupedPunicaWrapperCPU"
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: wrapper)
        super().load_model(**kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        with sparing_unread(self.model_runner):
            return super().sample_tokens(grammar_output)
