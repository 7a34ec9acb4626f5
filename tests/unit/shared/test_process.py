"""Priorities of processes."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, threading
from shared.process import let_others_go_first
for _ in range(2):
    let_others_go_first()
found = []
thread = threading.Thread(target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
thread.start()
thread.join()
print(os.getpriority(os.PRIO_PROCESS, 0), *found)
"""


def test_computing_lets_others_go_first_once_and_in_its_threads() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["5", "5"]
