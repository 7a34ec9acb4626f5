"""`selftune distill`: ask for a distillation, say what it is at, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.cli.openai_api import OpenAIApi
from shared import ids
from shared.errors import InvalidRequest

_LOOK_S = 1.0
_WORDS = {
    "better": "better than", "worse": "worse than", "no_difference_shown": "no different, as far as can be told, from",
}  # fmt: skip


def source_of(
    api: OpenAIApi,
    *,
    prompts: Path | None,
    teacher: str | None,
    ask: str | None,
    model: str | None,
    metadata: Sequence[str],
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """Form the request's `source`; a file of prompts is uploaded. Raises InvalidRequest, and what `api` raises."""
    if (prompts is None) != (teacher is None):
        raise InvalidRequest("give --prompts and --teacher together, or neither for stored completions")
    if prompts is None:
        if ask is not None:
            raise InvalidRequest("--ask is what a teacher is asked; give --prompts and --teacher with it")
        return {"type": "stored_completions", "metadata": pairs(metadata, "--metadata") or None, "model": model}
    if model is not None or metadata:
        raise InvalidRequest("--model and --metadata choose stored completions; leave them out with --prompts")
    file = api.upload(prompts, filename=prompts.name, purpose="evals")
    rows = {"type": "file_id", "id": file["id"]}
    template = {"type": "template", "template": [{"role": "user", "content": ask}]} if ask is not None else None
    found = {"type": "prompts", "prompts": rows, "teacher": teacher, "input_messages": template}
    return found | {"sampling_params": sampling}


def graders_in(path: Path) -> list[Any]:
    """Read a list of graders, or one. Raises InvalidRequest, OSError."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, list) else [found]


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Read `name=value`, each an option of its own. Raises InvalidRequest."""
    split = [one.partition("=") for one in given]
    for name, sign, _ in split:
        if not name or not sign:
            raise InvalidRequest(f"{option} needs name=value")
    return {name: value for name, _, value in split}


def scores(given: Sequence[str]) -> dict[str, float]:
    """Read `grader=score`. Raises InvalidRequest."""
    try:
        return {name: float(value) for name, value in pairs(given, "--minimum-score").items()}
    except ValueError as error:
        raise InvalidRequest("--minimum-score needs name=number") from error


def begin(api: OpenAIApi, request: dict[str, Any]) -> str:
    """Create a distillation and return its id. Raises what `api` raises."""
    return str(api.post("/distillations", request, idempotency_key=ids.new_token())["id"])


def follow(api: OpenAIApi, flow_id: str, say: Callable[[str], None]) -> bool:
    """Tell of each stage until the end, and then of the result; returns whether it is completed."""
    told: set[str] = set()
    while True:
        found = api.get(f"/distillations/{flow_id}")
        for stage in found["stages"]:
            line = f"{stage['name']:<11} {stage['status']}"
            if stage["status"] != "pending" and line not in told:
                told.add(line)
                say(line)
        if found["ended_at"] is not None:
            for line in report(found):
                say(line)
            return bool(found["status"] == "completed")
        time.sleep(_LOOK_S)


def report(found: dict[str, Any]) -> list[str]:
    """Say in a few lines what came of a distillation."""
    counts = found["counts"]
    dropped = ", ".join(f"{number} {reason}" for reason, number in counts["dropped"].items()) or "none"
    lines = [
        f"rows        {counts['found']} found, {counts['training']} to train on, {counts['held_out']} held out",
        f"dropped     {dropped}",
    ]
    lines += [f"{name:<11} {file_id}" for name, file_id in found["files"].items() if file_id]
    if found["error"]:
        lines.append(f"{found['status']}: {found['error']['message']}")
    if found["fine_tuned_model"]:
        lines.append(f"student     {found['fine_tuned_model']}")
    for run in found["runs"]:
        passed, total = run["result_counts"]["passed"], run["result_counts"]["total"]
        lines.append(f"{run['role']:<11} passed {passed} of {total}")
    for other in ("base", "teacher"):
        if (comparison := found["comparisons"][other]) is not None:
            p_value = comparison["passing"]["p_value"]
            lines.append(f"The student is {_WORDS[comparison['verdict']]} the {other} (p {p_value:.3g}).")
    lines += [remark] if (remark := found["comparisons"]["remark"]) else []
    tokens = sum(usage["total_tokens"] for usage in found["usage"])
    return [*lines, f"tokens      {tokens} asked and answered, {found['trained_tokens'] or 0} trained"]
