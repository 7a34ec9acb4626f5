"""How many GPUs there are, for those who must not load a model library, or must not touch a GPU before they fork."""

from __future__ import annotations

import os
import re
from pathlib import Path

_DEVICES = Path("/dev")
_DEVICE = re.compile(r"nvidia\d+")


def gpu_count() -> int:
    """Count the NVIDIA GPUs that a process of ours would see: all, or those that CUDA_VISIBLE_DEVICES names."""
    present = sum(1 for path in _DEVICES.glob("nvidia*") if _DEVICE.fullmatch(path.name))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(present, len(named))
