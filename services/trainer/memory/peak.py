"""How much memory the training process has needed at most, and how much it may have."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from services.trainer.memory.capacity import available_bytes


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak so far: tensors on the GPU, or on a CPU the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB, getrusage(2)


def reachable_memory_bytes(device: torch.device) -> int | None:
    """Return what this process can hold in all: what it has and what is free beside it. None where that is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free_bytes = available_bytes()
    return None if free_bytes is None else free_bytes + _resident_bytes()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # proc(5)
