"""The dependency rules of pyproject.toml hold, and the API loads no model library."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_import_rules_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_api_loads_no_model_library() -> None:
    script = (
        "import sys, services.api.__main__\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'vllm', 'numpy') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_one_module_alone_knows_opentelemetry() -> None:
    sources = [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    knowing = [
        path for path in sources if re.search(r"^\s*(?:from|import) opentelemetry", path.read_text(), re.MULTILINE)
    ]
    assert [path.relative_to(ROOT).as_posix() for path in knowing] == ["shared/tracing.py"]


def test_without_a_collector_nothing_of_opentelemetry_is_loaded() -> None:
    script = (
        "import sys, services.api.__main__, services.trainer.__main__\n"
        "from shared import tracing\n"
        "tracing.start('api')\n"
        "with tracing.span('x', parent='') as span: span.note(a=1)\n"
        "tracing.flush()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')], tracing.traceparent() == '')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert loaded.stdout.strip() == "[] True"
