"""What the fork server imports, and nobody else: see processes."""

from __future__ import annotations

import atexit
import gc
import os
import signal

from services.trainer.launch.processes import ENVIRONMENT
from services.trainer.training.child import forget_bitsandbytes
from shared.process import let_others_go_first

# A stop of the whole group or unit must not end the server, and with it trainings that are about to save. Blocked and
# not ignored: a process that is told to stop while it is being forked finds the signal waiting.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
let_others_go_first()
os.environ.update(ENVIRONMENT)
forget_bitsandbytes()  # where there is a GPU it would start CUDA; quantised jobs start in a new process

import transformers.models.auto.modeling_auto  # noqa: E402
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import services.trainer.data.loading  # noqa: E402
import services.trainer.data.table  # noqa: E402
import services.trainer.training.run_job  # noqa: E402, F401

# Nothing is left to be done at the server's end, and some library complains when it is taken apart then.
atexit.register(os._exit, 0)
gc.collect()
gc.freeze()  # the collector would write to pages that forked processes share
