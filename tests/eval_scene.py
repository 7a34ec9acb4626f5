"""Evals for tests: a model that answers by the prompt, and short ways through the SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import openai

from tests.api_server import BASE, wait_until
from tests.batch_requests import Model, prompt_of

ENDED = {"completed", "failed", "canceled"}
QUESTION = {"type": "template", "template": [{"role": "user", "content": "What is {{ item.question }}?"}]}
EXACT = {
    "type": "string_check", "name": "exact", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}


@dataclass
class Speaker(Model):
    """Says `says(prompt)`; None is a refusal with status 400."""

    says: Callable[[str], str | None] = lambda prompt: prompt

    async def _answer(self, request: dict[str, Any], send: Any) -> None:
        if self.says(prompt_of(request)) is None:
            await self._refuse(400, send)
        else:
            await super()._answer(request, send)

    def _whole(self, request: dict[str, Any]) -> bytes:
        return spoken(request["model"], str(self.says(prompt_of(request))))


def spoken(model: str, text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {
        "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1},
    }  # fmt: skip
    whole = {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
    }
    return json.dumps({**whole, "usage": usage}).encode()


def rows(count: int) -> list[dict[str, Any]]:
    return [{"item": {"question": f"{n} and {n}", "answer": str(2 * n)}} for n in range(count)]


def adds(prompt: str) -> str:
    """Answer QUESTION for a row of rows(), rightly."""
    return str(2 * int(prompt.removeprefix("What is ").split()[0]))


def make_eval(sdk: openai.OpenAI, *criteria: dict[str, Any], **options: Any) -> Any:
    config = options.pop("config", {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True})
    given: Any = list(criteria) or [EXACT]
    return sdk.evals.create(data_source_config=config, testing_criteria=given, **options)


def content(given: list[dict[str, Any]]) -> Any:
    return {"type": "file_content", "content": given}


def jsonl(source: dict[str, Any]) -> Any:
    return {"type": "jsonl", "source": source}


def asking(source: dict[str, Any], **options: Any) -> Any:
    return {"type": "completions", "source": source, "input_messages": QUESTION, "model": BASE, **options}


def ended(sdk: openai.OpenAI, run: Any, *, timeout_s: float = 30) -> Any:
    def look() -> Any:
        found = sdk.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        return found if found.status in ENDED else None

    return wait_until(look, timeout_s=timeout_s)


def items(sdk: openai.OpenAI, run: Any, **options: Any) -> list[Any]:
    return list(sdk.evals.runs.output_items.list(run.id, eval_id=run.eval_id, **options))
