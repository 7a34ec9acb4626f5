"""A/B runs for tests: answers that are right or not, a judge that can tell, and short ways through the API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx2
import openai

from tests.api_server import BASE, wait_until
from tests.eval_scene import content, ended, make_eval, rows

SHOWN = re.compile(r"(\d+) and \d+: 1 is (.*), 2 is (.*)")
QUESTION = "{{ item.question }}: 1 is {{ sample.first.output_text }}, 2 is {{ sample.second.output_text }}"
JUDGE = {"model": BASE, "input": [{"role": "user", "content": QUESTION}], "sampling_params": {"temperature": 0}}


def says(choice: Callable[[int, str, str], str]) -> Callable[[str], str]:
    """Judge by the row's number and what stands first and second."""

    def answer(prompt: str) -> str:
        found = SHOWN.fullmatch(prompt)
        assert found is not None, prompt
        return json.dumps({"steps": [], "result": choice(int(found[1]), found[2], found[3])})

    return answer


def honest(number: int, first: str, second: str) -> str:
    right = str(2 * number)
    return "tie" if first == second else "first" if first == right else "second"


class Scene:
    """An eval with a run that answers rightly and one that does not."""

    def __init__(self, sdk: openai.OpenAI, http: httpx2.Client, eval_id: str = "") -> None:
        self.sdk, self.http = sdk, http
        self.eval_id = eval_id or make_eval(sdk).id
        self.url = f"/v1/evals/{self.eval_id}/ab_runs"

    def run(self, answers: list[str], *, of: list[dict[str, Any]] | None = None, wait: bool = True) -> str:
        given = [{**row, "sample": {"output_text": said}} for row, said in zip(of or rows(99), answers, strict=False)]
        source: Any = {"type": "jsonl", "source": content(given)}
        run = self.sdk.evals.runs.create(self.eval_id, data_source=source)
        if wait:
            assert ended(self.sdk, run).status == "completed"
        return run.id

    def create(self, run_a: str, run_b: str, **options: Any) -> dict[str, Any]:
        body = {"run_a": run_a, "run_b": run_b, **options}
        made: Any = self.sdk.post(self.url.removeprefix("/v1"), body=body, cast_to=object)
        return dict(made)

    def end(self, made: dict[str, Any]) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.get("", made)
            return found if found["status"] in ("completed", "failed", "canceled") else None

        return dict(wait_until(look, timeout_s=60) or {})

    def get(self, what: str, made: dict[str, Any], **query: str) -> dict[str, Any]:
        answer = self.http.get(f"{self.url}/{made['id']}{what}", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def vote(self, made: dict[str, Any], pair: str, choice: str) -> httpx2.Response:
        return self.http.post(f"{self.url}/{made['id']}/votes", json={"pair": pair, "choice": choice})


RIGHT = [str(2 * n) for n in range(8)]
WRONG = ["no"] * 8
