"""Eval runs while api processes are killed and come back, and while models are away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from shared import keys
from tests.ab_scene import Scene
from tests.api_server import BASE, ApiServer, know_key, wait_until
from tests.batch_requests import sdk_of, serve
from tests.eval_scene import EXACT, QUESTION, Speaker, adds, asking, content, ended, items, make_eval, rows

MANY = 40
JUDGE = {
    "type": "score_model", "name": "judge", "model": BASE, "pass_threshold": 0.5,
    "input": [{"role": "user", "content": "Judge {{ item.question }}: {{ sample.output_text }}"}],
}  # fmt: skip
COMPARING = "Compare {{ item.question }}: {{ sample.first.output_text }} or {{ sample.second.output_text }}"
STUCK = "Compare 2 and 2: 4 or no"
SECOND = {**JUDGE, "name": "second", "input": [{"role": "user", "content": "Once more {{ item.question }}"}]}


@pytest.fixture
def url(valkey_folder: Path) -> str:
    """URL of an empty database that the API process of other tests does not look into."""
    url = f"unix://{valkey_folder / 'valkey.sock'}?db=3"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def judges(prompt: str) -> str:
    if prompt.startswith("Compare"):
        return '{"steps": [], "result": "first"}'
    return adds(prompt) if prompt.startswith("What") else '{"steps": [], "result": 1}'


@pytest.fixture
def upstream() -> Iterator[Speaker]:
    with Speaker(says=judges) as server:
        yield server


@pytest.fixture
def launch(url: str, tmp_path: Path) -> Iterator[Callable[[], ApiServer]]:
    """Start API processes on one data folder."""
    with ExitStack() as stack:

        def start_one() -> ApiServer:
            server = ApiServer(tmp_path / "home", url, lease_ttl_s=2, eval_concurrency=5)
            stack.callback(server.stop)
            know_key(url, server.key)
            return server

        yield start_one


def start(sdk: openai.OpenAI, *criteria: dict[str, Any]) -> Any:
    made = make_eval(sdk, *criteria)
    return sdk.evals.runs.create(made.id, data_source=asking(content(rows(MANY)), input_messages=QUESTION))


def compare(scene: Scene) -> dict[str, Any]:
    """Begin an A/B run over four rows."""
    runs = scene.run(["0", "2", "4", "6"]), scene.run(["no"] * 4)
    return scene.create(*runs, judge={"model": BASE, "input": [{"role": "user", "content": COMPARING}]})


def asked_beside(upstream: Speaker) -> Counter[str]:
    """Return what was asked but for A/B runs."""
    return Counter({prompt: count for prompt, count in upstream.asked().items() if not prompt.startswith("Compare")})


def test_killed_process_loses_no_row_and_pays_for_none_twice(
    launch: Callable[[], ApiServer], upstream: Speaker, url: str
) -> None:
    """One row's answer, one row's last judge, and a judge's word on one order never come: whatever was paid for before
    the kill must be kept."""
    upstream.stuck = {"What is 5 and 5?", "Once more 6 and 6", STUCK}
    serve(url, upstream)
    first = launch()
    with first.client() as http:
        compared = compare(Scene(sdk_of(first), http))
    run = start(sdk_of(first), EXACT, JUDGE, SECOND)

    def all_but_two() -> bool:
        found = sdk_of(first).evals.runs.retrieve(run.id, eval_id=run.eval_id)
        asked = upstream.asked()
        return found.result_counts.passed == MANY - 2 and asked["Once more 6 and 6"] == asked[STUCK] == 1

    wait_until(all_but_two, timeout_s=60)
    first.process.kill()
    first.process.wait()
    upstream.stuck = set()
    before = asked_beside(upstream)
    second = launch()
    sdk = sdk_of(second)
    done = ended(sdk, run, timeout_s=60)
    assert done.status == "completed"
    assert done.result_counts.to_dict() == {"total": MANY, "passed": MANY, "failed": 0, "errored": 0}
    assert [one.datasource_item_id for one in items(sdk, run, limit=100)] == list(range(MANY))
    again = asked_beside(upstream) - before
    assert again == Counter(["What is 5 and 5?", "Judge 5 and 5: 10", "Once more 5 and 5", "Once more 6 and 6"]), (
        "only what was under way is asked again"
    )
    (usage,) = done.per_model_usage
    assert (usage.invocation_count, usage.total_tokens) == (3 * MANY, 15 * MANY), "each answer is counted once"
    assert [one.passed for one in done.per_testing_criteria_results] == [MANY] * 3
    with redis.Redis.from_url(url) as client:
        assert not client.exists(keys.eval_drafts(run.id), keys.eval_run_lease(run.id))
    assert not second.paths.eval_folder(run.id).exists()
    with second.client() as http:
        check_compared(Scene(sdk, http, compared["eval_id"]).end(compared), upstream)


def check_compared(done: dict[str, Any], upstream: Speaker) -> None:
    """Each order of each row was paid for once, and asked once but for the one that was under way."""
    assert (done["status"], done["result_counts"]["total"], done["result_counts"]["tie"]) == ("completed", 4, 4)
    assert done["per_model_usage"][0]["invocation_count"] == 8
    asked = upstream.asked() - asked_beside(upstream)
    assert (asked.pop(STUCK), len(asked), set(asked.values())) == (2, 7, {1})


def test_a_run_waits_for_a_model_that_is_away_and_can_be_cancelled(
    launch: Callable[[], ApiServer], upstream: Speaker, url: str
) -> None:
    serve(url, upstream)
    with redis.Redis.from_url(url) as client:
        client.delete(*client.keys("selftune:replica*"))
    sdk = sdk_of(launch())
    waits, unwanted = start(sdk), start(sdk)
    wait_until(lambda: sdk.evals.runs.retrieve(waits.id, eval_id=waits.eval_id).status == "in_progress")
    assert sdk.evals.runs.cancel(unwanted.id, eval_id=unwanted.eval_id).status == "canceled"
    serve(url, upstream)
    done = ended(sdk, waits, timeout_s=60)
    assert (done.status, done.result_counts.passed) == ("completed", MANY)
    assert upstream.asked().total() == MANY
