"""Token estimates and the way durations are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.api.limits import duration, estimated_tokens


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"), (120, "120ms"), (999, "999ms"), (1000, "1s"), (8640, "8.64s"), (59_999, "59.999s"),
        (60_000, "1m0s"), (90_500, "1m30.5s"), (360_000, "6m0s"), (3_600_000, "1h0m0s"), (3_723_004, "1h2m3.004s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("extra", "answer_tokens"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 100, "n": 3}, 300),
        ({"max_output_tokens": 100, "n": None}, 100),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 20),
        ({"max_tokens": -5}, 0),
        ({"max_tokens": "100"}, 0),
        ({"max_tokens": 1.5, "n": {}}, 0),
        ({"max_tokens": True, "n": 0}, 1),
        ({"max_tokens": 10**30}, 2**31),
        ({"prompt": ["a", "b", "c"], "max_tokens": 5, "n": 2}, 30),
        ({"prompt": [[1, 2], [3]], "max_tokens": 5}, 10),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 5),
    ],
)
def test_estimate_is_a_quarter_of_the_characters_and_the_longest_answer(
    extra: dict[str, Any], answer_tokens: int
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hé"}], **extra}, ensure_ascii=False)
    assert estimated_tokens(body.encode()) == -(-len(body) // 4) + answer_tokens


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"\xff" * 8, b"[" * 5000, b'{"max_tokens": NaN}'])
def test_whatever_comes_is_estimated(body: bytes) -> None:
    assert estimated_tokens(body) == -(-len(body) // 4)
