"""How much one request may ask of an engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.api.gateway.request_limits import MAX_PROMPTS, check_request
from shared.errors import InvalidRequest

TEXT = "a, b, c, [1, 2]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{}] * 10_001}, "messages"),
        ({"input": [{}] * 10_001}, "input"),
        ({"input": ["a"] * (MAX_PROMPTS + 1)}, "input"),
        ({"input": [[1]] * (MAX_PROMPTS + 1)}, "input"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"prompt": [[1, 2]] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"tools": [{}] * 1025}, "tools"),
        ({"functions": [{}] * 1025}, "functions"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"best_of": 1000}, "best_of"),
    ],
)
def test_too_much_is_refused_and_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(msgspec.json.encode(body))
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{"role": "user", "content": TEXT * 1000}] * 100, "n": 128, "stop": [TEXT] * 64},
        {"prompt": list(range(100_000))},
        {"prompt": TEXT * 10_000},
        {"prompt": [TEXT] * MAX_PROMPTS},
        {"input": [list(range(50))] * MAX_PROMPTS},
        {"n": None, "stop": 5, "tools": {}, "logit_bias": [], "messages": "text", "best_of": -1},
        {"max_tokens": 10**30, "max_completion_tokens": 0, "max_output_tokens": None},
    ],
)
def test_what_is_ordinary_or_of_another_kind_is_left_to_the_inference_server(body: dict[str, Any]) -> None:
    check_request(msgspec.json.encode(body))


@pytest.mark.parametrize("name", ["n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"])
@pytest.mark.parametrize("number", ["1e4", "5000.0", '"5000"', "true", "[1]", "{}", "1.5"])
def test_numbers_that_are_not_written_as_whole_ones_are_refused(name: str, number: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(f'{{"{name}": {number}}}'.encode())
    assert (caught.value.param, caught.value.code) == (name, "invalid_type")


def test_spaces_hide_nothing() -> None:
    with pytest.raises(InvalidRequest):
        check_request(b'{"prompt" : [ \n' + b'"a" ,\n' * MAX_PROMPTS + b'"a" ] }')
