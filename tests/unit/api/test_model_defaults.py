"""Settings of a model in the requests of each endpoint: what is filled in, and that nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.model_defaults import with_defaults
from shared.model_records import ModelSettingsRecord

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGE, COUNT, RENDER = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses/render"
TEMPLATE = "{{ messages[-1].content }}"
USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
SAMPLING = {
    "temperature": 0.5, "top_p": 0.9, "presence_penalty": -1.0, "frequency_penalty": 1.0, "seed": 7, "stop": ["END"],
}  # fmt: skip
ALL = ModelSettingsRecord(
    system_prompt="Be brief.",
    max_completion_tokens=32,
    chat_template=TEMPLATE,
    **SAMPLING,  # type: ignore[arg-type]
)
PROMPT = ModelSettingsRecord(system_prompt="Be brief.")


def filled(endpoint: str, settings: ModelSettingsRecord = ALL, **sent: Any) -> dict[str, Any]:
    """Return what was set or changed in a request."""
    body = with_defaults(endpoint, json.dumps({"model": "m", **sent}).encode(), settings)
    got: dict[str, Any] = json.loads(body)
    return {name: value for name, value in got.items() if name != "model" and sent.get(name, ...) != value}


@pytest.mark.parametrize(
    ("endpoint", "sent", "expected"),
    [
        (
            CHAT,
            {"messages": [USER]},
            {**SAMPLING, "messages": [SYSTEM, USER], "max_completion_tokens": 32, "chat_template": TEMPLATE},
        ),
        (COMPLETION, {"prompt": "hi"}, {**SAMPLING, "max_tokens": 32}),
        *[
            (
                endpoint,
                {"input": "hi"},
                {
                    **SAMPLING,
                    "instructions": "Be brief.",
                    "max_output_tokens": 32,
                    "chat_template_kwargs": {"chat_template": TEMPLATE},
                },
            )
            for endpoint in (RESPONSE, RENDER)
        ],
        (
            MESSAGE,
            {"messages": [USER]},
            {
                "temperature": 0.5,
                "top_p": 0.9,
                "stop_sequences": ["END"],
                "max_tokens": 32,
                "system": "Be brief.",
                "chat_template_kwargs": {"chat_template": TEMPLATE},
            },
        ),
        (
            COUNT,
            {"messages": [USER]},
            {"system": "Be brief.", "chat_template_kwargs": {"chat_template": TEMPLATE}},
        ),
        ("/v1/embeddings", {"input": "hi"}, {}),
    ],
)
def test_everything_that_an_endpoint_has_a_field_for_is_filled(
    endpoint: str, sent: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert filled(endpoint, **sent) == expected


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        (CHAT, {"messages": [SYSTEM, USER], "max_tokens": 5, **dict.fromkeys(SAMPLING, 0)}),
        (CHAT, {"messages": [USER, {"role": "developer", "content": "x"}], "max_completion_tokens": 5, **SAMPLING}),
        (COMPLETION, {"prompt": "hi", "max_tokens": 0, **SAMPLING}),
        (RESPONSE, {"input": "hi", "instructions": "x", "max_output_tokens": 5, **SAMPLING}),
        (RESPONSE, {"input": [SYSTEM, USER], "max_output_tokens": 5, **SAMPLING}),
        (MESSAGE, {"messages": [USER], "system": [], "max_tokens": 5, "stop_sequences": [], **SAMPLING}),
        (MESSAGE, {"messages": [SYSTEM, USER], "max_tokens": 5, "stop_sequences": ["a"], **SAMPLING}),
    ],
)
def test_what_the_client_sends_is_left(endpoint: str, sent: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **sent}, indent=1).encode()
    settings = ModelSettingsRecord(system_prompt="Be brief.", max_completion_tokens=32, **SAMPLING)  # type: ignore[arg-type]
    assert with_defaults(endpoint, body, settings) == body


def test_null_counts_as_left_open() -> None:
    sent = {"messages": [USER], "temperature": None, "stop": None, "max_tokens": None}
    assert filled(CHAT, ModelSettingsRecord(temperature=0.0, stop=["a"], max_completion_tokens=3), **sent) == {
        "temperature": 0.0, "stop": ["a"], "max_completion_tokens": 3,
    }  # fmt: skip
    assert filled(RESPONSE, PROMPT, input="hi", instructions=None) == {"instructions": "Be brief."}


@pytest.mark.parametrize("messages", [[], "hi", [5], {"role": "user"}, [[USER]], None, 7])
def test_what_is_no_conversation_goes_on_as_it_is(messages: Any) -> None:
    assert filled(CHAT, PROMPT, messages=messages) == {}


def test_the_templates_other_values_stay() -> None:
    sent = {"input": "hi", "chat_template_kwargs": {"enable_thinking": False, "chat_template": None}}
    got = filled(RESPONSE, ModelSettingsRecord(chat_template=TEMPLATE), **sent)
    assert got == {"chat_template_kwargs": {"enable_thinking": False, "chat_template": TEMPLATE}}


def test_bytes_that_no_setting_is_about_stay() -> None:
    body = '{ "model":"m", "messages":[ {"role":"user", "content":"\u00fc\\u0041"} ], "odd": [1.0, 1e2] }'.encode()
    got = with_defaults(CHAT, body, ModelSettingsRecord(system_prompt="S", top_p=1.0))
    messages = '[{"role":"system","content":"S"},{"role":"user", "content":"\u00fc\\u0041"}]'
    assert got == f'{{"model":"m","messages":{messages},"odd":[1.0, 1e2],"top_p":1.0}}'.encode()
