"""How processes of ours live: not longer than their parent, and without crowding out the others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)
_COMPUTING = 5
"""Niceness of what keeps every core busy for as long as it runs: inference and training on a CPU, both the same."""


def let_others_go_first() -> None:
    """Lower the priority of this thread and of those that it starts from now on; twice is the same as once.

    Threads of OpenMP hold their cores even while they wait. Each request of a client had to wait for one of them, and
    all of them for it: docs/performance.md, the gateway.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) < _COMPUTING:
        os.setpriority(os.PRIO_PROCESS, 0, _COMPUTING)


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
