"""What a trainer's machine offers a training process: memory, a GPU, numbers it is fast at. No torch."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESERVE_BYTES = 500_000_000
"""Left to everything else on the machine."""
_ASK_S = 20.0
_CGROUP = Path("/sys/fs/cgroup")


def usable_memory_bytes(said: int = 0) -> int | None:
    """Return what a training process may need here: what the operator says, else what the GPU or the machine has left.

    Blocks for a moment. None where neither can be told.
    """
    if said:
        return said
    gpu = gpu_memory_bytes()
    if gpu is not None:
        return gpu
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
        cached = [
            line for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
        ]
        return limit - used + sum(int(line.split()[1]) for line in cached)
    return None


@cache
def gpu_memory_bytes() -> int | None:
    """Return the first GPU's memory; None without one, or where the installed torch could not use it."""
    program = shutil.which("nvidia-smi")
    with suppress(PackageNotFoundError):
        if program is None or version("torch").endswith("+cpu"):
            return None
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
            answer = subprocess.run(asked, capture_output=True, timeout=_ASK_S, check=True).stdout
            return int(answer.split()[0]) << 20
    return None


@cache
def prefers_bfloat16() -> bool:
    """Whether model.choose_dtype would take it of itself: on GPUs, and on CPUs with AMX."""
    if gpu_memory_bytes() is not None:
        return True
    with suppress(OSError):
        return " amx_tile " in Path("/proc/cpuinfo").read_text()
    return False
