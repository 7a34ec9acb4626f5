"""What the fork server imports, and nobody else: see processes."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys

from shared.process import let_others_go_first

# A stop of the whole group or unit must not end the server, and with it trainings that are about to save. Blocked and
# not ignored: a process that is told to stop while it is being forked finds the signal waiting.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
let_others_go_first()
# Asked through the driver's library, the number of GPUs is known without starting CUDA, which does not survive a fork.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# peft would import it, and with it a compiler and, where there is a GPU, CUDA; quantised jobs start in a new process.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]

import transformers.models.auto.modeling_auto  # noqa: E402
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import services.trainer.data.loading  # noqa: E402
import services.trainer.data.table  # noqa: E402
import services.trainer.run_job  # noqa: E402, F401

# Nothing is left to be done at the server's end, and some library complains when it is taken apart then.
atexit.register(os._exit, 0)
gc.collect()
gc.freeze()  # the collector would write to pages that forked processes share
