"""Processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(signal_number: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """Ask the kernel to send `signal_number` to this process when its parent ends, however that happens.

    Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere it does nothing. Pass `parent_pid`, the parent as it was when the
    child was started, to close the gap between fork and this call: if it is gone already, the process exits.
    The signal is tied to the parent's *thread* that forked, so start children from a thread that lives on.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit(1)
