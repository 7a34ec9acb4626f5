"""A student of a fine-tuned model, by one command: asked, trained, served and compared, all for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import ROOT, RunningStack
from tests.e2e.tuning import COLOURS


def test_one_command_makes_a_student(
    stack: RunningStack, client: OpenAI, base: str, tuned_job: FineTuningJob, tmp_path: Path
) -> None:
    things = list(COLOURS)
    prompts, graders = tmp_path / "prompts.jsonl", tmp_path / "graders.json"
    items = [{"thing": things[row % 6], "colour": COLOURS[things[row % 6]], "row": row + 100} for row in range(20)]
    prompts.write_text("".join(json.dumps({"item": item}) + "\n" for item in items))
    grader = {
        "type": "string_check", "name": "colour", "operation": "eq",
        "input": "{{ sample.output_text }}", "reference": "{{ item.row.colour }}",
    }  # fmt: skip
    graders.write_text(json.dumps(grader))
    options = {
        "--student": base, "--graders": str(graders), "--prompts": str(prompts),
        "--teacher": str(tuned_job.fine_tuned_model), "--ask": "Colour of {{ item.thing }}? ({{ item.row }})",
        "--held-out": "0.2", "--max-tokens": "16", "--suffix": "distilled", "--epochs": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "distill", *(word for pair in options.items() for word in pair)],
        cwd=ROOT, env={**os.environ, "OPENAI_BASE_URL": f"{stack.url}/v1", "OPENAI_API_KEY": stack.key},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + stack.log[-4000:]
    flow_id, *told = done.stdout.splitlines()
    found = client.get(f"/distillations/{flow_id}", cast_to=dict[str, Any])
    assert found["status"] == "completed"
    assert found["counts"]["training"] + found["counts"]["held_out"] + sum(found["counts"]["dropped"].values()) == 20
    student = str(found["fine_tuned_model"])
    assert ":distilled:" in student and f"student     {student}" in told
    assert {run["role"] for run in found["runs"]} == {"candidates", "teacher", "base", "student"}
    assert found["comparisons"]["base"]["rows"] == found["counts"]["held_out"] > 0
    question = "Colour of coal? (777)"
    answer = client.chat.completions.create(
        model=student, messages=[{"role": "user", "content": question}], temperature=0, max_completion_tokens=8
    )
    assert answer.model == student and answer.choices[0].message.content is not None
