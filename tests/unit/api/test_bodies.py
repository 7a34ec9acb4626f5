"""msgspec's errors in OpenAI's words."""

from __future__ import annotations

import pytest

from services.api.bodies import explain


@pytest.mark.parametrize(
    ("text", "message", "code", "param"),
    [
        (
            "Expected `int` >= 0 - at `$.seed`",
            "Invalid value for 'seed': expected `int` >= 0.", "invalid_value", "seed",
        ),
        (
            "Object contains unknown field `zz` - at `$.method.supervised`",
            "Unknown parameter: 'method.supervised.zz'.", "unknown_parameter", "method.supervised.zz",
        ),
        ("Object contains unknown field `zz`", "Unknown parameter: 'zz'.", "unknown_parameter", "zz"),
        (
            "Object missing required field `model`",
            "Missing required parameter: 'model'.", "missing_required_parameter", "model",
        ),
        (
            "Expected `str` of length <= 64 - at `key` in `$.metadata`",
            "Invalid value for 'metadata': expected `str` of length <= 64.", "invalid_value", "metadata",
        ),
        (
            "Expected `str`, got `int` - at `$.metadata[...]`",
            "Invalid value for 'metadata': expected `str`, got `int`.", "invalid_value", "metadata",
        ),
        (
            "Expected `object`, got `array`",
            "Invalid value for the request body: expected `object`, got `array`.", "invalid_value", None,
        ),
        (
            "Object contains unknown field `a` - at `$.b` - at `$.method`",
            "Unknown parameter: 'method.a` - at `$.b'.", "unknown_parameter", "method.a` - at `$.b",
        ),
    ],
)  # fmt: skip
def test_field_is_named(text: str, message: str, code: str, param: str | None) -> None:
    error = explain(text)
    assert (error.message, error.code, error.param) == (message, code, param)
