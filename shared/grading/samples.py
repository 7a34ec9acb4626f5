"""An answer as graders see it: the `sample` namespace."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec


def sample_of(output_text: str, tool_calls: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Form the `sample` namespace of an answer.

    `output_json` is there when the text is JSON, `output_tools` when the answer has tool calls, in the form that chat
    completions give them. `choices` has the answer as chat completions do.
    """
    message: dict[str, Any] = {"role": "assistant", "content": output_text}
    sample: dict[str, Any] = {"output_text": output_text}
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        sample["output_json"] = msgspec.json.decode(output_text)
    if tool_calls is not None:
        sample["output_tools"] = message["tool_calls"] = list(tool_calls)
    return sample | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
