"""Batches answered by the real engine: every line of the output is what the live endpoint would have sent."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.api_server import ApiServer
from tests.batch_requests import content, ended, start
from tests.integration.engine.names import TUNED
from tests.integration.inference_stack import BASE_ID
from tests.openai_spec import violations

MESSAGES: list[Any] = [{"role": "user", "content": "what is the capital of france?"}]


@pytest.fixture(scope="module")
def sdk(engine_api: ApiServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{engine_api.url}/v1", api_key=engine_api.key, max_retries=0, _strict_response_validation=True
    )


def requests(endpoint: str, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": {"model": BASE_ID, **body}}
        for n, body in enumerate(bodies)
    ]


@pytest.mark.parametrize(
    ("endpoint", "bodies"),
    [
        (
            "/v1/chat/completions",
            [
                {"messages": MESSAGES, "max_tokens": 8, "temperature": 0},
                {"messages": MESSAGES, "max_tokens": 4, "model": TUNED, "logprobs": True, "top_logprobs": 2},
                {"messages": MESSAGES, "max_tokens": 4, "n": 2, "store": True},
            ],
        ),
        ("/v1/completions", [{"prompt": "once upon", "max_tokens": 4, "logprobs": 1}]),
        ("/v1/responses", [{"input": "hi", "max_output_tokens": 16}, {"input": MESSAGES, "store": False}]),
    ],
)
def test_answers_are_those_of_the_live_endpoint(
    sdk: openai.OpenAI, endpoint: str, bodies: list[dict[str, Any]]
) -> None:
    done = ended(sdk, start(sdk, requests(endpoint, *bodies), endpoint=endpoint), timeout_s=120)
    assert (done.status, done.error_file_id) == ("completed", None)
    answers = [one["response"]["body"] for one in content(sdk, done.output_file_id)]
    assert len(answers) == len(bodies)
    for answer in answers:
        assert violations("POST", endpoint, 200, answer) == []
    counted = sum(answer["usage"]["total_tokens"] for answer in answers)
    assert done.usage is not None and 0 < done.usage.total_tokens == counted
    assert done.usage.input_tokens + done.usage.output_tokens == counted


def test_refusals_of_the_engine_are_in_the_error_file(sdk: openai.OpenAI) -> None:
    url = "/v1/chat/completions"
    lines = requests(url, {"messages": MESSAGES, "max_tokens": -1}, {"messages": [{"role": "user"}] * 2, "n": "many"})
    done = ended(sdk, start(sdk, lines), timeout_s=60)
    assert (done.status, done.output_file_id) == ("completed", None)
    for one in content(sdk, done.error_file_id):
        assert one["response"]["status_code"] == 400 and one["error"] is None
        assert violations("POST", url, 400, one["response"]["body"]) == []


def test_live_answers_equal_those_of_a_batch(sdk: openai.OpenAI) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    live = sdk.chat.completions.create(model=BASE_ID, **body)
    done = ended(sdk, start(sdk, requests("/v1/chat/completions", body)), timeout_s=60)
    (one,) = content(sdk, done.output_file_id)
    assert one["response"]["body"]["choices"] == [choice.to_dict(mode="json") for choice in live.choices]
