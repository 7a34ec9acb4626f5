"""A model's life after its training, on real parts: traffic is stored and distilled into a student, which is compared,
promoted through a gate that refuses a worse one, watched, and proposed for retraining when the questions change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.running_stack import ROOT, RunningStack, wait_for
from tests.e2e.tuning import COLOURS

ALIAS = "colour-bot"
COLOUR = {
    "type": "string_check", "name": "colour", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.output }}",
}  # fmt: skip
THINGS = list(COLOURS)


def ask(client: OpenAI, question: str, **options: Any) -> str:
    answer = client.chat.completions.create(
        model=ALIAS, messages=[{"role": "user", "content": question}], temperature=0, max_completion_tokens=8, **options
    )
    return answer.choices[0].message.content or ""


def distill(stack: RunningStack, base: str, folder: Path) -> tuple[str, list[str]]:
    """Run the command; returns the distillation's id, and what else it said."""
    graders = folder / "graders.json"
    graders.write_text(json.dumps(COLOUR))
    options = {
        "--student": base, "--graders": str(graders), "--metadata": "loop=colours", "--held-out": "0.2",
        "--suffix": "distilled", "--epochs": "4", "--max-tokens": "16",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "distill", *(word for pair in options.items() for word in pair)],
        cwd=ROOT, env={**os.environ, "OPENAI_BASE_URL": f"{stack.url}/v1", "OPENAI_API_KEY": stack.key},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + stack.log[-4000:]
    flow_id, *told = done.stdout.splitlines()
    return flow_id, told


def gate(client: OpenAI) -> dict[str, Any]:
    """Make an eval of a dozen questions, and return a gate that a model passes with two thirds of them."""
    eval_ = client.evals.create(
        name="colours",
        data_source_config={"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True},
        testing_criteria=[COLOUR],  # type: ignore[list-item]
    )
    rows = [
        {"item": {"asked": f"Colour of {thing}? ({row})", "output": COLOURS[thing]}}
        for row, thing in enumerate(THINGS * 2, start=700)
    ]
    template = [{"role": "user", "content": "{{ item.asked }}"}]
    source = {
        "type": "completions", "source": {"type": "file_content", "content": rows},
        "input_messages": {"type": "template", "template": template},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 8},
    }  # fmt: skip
    return {"eval_id": eval_.id, "data_source": source, "criteria": {"min_pass_rate": 0.66}}


def promoted(client: OpenAI, model: str) -> dict[str, Any]:
    """Ask for a promotion, and return it at its end."""
    path = f"/aliases/{ALIAS}/promotions"
    begun = client.post(path, body={"model": model}, cast_to=dict[str, Any])

    def now() -> dict[str, Any]:
        return client.get(f"{path}/{begun['id']}", cast_to=dict[str, Any])

    wait_for(lambda: now()["status"] in ("completed", "failed", "canceled"), 120)
    return now()


def test_the_whole_loop(
    stack: RunningStack, client: OpenAI, base: str, tuned_job: FineTuningJob, tmp_path: Path
) -> None:
    teacher = str(tuned_job.fine_tuned_model)
    client.post("/aliases", body={"name": ALIAS, "model": teacher}, cast_to=dict[str, Any])
    questions = [f"Colour of {THINGS[row % 6]}? ({row})" for row in range(100, 130)]
    with ThreadPoolExecutor(8) as several:
        said = list(several.map(lambda asked: ask(client, asked, store=True, metadata={"loop": "colours"}), questions))
    assert sum(word == COLOURS[THINGS[row % 6]] for row, word in enumerate(said, start=100)) >= 25

    flow_id, told = distill(stack, base, tmp_path)
    found = client.get(f"/distillations/{flow_id}", cast_to=dict[str, Any])
    counts = found["counts"]
    assert found["status"] == "completed"
    assert counts["training"] + counts["held_out"] + sum(counts["dropped"].values()) == 30
    student = str(found["fine_tuned_model"])
    assert ":distilled:" in student and f"student     {student}" in told
    assert {run["role"] for run in found["runs"]} == {"teacher", "base", "student"}
    compared = found["comparisons"]["base"]
    assert compared["rows"] == counts["held_out"]
    assert compared["passing"]["passed"] > compared["passing"]["passed_in_other"]

    client.post(f"/aliases/{ALIAS}", body={"gate": gate(client)}, cast_to=dict[str, Any])
    better, worse = promoted(client, student), promoted(client, base)
    assert (better["status"], better["outcome"]) == ("completed", "promoted"), better
    assert (worse["status"], worse["outcome"]) == ("completed", "refused") and "min_pass_rate" in worse["message"]
    assert client.get(f"/aliases/{ALIAS}", cast_to=dict[str, Any])["model"] == student

    monitor = {
        "sample_rate": 1.0, "graders": [{**COLOUR, "operation": "ne", "reference": ""}],
        "baseline": {"training": True, "first_s": 1}, "window_s": 20, "thresholds": {"min_samples": 10},
        "actions": ["propose_retraining"], "budget": {"jobs": 1},
    }  # fmt: skip
    client.post(f"/aliases/{ALIAS}", body={"monitor": monitor}, cast_to=dict[str, Any])
    drifted = [f"def total_{row}(self): return sum(price[{row}] for price in rows)" for row in range(48)]
    with ThreadPoolExecutor(16) as several:
        list(several.map(lambda asked: ask(client, asked), drifted))
    path = f"/aliases/{ALIAS}/proposals"
    wait_for(lambda: bool(client.get(path, cast_to=dict[str, Any])["data"]), 180)
    [proposal] = client.get(path, cast_to=dict[str, Any])["data"]
    assert proposal["status"] == "open" and any("words" in alarm for alarm in proposal["alarms"]), proposal
    assert (proposal["plan"]["model"], proposal["plan"]["training_file"]) == (base, found["files"]["training"])
    assert client.get(f"/aliases/{ALIAS}", cast_to=dict[str, Any])["model"] == student
