"""The README's own program, on the real stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.running_stack import ROOT, RunningStack
from tests.e2e.tuning import colour_file


def test_readme_program_prints_an_answer(stack: RunningStack, tmp_path: Path) -> None:
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program is not None
    colour_file(tmp_path, "train.jsonl", 10)
    done = subprocess.run(
        [sys.executable, "-c", program.group(1)],
        cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "OPENAI_BASE_URL": f"{stack.url}/v1", "OPENAI_API_KEY": stack.key},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "blue" in done.stdout
