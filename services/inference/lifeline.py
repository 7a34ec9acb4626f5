"""Processes that the launcher starts, and those that they start, end with it, however it ends.

multiprocessing starts a child by running the parent's main module again; for `python -m package` it leaves that out.
`install` names child_guard in its place, which runs `enter`: the engine imports for many seconds before any other code
of ours would run.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from shared.process import die_with_parent

PARENT_PID = "SELFTUNE_INFERENCEPARENT_PID"


def install() -> None:
    """Guard the children of this process and theirs (one per GPU); call it in the launcher, before it starts any."""
    os.environ[PARENT_PID] = str(os.getpid())
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("services.inference.child_guard")


def enter() -> None:
    """End with the process that started this one, and have those started from here end with this one."""
    die_with_parent(parent_pid=int(os.environ[PARENT_PID]))
    os.environ[PARENT_PID] = str(os.getpid())
