"""What a trainer's machine offers a training process: memory, a GPU, numbers it is fast at. No torch."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from services.trainer.launch.gpus import gpu_count
from shared.cpu import cpu_flags

RESERVE_BYTES = 500_000_000
"""Left to everything else on the machine."""
_ASK_S = 20.0
_CGROUP = Path("/sys/fs/cgroup")
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")


def usable_memory_bytes(said: int = 0) -> int | None:
    """Return what a job may need here: what the operator says, else what a GPU or the machine has left.

    The processes of a job share the machine, while each has a GPU of its own. Blocks for a moment. None where it cannot
    be told.
    """
    if said:
        return said
    if trains_on_gpu():
        return _gpu_memory_bytes()
    available = available_bytes()
    return None if available is None else max(0, available - RESERVE_BYTES)


def available_bytes() -> int | None:
    """Return what new processes can take without swapping: the machine's, or the container's if that is less."""
    found = [size for size in (_machine_available(), _container_available()) if size is not None]
    return min(found, default=None)


def _machine_available() -> int | None:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _container_available() -> int | None:
    """Read the limit of a control group, version 2; file cache counts as free, as it does for the machine."""
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" is no number
        used = int((_CGROUP / "memory.current").read_text())
        sizes = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + sum(int(sizes.get(name, 0)) for name in _RECLAIMABLE)
    return None


def trains_on_gpu() -> bool:
    """Whether a training process would: there is a GPU that it may see, and a torch that could use it."""
    with suppress(PackageNotFoundError):
        return gpu_count() > 0 and not version("torch").endswith("+cpu")
    return False


def _gpu_memory_bytes() -> int | None:
    """Return the memory of the first GPU that may be seen; None where the driver does not tell it."""
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        return _ask_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    return None


@cache  # of answers: an error is asked again
def _ask_gpu(gpu: str) -> int:
    asked = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(asked, capture_output=True, timeout=_ASK_S, check=True).stdout
    return int(answer.split()[0]) << 20


@cache
def prefers_bfloat16() -> bool:
    """Whether model.choose_dtype would take it of itself: on GPUs, and on CPUs with AMX."""
    if trains_on_gpu():
        return True
    return "amx_tile" in cpu_flags()
